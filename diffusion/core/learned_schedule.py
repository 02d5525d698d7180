"""A noise schedule that is trained with the model: gamma(t) = -lambda(t) of VDM (Kingma et al. 2021), monotone."""
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from diffusion.core.continuous import VariancePreserving
from diffusion.errors import require
from diffusion.typing import Array, Time

_HALVINGS = 30  # of the interval of t, in the inverse


@dataclass(frozen=True, kw_only=True)
class LearnedSchedule:
    """gamma(t) = gamma_0 + (gamma_1 - gamma_0) s(t), s rising from s(0) = 0 to s(1) = 1 exactly.

    s is VDM's monotone network (its Appendix H), normalised here so that the ends stay fixed: a linear term plus
    `hidden` sigmoids, all weights positive. With `hidden` 0, s = t, their learned scalar schedule.
    """
    log_snr_min: float = -5.0    # -gamma_1, at the noisy end
    log_snr_max: float = 13.3    # -gamma_0
    hidden: int = 1024
    learned_ends: bool = False   # else they are fixed

    def __post_init__(self):
        require(self.hidden >= 0, "hidden", self.hidden, "must not be negative (Kingma et al. 2021: 1024; 0: a line).")
        require(self.log_snr_min < self.log_snr_max, "log_snr_min", self.log_snr_min, "must be below log_snr_max = "
                f"{self.log_snr_max!r} (Kingma et al. 2021: -5 and 13.3).")

    def init(self, key: Array) -> dict[str, Array]:
        """The parameters, stored next to the network's in params["schedule"]. The schedule starts almost linear."""
        params = {}
        if self.hidden:
            to, back = 0.01 * jax.random.normal(key, (2, self.hidden))
            params = {"slope": jnp.ones(()), "in": to, "bias": jnp.zeros(self.hidden), "out": back}
        if self.learned_ends:
            params |= {"gamma_0": jnp.full((), -self.log_snr_max),
                       "span": jnp.full((), self.log_snr_max - self.log_snr_min)}
        return params

    def process(self, params: dict[str, Array]) -> "LearnedProcess":
        return LearnedProcess(schedule=self, params=params)

    def share(self, params: dict[str, Array], t: Array) -> Array:
        """s(t)."""
        if not self.hidden:
            return t

        def rise(t):
            weights, bias = (params[name].reshape((1,) * t.ndim + (-1,)) for name in ("in", "bias"))
            units = jax.nn.sigmoid(jnp.abs(weights) * (2 * t[..., None] - 1) + bias)
            return jnp.abs(params["slope"]) * t + units @ jnp.abs(params["out"]) * (2 / self.hidden)
        ends = rise(jnp.array([0.0, 1.0], t.dtype))
        return (rise(t) - ends[0]) / (ends[1] - ends[0])

    def ends(self, params: dict[str, Array]) -> tuple[Array | float, Array | float]:
        """gamma_0 and gamma_1 - gamma_0."""
        if self.learned_ends:
            return params["gamma_0"], jnp.abs(params["span"])
        return -self.log_snr_max, self.log_snr_max - self.log_snr_min


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedProcess(VariancePreserving):
    """alpha^2 = sigmoid(-gamma(t)), sigma^2 = sigmoid(gamma(t)).

    Except in `log_density`, gradients reach only the ends of gamma: the bound does not depend on gamma's shape in
    between, which is trained to reduce the variance of the bound's estimate instead (VDM, Section 5).
    """
    schedule: LearnedSchedule
    params: Any
    t_min = 1e-6

    @property
    def trained_schedule(self) -> LearnedSchedule:
        return self.schedule

    def gamma(self, t: Array) -> Array:
        """-lambda(t)."""
        start, span = self.schedule.ends(self.params)
        return start + span * self.schedule.share(jax.lax.stop_gradient(self.params), t)

    def noisy_log_snr(self, t: Time) -> Array:
        return -self.gamma(jnp.asarray(t, float))

    def time_of_log_snr(self, log_snr: Array) -> Array:
        log_snr = jnp.asarray(log_snr, float)

        def halve(_, ends):
            middle = (ends[0] + ends[1]) / 2
            below = self.gamma(middle) < -log_snr
            return jnp.where(below, middle, ends[0]), jnp.where(below, ends[1], middle)
        low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(log_snr), jnp.ones_like(log_snr)))
        return jnp.where(jnp.isposinf(log_snr), 0, jnp.clip((low + high) / 2, self.t_min, self.t_max))

    def c_noise(self, t: Time) -> Array:
        """1000 (gamma - gamma_0) / (gamma_1 - gamma_0) with the initial ends (VDM, code)."""
        s = self.schedule
        return 1000 * (self.gamma(jnp.asarray(t, float)) + s.log_snr_max) / (s.log_snr_max - s.log_snr_min)

    def log_density(self, t: Array) -> Array:
        """log p(gamma) at gamma(t) for uniform t, as a function of the interior's parameters with gamma held fixed.

        p(gamma) = 1 / gamma'(t(gamma)). t(gamma) changes with the parameters, to first order by -dgamma / gamma'.
        """
        start, span = jax.lax.stop_gradient(self.schedule.ends(self.params))
        along = lambda t: jax.jvp(lambda t: start + span * self.schedule.share(self.params, t),  # noqa: E731
                                  (t,), (jnp.ones_like(t),))
        gamma, slope = along(t)
        held_gamma, held_slope = jax.lax.stop_gradient((gamma, slope))
        return -jnp.log(along(t - (gamma - held_gamma) / held_slope)[1])


def learned(*,
            log_snr_min: float = -5.0,
            log_snr_max: float = 13.3,
            hidden: int = 1024,         # width of the monotone network; 0: linear log-SNR between the ends
            learned_ends: bool = False,  # whether the ends are learned too
            ) -> LearnedProcess:
    """A noise schedule trained with the model, here at its start (Kingma et al. 2021)."""
    schedule = LearnedSchedule(log_snr_min=log_snr_min, log_snr_max=log_snr_max, hidden=hidden,
                               learned_ends=learned_ends)
    return schedule.process(schedule.init(jax.random.key(0)))


PROCESSES = {"learned": learned}
