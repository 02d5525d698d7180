"""Ancestral sampling: Ho et al. (2020), Algorithm 2."""
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np

from diffusion.core import numerics
from diffusion.core.parameterization import Diffusion
from diffusion.typing import Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class Ancestral:
    """x_s ~ N(posterior mean of q(x_s | x_t, x_0_hat), variance), and the mean alone at s = 0.

    `variance` (Ho et al. 2020, Section 3.2), here for any s < t, so that it serves respaced grids:
      small  sigma_s^2 (1 - SNR_t/SNR_s): beta-tilde, the posterior's own; right for a single data point
      large  sigma_t^2 (1 - SNR_t/SNR_s) = 1 - alpha_t^2/alpha_s^2: beta_t, right for data ~ N(0, I)
      learned_range  between their logarithms, where the network says (Nichol & Dhariwal 2021, Eq. 15)
    """
    variance: Literal["small", "large", "learned_range"] = "large"

    def init(self, x: Image):
        return ()

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion
        prediction = denoise(x, t, cond)
        posterior = process.posterior(x, prediction.x0, t_next, t)
        small, large = posterior.variance, process.sigma(t) ** 2 * process.removed(t_next, t)
        if self.variance == "small":
            variance = small
        elif self.variance == "large":
            variance = large
        else:
            v = prediction.variance_fraction
            variance = jnp.exp(v * jnp.log(large) + (1 - v) * jnp.log(jnp.maximum(small, 1e-20)))
        # None at t_next = 0, whatever the variance: the last step's noise would stay in the picture.
        std = jnp.sqrt(jnp.where(small > 0, variance, 0))
        return carry, posterior.mean + std * numerics.normal(keys, x.shape[1:], x.dtype)

    def evaluations(self, steps: np.ndarray, carry) -> float:
        return len(steps)
