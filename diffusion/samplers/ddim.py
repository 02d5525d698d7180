"""DDIM: Song, Meng & Ermon (2021), "Denoising Diffusion Implicit Models", Eqs. 12 and 16."""
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from diffusion.core import numerics
from diffusion.core.parameterization import Diffusion
from diffusion.typing import Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """x_s = alpha_s x_0_hat + sqrt(sigma_s^2 - std^2) eps_hat + std z, std = eta sigma_s sqrt(1 - SNR_t/SNR_s).

    eta = 0 is deterministic; eta = 1 is the ancestral sampler with the small variance.
    """
    eta: float = 0.0

    def init(self, x: Image):
        return ()

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion
        x0, eps, _ = denoise(x, t, cond)
        sigma = process.sigma(t_next)
        share = self.eta**2 * process.removed(t_next, t)  # of sigma^2 that is drawn anew
        x = process.alpha(t_next) * x0 + sigma * jnp.sqrt(1 - share) * eps
        if self.eta > 0:
            x += sigma * jnp.sqrt(share) * numerics.normal(keys, x.shape[1:], x.dtype)
        return carry, x

    def evaluations(self, steps: np.ndarray, carry) -> float:
        return len(steps)
