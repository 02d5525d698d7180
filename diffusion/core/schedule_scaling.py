"""Noise level sigma(t) and scale s(t) to sample any model with, chosen separately: Karras et al. (2022), "EDM", Table
1.

x_t = s(t) (x_0 + sigma(t) eps): the paper's sigma is the noise level sigma / alpha here, and its s is alpha.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from diffusion.core.processes import Process
from diffusion.typing import Array, Time


@dataclass(frozen=True, kw_only=True)
class ScheduleScaling(Process):
    """schedule: linear, sigma = t; ve, sqrt(t); vp, sqrt(e^(beta_d t^2 / 2 + beta_min t) - 1) with the betas that make
    it sigma_min at t = epsilon and sigma_max at 1. scaling: none, s = 1; vp, s = 1 / sqrt(1 + sigma^2)."""
    schedule: Literal["linear", "ve", "vp"] = "linear"
    scaling: Literal["none", "vp"] = "none"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    epsilon: float = 1e-3

    @property
    def t_min(self) -> float:
        return {"linear": self.sigma_min, "ve": self.sigma_min**2, "vp": self.epsilon}[self.schedule]

    @property
    def t_max(self) -> float:
        return {"linear": self.sigma_max, "ve": self.sigma_max**2, "vp": 1.0}[self.schedule]

    def betas(self) -> tuple[float, float]:
        """beta_d and beta_min of the schedule vp."""
        low, high = math.log1p(self.sigma_min**2), math.log1p(self.sigma_max**2)
        beta_d = 2 * (low / self.epsilon - high) / (self.epsilon - 1)
        return beta_d, high - beta_d / 2

    def noise_level(self, t: Time) -> Array:
        t = jnp.asarray(t, float)
        if self.schedule == "vp":
            beta_d, beta_min = self.betas()
            # Kept off 0, where the root has no derivative; t = 0 is the data.
            square = jnp.expm1(beta_d * t**2 / 2 + beta_min * t)
            return jnp.sqrt(jnp.where(t > 0, square, 1.0)) * (t > 0)
        return jnp.sqrt(jnp.where(t > 0, t, 1.0)) * (t > 0) if self.schedule == "ve" else t

    def alpha(self, t: Time) -> Array:
        level = self.noise_level(t)
        return jnp.ones_like(level) if self.scaling == "none" else 1 / jnp.sqrt(1 + level**2)

    def sigma(self, t: Time) -> Array:
        return self.alpha(t) * self.noise_level(t)

    def log_snr(self, t: Time) -> Array:
        return -2 * jnp.log(self.noise_level(t))

    def time_of_log_snr(self, log_snr: Array) -> Array:
        level = jnp.exp(-jnp.asarray(log_snr, float) / 2)
        if self.schedule == "vp":
            beta_d, beta_min = self.betas()
            total = jnp.log1p(level**2)
            # The root of beta_d t^2 / 2 + beta_min t = total in the form that does not cancel.
            t = 2 * total / (beta_min + jnp.sqrt(beta_min**2 + 2 * beta_d * total))
        else:
            t = level**2 if self.schedule == "ve" else level
        return jnp.minimum(t, self.t_max)

    def c_noise(self, t: Time) -> Array:
        """ln(sigma) / 4. A model of another process keeps its own c_noise (`on_process`)."""
        return jnp.log(self.noise_level(t)) / 4


def _along(schedule: str) -> Callable[..., ScheduleScaling]:
    def member(*, low: float, high: float,
               scaling: Literal["none", "vp"] = "none",  # s(t) (Karras et al. 2022, Table 1)
               sigma_min: float = -1.0,  # the smallest noise level; -1: the model's
               sigma_max: float = -1.0,  # the largest noise level; -1: the model's
               ) -> ScheduleScaling:
        return ScheduleScaling(schedule=schedule, scaling=scaling, sigma_min=low, sigma_max=high)
    member.__doc__ = f"Another process of the same noise levels, with EDM's schedule sigma(t) = {schedule}."
    return member


# Members of sample.schedule. `low` and `high` are sigma_min and sigma_max within the model's noise levels.
SCHEDULES = {"model": None, **{name: _along(name) for name in ("linear", "vp", "ve")}}
