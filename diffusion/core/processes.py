"""The forward (noising) process: x_t = alpha(t) x_0 + sigma(t) eps, eps ~ N(0, I).

A process is the two functions alpha and sigma of t, from t = 0 (clean data) to t = t_max (noise). Everything else is
derived from them here, once. Notation of Kingma et al. (2021), "Variational Diffusion Models" (VDM).

Time is a float, or an integer in the tables of a DiscreteProcess. t = 0 is the clean data for every process: one whose
noise starts above zero (a VE SDE, VDM's) jumps to it from t_min, the smallest time that its network is trained at.
"""
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.numerics import expand
from diffusion.typing import Array, Image, Time


class Gaussian(NamedTuple):
    """A normal distribution with independent coordinates."""
    mean: Array      # [B, H, W, C]
    variance: Array  # broadcasts against the mean


class Process(ABC):
    """A Gaussian forward process. A subclass defines the attributes and the abstract methods; the rest is derived."""
    t_max: float  # the noisiest time, where sampling starts
    t_min: float  # the least noisy time the network is trained at; t = 0 is the data
    discrete = False  # whether the network is trained only at the integers t = 1 .. t_max
    trained_schedule: Any = None  # the `core.learned_schedule.LearnedSchedule` of the process, if it is learned
    c_noise_is_level = False  # whether c_noise is the noise level itself, which is positive
    equal_steps_to_data = False  # whether samplers' equal steps in t run down to t = 0 instead of `t_end`

    @property
    def t_end(self) -> float:
        """The default last noisy time of sampling: t_min, unless the paper has a larger one."""
        return self.t_min

    @abstractmethod
    def alpha(self, t: Time) -> Array:
        """The factor of x_0 in x_t, of the shape of t."""

    @abstractmethod
    def sigma(self, t: Time) -> Array:
        """The standard deviation of the noise in x_t, of the shape of t."""

    @abstractmethod
    def log_snr(self, t: Time) -> Array:
        """lambda(t) = log(alpha^2 / sigma^2), falling in t; +inf where sigma is 0."""

    @abstractmethod
    def c_noise(self, t: Time) -> Array:
        """The network's time input c_noise, float, of the shape of t."""

    @abstractmethod
    def time_of_log_snr(self, log_snr: Array) -> Array:
        """The inverse of log_snr: float t, of its shape, within [t_min, t_max]; 0 for +inf."""

    def prior_std(self, t: Time) -> Array:
        """The standard deviation of the x that samplers draw to start at the noisy time t."""
        return self.sigma(t)

    def noise_level(self, t: Time) -> Array:
        """sigma / alpha, which is sigma in Karras et al. (2022), "EDM", and e^(-lambda/2)."""
        return jnp.exp(-self.log_snr(t) / 2)

    def log_rates(self, t: Time) -> tuple[Array, Array]:
        """d log(alpha) / dt and d lambda / dt at float t > 0, of the shape of t."""
        t = jnp.asarray(t, float)
        along = lambda f: jax.jvp(f, (t,), (jnp.ones_like(t),))[1]  # noqa: E731
        return along(lambda t: jnp.log(self.alpha(t))), along(self.log_snr)

    def drift_and_diffusion(self, t: Time) -> tuple[Array, Array]:
        """f(t) and g(t) of the SDE dx = f x dt + g dw with these marginals (Song et al. 2021, "Score SDE", Eq. 5).

        f = d log(alpha) / dt and g^2 = -sigma^2 d lambda / dt (VDM, Appendix D), each of the shape of t.
        """
        drift, log_snr_rate = self.log_rates(t)
        return drift, self.sigma(t) * jnp.sqrt(-log_snr_rate)

    def velocity(self, x0: Image, eps: Image, t: Time) -> Image:
        """dx_t / dt = alpha' x_0 + sigma' eps: the probability-flow ODE, if x_0 and eps are predictions.

        Song et al. (2021), Eq. 13; for the flow process it is eps - x_0 (Liu et al. 2023, "Rectified flow").
        """
        alpha_rate, sigma_rate = self.alpha_sigma_derivatives(t)
        return expand(alpha_rate, x0) * x0 + expand(sigma_rate, x0) * eps

    def alpha_sigma_derivatives(self, t: Time) -> tuple[Array, Array]:
        """alpha'(t) and sigma'(t) at float t > 0."""
        t = jnp.asarray(t, float)
        return tuple(jax.jvp(f, (t,), (jnp.ones_like(t),))[1] for f in (self.alpha, self.sigma))

    def diffuse(self, x0: Image, t: Time, eps: Image) -> Image:
        """x_t = alpha x_0 + sigma eps (Ho et al. 2020, Eq. 4)."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps

    def noise_added_fraction(self, s: Time, t: Time) -> Array:
        """1 - SNR(t)/SNR(s) for s < t: the share of x_t's noise variance that was added between s and t.

        With this fraction f, sigma_{t|s}^2 = sigma_t^2 f, and the posterior variance is sigma_s^2 f (VDM, Eqs. 29-32).
        Computed by expm1 of the log-SNRs, since 1 - SNR/SNR cancels for neighbouring times.
        """
        return -jnp.expm1(self.log_snr(t) - self.log_snr(s))

    def posterior(self, x_t: Image, x0: Image, s: Time, t: Time) -> Gaussian:
        """q(x_s | x_t, x_0) for s < t (VDM, Eqs. 31-32; Ho et al. 2020, Eqs. 6-7 for s = t - 1)."""
        removed = self.noise_added_fraction(s, t)
        mean = expand(self.posterior_share_of_x_t(s, t), x_t) * x_t + expand(self.alpha(s) * removed, x_t) * x0
        return Gaussian(mean, expand(self.sigma(s)**2 * removed, x_t))

    def posterior_share_of_x_t(self, s: Time, t: Time) -> Array:
        """The coefficient of x_t in the mean of q(x_s | x_t, x_0)."""
        return self.alpha(t) / self.alpha(s) * (self.sigma(s) / self.sigma(t)) ** 2

    def posterior_coefficients(self, s: Time, t: Time) -> tuple[Array, Array]:
        """(a, b): the mean of q(x_s | x_t, x_0) is a x_0 + b eps."""
        of_x_t = self.posterior_share_of_x_t(s, t)
        return self.alpha(s) * self.noise_added_fraction(s, t) + of_x_t * self.alpha(t), of_x_t * self.sigma(t)


@dataclass(frozen=True, kw_only=True, eq=False)
class DiscreteProcess(Process):
    """The Markov chain of Ho et al. (2020), given by its table of betas; t is an integer in 0..T, 0 the clean data.

    alpha(t)^2 is exactly the paper's cumulative product alpha_bar_t. The tables are float64 on the host, and each is
    cast separately to the working precision: sigma is not computed as sqrt(1 - alpha^2) in float32. At a float t in [1,
    T] the log-SNR is interpolated linearly between its neighbours, and alpha and sigma follow from it: a
    continuous-time view of the chain, as in k-diffusion. A float t in (0, 1) counts as 1, and 0 is the data. If alpha
    is 0 at T, the log-SNR is infinite at T, and alpha is interpolated on the last interval instead.
    """
    betas: np.ndarray  # float64 [T], in (0, 1); the last may be 1: zero terminal SNR (Lin et al. 2024)
    c_noise_scale: float = 1.0
    t_min = 1
    discrete = True

    def __post_init__(self):
        betas = np.asarray(self.betas, np.float64)
        if betas.ndim != 1 or not len(betas) or not (np.all(betas > 0) and np.all(betas[:-1] < 1) and betas[-1] <= 1):
            raise ValueError(f"betas must be a table of numbers in (0, 1), got shape {betas.shape} in "
                             f"[{betas.min(initial=np.inf)}, {betas.max(initial=-np.inf)}]")
        with np.errstate(divide="ignore"):  # log SNR is +inf at t = 0, and -inf where alpha is 0
            log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
            variance = -np.expm1(log_alpha_bar)
            log_snr = log_alpha_bar - np.log(variance)
        tables = {"_alpha": np.exp(log_alpha_bar / 2), "_sigma": np.sqrt(variance), "_log_snr": log_snr}
        for name, table in tables.items():
            object.__setattr__(self, name, table)

    @property
    def t_max(self) -> int:
        return len(self.betas)

    def prior_std(self, t: Time) -> Array:
        """1: N(0, I), though sigma(T) is slightly smaller (Ho et al. 2020, Algorithm 2, line 1)."""
        return jnp.ones_like(t, float)

    def alpha(self, t: Time) -> Array:
        if _is_integer(t):
            return jnp.asarray(self._alpha, float)[t]
        return self._with_last_piece(t, lambda log_snr: jnp.sqrt(jax.nn.sigmoid(log_snr)), lambda alpha: alpha)

    def sigma(self, t: Time) -> Array:
        if _is_integer(t):
            return jnp.asarray(self._sigma, float)[t]
        return self._with_last_piece(t, lambda log_snr: jnp.sqrt(jax.nn.sigmoid(-log_snr)),
                                     lambda alpha: jnp.sqrt(1 - alpha**2))

    def log_snr(self, t: Time) -> Array:
        if _is_integer(t):
            return jnp.asarray(self._log_snr, float)[t]
        return self._with_last_piece(t, lambda log_snr: log_snr,
                                     lambda alpha: 2 * jnp.log(alpha) - jnp.log1p(-(alpha**2)))

    def time_of_log_snr(self, log_snr: Array) -> Array:
        log_snr, last = jnp.asarray(log_snr, float), self._last_finite()
        t = jnp.interp(-log_snr, -jnp.asarray(self._log_snr[1:last + 1], float), jnp.arange(1, last + 1, dtype=float))
        if last < self.t_max:
            on_last = self.t_max - jnp.sqrt(jax.nn.sigmoid(log_snr)) / self._alpha[last]
            t = jnp.where(log_snr < self._log_snr[last], on_last, t)
        return jnp.where(jnp.isposinf(log_snr), 0, t)

    def _last_finite(self) -> int:
        """The last time with alpha > 0: T, or T - 1 if alpha is 0 at T."""
        return self.t_max - int(np.isneginf(self._log_snr[-1]) and self.t_max > 1)

    def _with_last_piece(self, t: Array, of_log_snr: Callable, of_alpha: Callable) -> Array:
        """At float t: `of_log_snr` of the interpolated log-SNR or, on a last interval with infinite log-SNR, `of_alpha`
        of the interpolated alpha. The derivative at a whole t, which `log_rates` takes, must be that of the interval
        above."""
        table, last = jnp.asarray(self._log_snr, float), self._last_finite()
        below = jnp.clip(jnp.floor(t), 1, max(last - 1, 1)).astype(int)
        share = jnp.where(t >= 1, t - below, 0)
        if last < self.t_max:  # unused beyond `last`, but must be finite
            share = jnp.minimum(share, 1)
        step = table[jnp.minimum(below + 1, last)] - table[below]
        value = of_log_snr(jnp.where(t > 0, table[below] + share * step, jnp.inf))
        if last == self.t_max:
            return value
        return jnp.where(t >= last, of_alpha(self._alpha[last] * (self.t_max - jnp.maximum(t, last))), value)

    def c_noise(self, t: Time) -> Array:
        """t - 1: the papers' code counts the T noisy steps from 0, as published weights expect.

        Multiplied by c_noise_scale, 1000 / T in improved-diffusion: networks for T = 4000 then see the times of T =
        1000.
        """
        return jnp.asarray(t - 1, float) * self.c_noise_scale


def _is_integer(t: Time) -> bool:
    return jnp.issubdtype(jnp.asarray(t).dtype, jnp.integer)
