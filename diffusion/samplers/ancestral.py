"""Ancestral sampling: Ho et al. (2020), Algorithm 2."""
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from diffusion.core import numerics, variational
from diffusion.core.parameterization import Diffusion
from diffusion.core.variational import Variance
from diffusion.samplers.base import Solver
from diffusion.typing import Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class Ancestral(Solver):
    """x_s ~ N(posterior mean of q(x_s | x_t, x_0_hat), variance), and only the mean at s = 0.

    The variance is `variational.reverse_log_variance`, defined for any s < t, so respaced grids work too.
    """
    variance: Variance = "large"
    once_a_step = correctable = True

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion.process, diffusion.denoise
        prediction = denoise(x, t, cond)
        mean = process.posterior(x, prediction.x0, t_next, t).mean
        log_variance = variational.reverse_log_variance(process, prediction, t_next, t, self.variance)
        # No noise at t_next = 0, whatever the variance: it would stay in the picture.
        std = jnp.where(t_next > 0, jnp.exp(log_variance / 2), 0)
        return carry, mean + std * numerics.normal(keys, x.shape[1:], x.dtype)


def ancestral(*,
              variance: Literal["large", "small", "learned_range", "mixed"] = "large",  # large (beta_t), small
                                         # (beta-tilde_t), learned_range (between them by the network), mixed (between
                                         # them by variance_share)
              variance_share: float = 0.2,  # mixed: share of the large variance, in logarithms (Hoogeboom et al. 2023)
              ) -> Ancestral:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2)."""
    return Ancestral(variance=variational.variance_of(variance, variance_share))


SOLVERS = {"ancestral": ancestral}
