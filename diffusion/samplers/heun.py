"""Euler's and Heun's methods on the probability-flow ODE, in the process's own time: Karras et al. (2022), "EDM"."""
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import numerics
from diffusion.core.parameterization import Diffusion
from diffusion.errors import require
from diffusion.samplers.base import Solver
from diffusion.typing import Array, Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    """EDM, Algorithm 2 (with churn = 0 Algorithm 1), on any process, which provides schedule and scaling (Eq. 4).

    order 1 is Euler's method. fraction: alpha of Algorithm 3, the position in the step of the second slope: 1 Heun, 1/2
    the midpoint, 2/3 Ralston. Before each step whose noise level lies within [churn_min, churn_max], that level is
    raised by the factor 1 + min(churn, sqrt(2) - 1), with new noise of standard deviation `churn_noise` (S_noise);
    churn is the paper's S_churn / number of steps.

    At t_next = 0 the step returns the denoiser's x_0. The authors' code takes an Euler step instead (`euler_to_zero`):
    the same for sigma = t, but with other schedules it leaves part of the smallest noise.
    """
    order: Literal[1, 2] = 2
    fraction: float = 1.0
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = float("inf")
    churn_noise: float = 1.0
    euler_to_zero: bool = False
    between_times = True

    @property
    def once_a_step(self) -> bool:
        return self.order == 1

    @property
    def correctable(self) -> bool:
        return self.order == 1

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion.process, diffusion.denoise
        t = jnp.asarray(t, float)
        t_next = jnp.asarray(t_next, float)
        if self.churn > 0:
            x, t = self.add_noise(x, t, diffusion, keys)

        def slope(x, t):
            x0, eps, _ = denoise(x, t, cond)
            return x0, process.velocity(x0, eps, t)

        h = t_next - t
        x0, first = slope(x, t)

        def second(x):
            middle = t + self.fraction * h
            other = slope(x + self.fraction * h * first, middle)[1]
            return x + h * ((1 - 0.5 / self.fraction) * first + 0.5 / self.fraction * other)

        x_euler = x + h * first
        if self.order == 1:
            x_next = x_euler
        else:
            x_next = jax.lax.cond(t_next > 0, second, lambda x: x_euler, x)
        return carry, x_next if self.euler_to_zero else jnp.where(t_next > 0, x_next, x0)

    def add_noise(self, x: Image, t: Array, diffusion: Diffusion, keys: Keys) -> tuple[Image, Array]:
        """Lines 4-6 of Algorithm 2: x at the time of a higher noise level."""
        process, level = diffusion.process, diffusion.process.noise_level(t)
        within = (self.churn_min <= level) & (level <= self.churn_max) & jnp.isfinite(level)
        factor = 1 + jnp.where(within, min(self.churn, 2**0.5 - 1), 0)
        raised = jnp.where(within, process.time_of_log_snr(process.log_snr(t) - 2 * jnp.log(factor)), t)
        reached = process.noise_level(raised) / jnp.where(within, level, 1)  # smaller where the process ends first
        level, factor = jnp.where(within, level, 0), jnp.clip(jnp.where(within, reached, 1), 1, factor)
        std = level * jnp.sqrt(factor**2 - 1) * self.churn_noise
        z = numerics.normal(keys, x.shape[1:], x.dtype)
        return jnp.where(within, process.alpha(raised) * (x / process.alpha(t) + std * z), x), raised

    def evaluations(self, steps: np.ndarray, carry) -> float:
        return len(steps) + (int(np.sum(steps[:, 1] > 0)) if self.order == 2 else 0)


def euler(*, steps: int,
          churn: float = 0.0,               # S_churn (Karras et al. 2022, Algorithm 2)
          churn_min: float = 0.0,           # S_tmin, the smallest noise level with churn
          churn_max: float = float("inf"),  # S_tmax, the largest noise level with churn
          churn_noise: float = 1.0,         # S_noise, the standard deviation of churn's noise
          euler_to_zero: bool = False,      # make the last step Euler's, as in EDM's code, instead of returning x0
          ) -> Heun:
    """Euler's method on the probability-flow ODE (Karras et al. 2022)."""
    return _heun(1, steps, churn, churn_min=churn_min, churn_max=churn_max, churn_noise=churn_noise,
                 euler_to_zero=euler_to_zero)


def heun(*, steps: int,
         heun_fraction: float = 1.0,        # position of the second slope in a step: Heun 1, midpoint 1/2, Ralston 2/3
         churn: float = 0.0, churn_min: float = 0.0, churn_max: float = float("inf"), churn_noise: float = 1.0,
         euler_to_zero: bool = False) -> Heun:
    """Heun's method, and others of order 2, on the probability-flow ODE (Karras et al. 2022, Algorithms 2-3)."""
    require(0 < heun_fraction <= 1, "heun_fraction", heun_fraction, "must lie in (0, 1]: 1 is Heun's method, 1/2 the "
            "midpoint, 2/3 Ralston's (Karras et al. 2022, Algorithm 3).")
    return _heun(2, steps, churn, fraction=heun_fraction, churn_min=churn_min, churn_max=churn_max,
                 churn_noise=churn_noise, euler_to_zero=euler_to_zero)


def _heun(order: Literal[1, 2], steps: int, churn: float, **settings) -> Heun:
    require(churn >= 0, "churn", churn, "must not be negative (Karras et al. 2022, S_churn: 0 .. 80).")
    return Heun(order=order, churn=churn / steps, **settings)


SOLVERS = {"euler": euler, "heun": heun}
