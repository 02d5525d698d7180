"""A solver: DDIM's step by the denoiser at a time between the two ends, the midpoint in log-SNR."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import require
from diffusion.samplers.base import Solver


@dataclass(frozen=True, kw_only=True)
class Midpoint(Solver):
    """x_s = alpha_s x_0 + sigma_s eps with the prediction of an intermediate time; two evaluations a step."""
    share: float = 0.5     # of the step in log-SNR, at which the second prediction is made
    between_times = True   # an ability: it asks for times between those of the grid

    def __post_init__(self):
        require(0 < self.share < 1, "share", self.share, "must lie in (0, 1).")

    def step(self, carry, x, t, t_next, diffusion, keys, cond):
        process, denoise = diffusion.process, diffusion.denoise
        t, t_next = jnp.asarray(t, float), jnp.asarray(t_next, float)
        first = denoise(x, t, cond)
        start, end = process.log_snr(t), process.log_snr(t_next)
        middle = process.time_of_log_snr(start + self.share * jnp.where(jnp.isfinite(end), end - start, 0))

        def second(x):
            there = process.alpha(middle) * first.x0 + process.sigma(middle) * first.eps
            return denoise(there, middle, cond)[:2]
        x0, eps = jax.lax.cond(t_next > 0, second, lambda x: first[:2], x)
        return carry, process.alpha(t_next) * x0 + process.sigma(t_next) * eps

    def evaluations(self, steps: np.ndarray, carry) -> float:
        return len(steps) + int(np.sum(steps[:, 1] > 0))


SOLVERS = {"own_midpoint": Midpoint}
