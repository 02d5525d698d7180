"""Ancestral sampling: Ho et al. (2020), Algorithm 2."""
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from diffusion.core import numerics, variational
from diffusion.core.parameterization import Diffusion
from diffusion.core.variational import Variance
from diffusion.typing import Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class Ancestral:
    """x_s ~ N(posterior mean of q(x_s | x_t, x_0_hat), variance), and the mean alone at s = 0.

    The variance is that of `variational.reverse_log_variance`, for any s < t, so that it serves respaced grids.
    """
    variance: Variance = "large"

    def init(self, x: Image):
        return ()

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion
        prediction = denoise(x, t, cond)
        mean = process.posterior(x, prediction.x0, t_next, t).mean
        log_variance = variational.reverse_log_variance(process, prediction, t_next, t, self.variance)
        # None at t_next = 0, whatever the variance: the last step's noise would stay in the picture.
        std = jnp.where(t_next > 0, jnp.exp(log_variance / 2), 0)
        return carry, mean + std * numerics.normal(keys, x.shape[1:], x.dtype)

    def evaluations(self, steps: np.ndarray, carry) -> float:
        return len(steps)
