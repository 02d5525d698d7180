"""Densities p(t) of the training times, given by their quantile functions, u in [0, 1) -> t.

The u are drawn separately: independently, or stratified over the whole batch.
"""
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from diffusion.core.processes import Process
from diffusion.errors import require
from diffusion.typing import Array, Keys

_RESOLUTION = 2**23  # uniform float32 numbers are multiples of 1 / this


class Times(NamedTuple):
    """Times drawn for a batch: E_p[f(t)] is the mean of importance * f(t)."""
    t: Array                         # [B]
    p: Array                         # [B], the objective's density per unit of t; for integer t a probability
    importance: Array | float = 1.0  # [B], p divided by the probability of drawing t
    r: Array | None = None           # [B], the second time of a method that has two, r <= t

    def log_snr_density(self, process: Process) -> Array:
        """p(lambda) = p(t) / |d lambda / dt|, [B]; between the times of a chain lambda is linear."""
        return self.p / jnp.abs(process.log_rates(jnp.asarray(self.t, float))[1])


class TimeDensity(ABC):
    """One way to draw times. Members are frozen dataclasses of their settings."""
    of_chain: bool | None = None  # True: draws integer times; False: real times; None: those of the process
    uniforms = 1                  # how many uniform numbers an example's times need

    def init(self) -> Any:
        """The initial state of a density that learns from the losses: a pytree, () if it learns nothing."""
        return ()

    @abstractmethod
    def draw(self, u: Array, process: Process, state: Any = (), step: Array | int = 0) -> Times:
        """Times [B] of u [B, uniforms] in [0, 1): row i is a function of u[i], the state and the training step only."""

    def update(self, state: Any, t: Array, loss: Array) -> Any:
        """The state after a step with the losses `loss` [B], without importance weights, at the times t [B]."""
        return state


def independent(keys: Keys, count: int = 1) -> Array:
    """u [B, count], row i a function of keys[i] only."""
    first = jax.vmap(lambda key: jax.random.uniform(key))(keys)[:, None]
    if count == 1:
        return first
    others = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (count - 1,)))(keys)
    return jnp.concatenate([first, others], axis=1)


def stratified(key: Array, positions: Array, size: int) -> Array:
    """u_i = (u_0 + i / size) mod 1 [B, 1] for the positions i [B] in a batch of `size`, all with the same u_0, drawn by
    `key`.

    Each u_i is uniform and the batch covers [0, 1) evenly, which lowers the variance of the loss (Kingma et al. 2021,
    VDM, Appendix I.1).
    """
    return ((jax.random.uniform(key) + positions / size) % 1)[:, None]


@dataclass(frozen=True, kw_only=True)
class UniformDiscrete(TimeDensity):
    """Uniform over the integers 1..T (Ho et al. 2020, Algorithm 1)."""
    of_chain = True

    def draw(self, u: Array, process: Process, state: Any = (), step: Array | int = 0) -> Times:
        t = jnp.minimum(1 + jnp.floor(u[:, 0] * process.t_max).astype(jnp.int32), process.t_max)
        return Times(t, jnp.full(t.shape, 1 / process.t_max))


@dataclass(frozen=True, kw_only=True)
class Importance(TimeDensity):
    """The integers 1..T drawn in proportion to sqrt(E[L_t^2]), for the mean over uniform t (importance 1 / (p_t T)).

    Nichol & Dhariwal (2021), Section 3.3: the last `history` losses of each t are kept, draws are uniform until every t
    has that many, and afterwards a share `uniform` of them is.
    """
    steps: int               # T
    history: int = 10
    uniform: float = 0.001
    of_chain = True

    def init(self) -> dict[str, Array]:
        return {"losses": jnp.zeros((self.steps, self.history)), "counts": jnp.zeros(self.steps, jnp.int32)}

    def probabilities(self, state: dict[str, Array]) -> Array:
        """[T], of t = 1..T."""
        moment = jnp.sqrt(jnp.mean(state["losses"] ** 2, axis=1))
        warm = jnp.all(state["counts"] >= self.history)
        learned = (1 - self.uniform) * moment / jnp.sum(jnp.where(warm, moment, 1)) + self.uniform / self.steps
        return jnp.where(warm, learned, 1 / self.steps)

    def draw(self, u: Array, process: Process, state: Any = (), step: Array | int = 0) -> Times:
        # Probabilities are whole multiples of u's resolution, at least one each, so that every t is drawn with exactly
        # the probability its importance assumes: a sum of 4000 float32 numbers could lose the smallest of them.
        p = self.probabilities(state)
        counts = 1 + jnp.floor(p * (_RESOLUTION - self.steps)).astype(jnp.int32)
        counts = counts.at[jnp.argmax(p)].add(_RESOLUTION - jnp.sum(counts, dtype=jnp.int32))
        place = jnp.floor(u[:, 0] * _RESOLUTION).astype(jnp.int32)
        index = jnp.searchsorted(jnp.cumsum(counts), place, side="right")
        drawn = counts[index] / _RESOLUTION
        return Times(index + 1, jnp.full(index.shape, 1 / self.steps), 1 / (drawn * self.steps))

    def update(self, state: Any, t: Array, loss: Array) -> Any:
        """Replaces the oldest losses by the newest, in row order for losses of the same t."""
        order = jnp.argsort(t, stable=True)
        t, loss = t[order] - 1, loss[order]
        first, end = (jnp.searchsorted(t, t, side=side) for side in ("left", "right"))
        rank = jnp.arange(len(t)) - first
        slot = (state["counts"][t] + rank) % self.history
        slot = jnp.where(rank >= end - first - self.history, slot, self.history)  # drops older losses
        counts, full = state["counts"].at[t].add(1), self.history
        return {"losses": state["losses"].at[t, slot].set(loss.astype(state["losses"].dtype), mode="drop"),
                # Above `history` only the remainder matters: the next slot.
                "counts": jnp.where(counts < full, counts, full + counts % full)}


@dataclass(frozen=True, kw_only=True)
class Uniform(TimeDensity):
    """Uniform over [t_min, t_max] (Song et al. 2021, "Score SDE", Eq. 7)."""
    of_chain = False

    def draw(self, u: Array, process: Process, state: Any = (), step: Array | int = 0) -> Times:
        return _along(process, _inside(u[:, 0]), 1.0)


@dataclass(frozen=True, kw_only=True)
class LogitNormal(TimeDensity):
    """logit(t) ~ N(mean, std^2) on the process's range of t (Esser et al. 2024, "Stable Diffusion 3", Eq. 19)."""
    mean: float = 0.0
    std: float = 1.0
    of_chain = False

    def draw(self, u: Array, process: Process, state: Any = (), step: Array | int = 0) -> Times:
        z = ndtri(_inside(u[:, 0]))
        logit = self.mean + self.std * z
        slope = self.std * jax.nn.sigmoid(logit) * jax.nn.sigmoid(-logit)  # d t / d z
        return _along(process, jax.nn.sigmoid(logit), _normal_density(z) / slope)


@dataclass(frozen=True, kw_only=True)
class Mode(TimeDensity):
    """t = 1 - u - scale (cos^2(pi u / 2) - 1 + u) on the process's range of t (Esser et al. 2024, Eq. 20).

    -1 <= scale <= 2 / (pi - 2): above 0 the middle is favoured, below 0 the ends; 0 is uniform.
    """
    scale: float = 1.29
    of_chain = False

    def draw(self, u: Array, process: Process, state: Any = (), step: Array | int = 0) -> Times:
        u = _inside(u[:, 0])
        t = 1 - u - self.scale * (jnp.cos(math.pi / 2 * u) ** 2 - 1 + u)
        return _along(process, t, 1 / (1 + self.scale - self.scale * math.pi / 2 * jnp.sin(math.pi * u)))


@dataclass(frozen=True, kw_only=True)
class LogNormal(TimeDensity):
    """ln(sigma / alpha) ~ N(mean, std^2), truncated to the process's levels (Karras et al. 2022, "EDM", Table 1)."""
    mean: float = -1.2
    std: float = 1.2
    of_chain = False

    def draw(self, u: Array, process: Process, state: Any = (), step: Array | int = 0) -> Times:
        low, high = (ndtr((-log_snr / 2 - self.mean) / self.std) for log_snr in _ends(process))
        z = ndtri(low + (high - low) * _inside(u[:, 0]))
        density = _normal_density(z) / (2 * self.std * (high - low))
        return _at_log_snr(process, -2 * (self.mean + self.std * z), density)


@dataclass(frozen=True, kw_only=True)
class CosineLogSnr(TimeDensity):
    """The log-SNR of the cosine schedule under uniform t: p(lambda) = sech(lambda / 2) / (2 pi), on any process.

    Nichol & Dhariwal (2021), Eq. 17; Kingma & Gao (2023), Table 1. Truncated to the process's log-SNRs.
    """
    of_chain = False

    def draw(self, u: Array, process: Process, state: Any = (), step: Array | int = 0) -> Times:
        low, high = (2 / math.pi * jnp.arctan(jnp.exp(-log_snr / 2)) for log_snr in _ends(process))
        log_snr = -2 * jnp.log(jnp.tan(math.pi / 2 * (low + (high - low) * _inside(u[:, 0]))))
        return _at_log_snr(process, log_snr, 1 / (2 * math.pi * jnp.cosh(log_snr / 2) * (high - low)))


def _inside(u: Array) -> Array:
    """u clipped away from 0 and 1, where normal quantiles and log-SNRs are infinite."""
    return jnp.clip(u, 0.5 / _RESOLUTION, 1 - 0.5 / _RESOLUTION)


def _normal_density(z: Array) -> Array:
    return jnp.exp(-z**2 / 2) / math.sqrt(2 * math.pi)


def clean_end(process: Process) -> Array:
    """The least noisy time: t_min, or just above 0 if t_min is 0 (the data)."""
    return jnp.asarray(process.t_min if process.t_min > 0 else 1e-7, float)


def _ends(process: Process) -> tuple[Array, Array]:
    """The log-SNRs at the clean and at the noisy end of the times."""
    return process.log_snr(clean_end(process)), process.log_snr(jnp.asarray(process.t_max, float))


def _along(process: Process, share: Array, density: Array | float) -> Times:
    """The time at a share [B] of the range of t; `density` is the share's."""
    span = process.t_max - process.t_min
    return Times(process.t_min + span * share, jnp.broadcast_to(density / span, share.shape))


def _at_log_snr(process: Process, log_snr: Array, density: Array) -> Times:
    """The time of a log-SNR [B]; `density` is p(lambda)."""
    t = process.time_of_log_snr(log_snr)
    return Times(t, density * jnp.abs(process.log_rates(t)[1]))


def uniform(*, process: Process) -> TimeDensity:
    """Uniform over the times of the process."""
    return UniformDiscrete() if process.discrete else Uniform()


def importance(*, process: Process) -> Importance:
    """Times in proportion to their recent losses (Nichol & Dhariwal 2021, Section 3.3)."""
    return Importance(steps=process.t_max)


def log_normal(*,
               density_mean: float = -1.2,  # P_mean: the mean of the log noise level, or of the logit of t
               density_std: float = 1.2,    # P_std: its standard deviation
               ) -> LogNormal:
    """A normal density of the log noise level (Karras et al. 2022)."""
    _check_std(density_std)
    return LogNormal(mean=density_mean, std=density_std)


def logit_normal(*, density_mean: float = 0.0, density_std: float = 1.0) -> LogitNormal:
    """A normal density of the logit of t (Esser et al. 2024)."""
    _check_std(density_std)
    return LogitNormal(mean=density_mean, std=density_std)


def mode(*,
         mode_scale: float = 1.29,  # s of Eq. 20
         ) -> Mode:
    """More times in the middle of the range, or at its ends (Esser et al. 2024)."""
    require(-1 <= mode_scale <= 2 / (math.pi - 2), "mode_scale", mode_scale, "must lie in [-1, 1.75], else the times "
            "do not rise with u (Esser et al. 2024, Eq. 20).")
    return Mode(scale=mode_scale)


def _check_std(std: float) -> None:
    require(std > 0, "density_std", std, "must be positive.")


DENSITIES = {"uniform": uniform, "importance": importance, "log_normal": log_normal, "logit_normal": logit_normal,
             "mode": mode, "cosine_log_snr": CosineLogSnr}
