"""The forward (noising) process: x_t = alpha(t) x_0 + sigma(t) eps, eps ~ N(0, I).

A process is the two functions alpha and sigma of t, from t = 0 (clean data) to t = t_max (noise). Everything else is
derived from them here, once. Notation of Kingma et al. (2021), "Variational Diffusion Models" (VDM).
"""
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion.core.numerics import expand
from diffusion.typing import Array, Image, Time


class Gaussian(NamedTuple):
    """A normal distribution with independent coordinates."""
    mean: Array      # [B, H, W, C]
    variance: Array  # broadcasts against the mean


class Process(ABC):
    """A Gaussian forward process. A member gives the attributes and the abstract functions; the rest follows."""
    t_max: float        # where the noise ends and sampling starts
    prior_std: float    # of x at t_max, as samplers draw it

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
    def label(self, t: Time) -> Array:
        """c_noise: what the network is told of t, float, of the shape of t."""

    def diffuse(self, x0: Image, t: Time, eps: Image) -> Image:
        """x_t = alpha x_0 + sigma eps (Ho et al. 2020, Eq. 4)."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps

    def removed(self, s: Time, t: Time) -> Array:
        """1 - SNR(t)/SNR(s) for s < t: the share of x_t's noise variance that was added between s and t.

        sigma_{t|s}^2 = sigma_t^2 * removed and the posterior variance is sigma_s^2 * removed (VDM, Eqs. 29-32). By
        expm1 of the log-SNRs, since 1 - SNR/SNR cancels for neighbouring times.
        """
        return -jnp.expm1(self.log_snr(t) - self.log_snr(s))

    def posterior(self, x_t: Image, x0: Image, s: Time, t: Time) -> Gaussian:
        """q(x_s | x_t, x_0) for s < t (VDM, Eqs. 31-32; Ho et al. 2020, Eqs. 6-7 for s = t - 1)."""
        removed = self.removed(s, t)
        sigma_s = self.sigma(s)
        from_x_t = self.alpha(t) / self.alpha(s) * (sigma_s / self.sigma(t)) ** 2
        mean = expand(from_x_t, x_t) * x_t + expand(self.alpha(s) * removed, x_t) * x0
        return Gaussian(mean, expand(sigma_s**2 * removed, x_t))


@dataclass(frozen=True, kw_only=True, eq=False)
class DiscreteProcess(Process):
    """The Markov chain of Ho et al. (2020), given by its table of betas; t is an integer in 0..T, 0 the clean data.

    alpha(t)^2 is exactly the paper's cumulative product alpha_bar_t. The tables are float64 on the host and take the
    working precision where they are used, each from its own float64 value: sigma is not sqrt(1 - alpha^2) in float32.
    """
    betas: np.ndarray  # float64 [T], in (0, 1); the last may be 1: zero terminal SNR (Lin et al. 2024)
    label_scale: float = 1.0
    prior_std = 1.0    # N(0, I), though sigma(T) is a little less (Ho et al. 2020, Algorithm 2, line 1)

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

    def alpha(self, t: Time) -> Array:
        return jnp.asarray(self._alpha, float)[t]

    def sigma(self, t: Time) -> Array:
        return jnp.asarray(self._sigma, float)[t]

    def log_snr(self, t: Time) -> Array:
        return jnp.asarray(self._log_snr, float)[t]

    def label(self, t: Time) -> Array:
        """t - 1: the papers' code counts the T noisy steps from 0, and published weights expect that.

        Times label_scale, which is 1000 / T in improved-diffusion: networks for T = 4000 then see the times of T =
        1000.
        """
        return jnp.asarray(t - 1, float) * self.label_scale
