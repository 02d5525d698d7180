"""Ancestral sampling: Ho et al. (2020), Algorithm 2."""
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from diffusion.core import numerics
from diffusion.core.parameterization import Denoise
from diffusion.core.processes import Process
from diffusion.typing import Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class Ancestral:
    """x_s ~ N(posterior mean of q(x_s | x_t, x_0_hat), variance), and the mean alone at s = 0.

    `variance` (Ho et al. 2020, Section 3.2), here for any s < t, so that it serves respaced grids:
      small  sigma_s^2 (1 - SNR_t/SNR_s): beta-tilde, the posterior's own; right for a single data point
      large  sigma_t^2 (1 - SNR_t/SNR_s) = 1 - alpha_t^2/alpha_s^2: beta_t, right for data ~ N(0, I)
    """
    process: Process
    variance: Literal["small", "large"] = "large"

    def init(self, x: Image):
        return ()

    def step(self, carry, x: Image, t: Time, t_next: Time, denoise: Denoise, keys: Keys, cond: Cond):
        posterior = self.process.posterior(x, denoise(x, t, cond).x0, t_next, t)
        variance = posterior.variance
        if self.variance == "large":
            # Not at t_next = 0: the last step's noise would stay in the picture.
            variance = jnp.where(variance > 0, self.process.sigma(t) ** 2 * self.process.removed(t_next, t), 0)
        noise = numerics.normal(keys, x.shape[1:], x.dtype)
        return carry, posterior.mean + jnp.sqrt(variance) * noise
