"""LMS: the linear multistep method of k-diffusion (Crowson 2022, sample_lms)."""
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np

from diffusion.core.parameterization import Diffusion
from diffusion.samplers import history, multistep
from diffusion.samplers.base import Solver
from diffusion.typing import Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class LMS(Solver):
    """Adams-Bashforth of global order `order` for d(x / alpha) / d rho = eps, rho = sigma / alpha, on any grid.

    eps is a polynomial in rho through the last values, and its integral is exact. The step to t_next = 0, rho = 0, is
    no exception: it ends at the x_0 given by x and a weighted mean of the last eps.
    """
    order: int = 4
    once_a_step = True

    def init(self, x: Image):
        return history.empty(x, self.order)

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion.process, diffusion.denoise
        x0, eps, _ = denoise(x, t, cond)
        alpha, level = process.alpha(t_next), process.noise_level(t)
        carry = history.push(carry, eps, level)
        # Values at pure noise, rho = inf, are infinitely far from the others and are not used.
        used = (np.arange(self.order) < carry.count) & jnp.isfinite(carry.times)
        length = jnp.where(jnp.isfinite(level), process.noise_level(t_next) - level, 0)
        nodes = (carry.times - level) / jnp.where(length == 0, 1, length)
        w = length * multistep.weights(nodes, used, jnp.ones_like)
        return carry, alpha * (x0 + multistep.combine(w, carry.values, eps)) + process.sigma(t_next) * eps


def lms(*, order: Literal[1, 2, 3, 4] = 4) -> LMS:
    """The linear multistep method of k-diffusion (Crowson 2022)."""
    return LMS(order=order)


SOLVERS = {"lms": lms}
