"""Multistep consistency sampling: Song et al. (2023), "Consistency Models", Algorithm 1."""
from dataclasses import dataclass

import jax.numpy as jnp

from diffusion.core import numerics
from diffusion.core.parameterization import Diffusion
from diffusion.samplers.base import Solver
from diffusion.typing import Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class Consistency(Solver):
    """Predicts x_0, then adds fresh noise: x_s = alpha_s x_0 + sigma_s z.

    The denoiser must be a consistency model, whose x_0 is the end of the ODE's path and not a mean (with a mean,
    samples have too little variance). at_t_min: the path ends at process.t_min, as in the paper, and x_0 is x at that
    time, so only the noise between t_min and t is added: sqrt(t^2 - t_min^2) z on EDM's process. Otherwise the path
    ends at 0 (Luo et al. 2023, "Latent Consistency Models").
    """
    at_t_min: bool = True

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion.process, diffusion.denoise
        x0, alpha, std = denoise(x, t, cond).x0, process.alpha(t_next), process.sigma(t_next)
        if self.at_t_min:
            start = jnp.minimum(process.t_min, t_next).astype(t_next.dtype)
            share = jnp.where(t_next > start, process.noise_added_fraction(start, t_next), 0)
            alpha, std = alpha / process.alpha(start), std * jnp.sqrt(share)
        return carry, alpha * x0 + std * numerics.normal(keys, x.shape[1:], x.dtype)


def consistency() -> Consistency:
    """Multistep sampling of a consistency model (Song et al. 2023, Algorithm 1)."""
    return Consistency()


SOLVERS = {"consistency": consistency}
