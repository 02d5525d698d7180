"""Processes in continuous time, each with its paper's alpha and sigma.

Variance-preserving processes are defined by their log-SNR only: alpha^2 = sigmoid(lambda), sigma^2 = sigmoid(-lambda).
"""
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from diffusion.core.processes import Process
from diffusion.errors import require
from diffusion.typing import Array, Time


def _check_t_min(t_min: float) -> None:
    require(0 < t_min < 1, "t_min", t_min, "must lie in (0, 1) (Song et al. 2021: 1e-5).")


def _check_shift(shift: float) -> None:
    require(shift > 0, "shift", shift, "must be positive; 1 is no shift (Hoogeboom et al. 2023: 64 / resolution; "
            "Esser et al. 2024: 3).")


def _check_levels(sigma_min: float, sigma_max: float) -> None:
    require(0 < sigma_min < sigma_max, "sigma_min", sigma_min, f"must be positive and below sigma_max = {sigma_max!r} "
            "(Karras et al. 2022: 0.002 and 80; Song et al. 2021, VE: 0.02 and 100 for data in [-1, 1]).")


def _noisy(t: Time, value: Array, clean: float) -> Array:
    """`value` where t > 0, and `clean` at t = 0 (the data)."""
    return jnp.where(t > 0, value, clean)


@dataclass(frozen=True, kw_only=True)
class VariancePreserving(Process):
    """alpha^2 + sigma^2 = 1, t in (0, 1]. A subclass defines `noisy_log_snr`, t > 0, and its inverse."""
    t_max = 1.0

    @abstractmethod
    def noisy_log_snr(self, t: Time) -> Array:
        """lambda(t) for t > 0."""

    def log_snr(self, t: Time) -> Array:
        return _noisy(t, self.noisy_log_snr(jnp.where(t > 0, t, self.t_max)), jnp.inf)

    def alpha(self, t: Time) -> Array:
        return jnp.sqrt(jax.nn.sigmoid(self.log_snr(t)))

    def sigma(self, t: Time) -> Array:
        return jnp.sqrt(jax.nn.sigmoid(-self.log_snr(t)))

    def prior_std(self, t: Time) -> Array:
        """1: x_t has variance 1 when the data have variance 1."""
        return jnp.ones_like(t, float)

    def c_noise(self, t: Time) -> Array:
        """999 t (Song et al. 2021, code): the range of the discrete papers' labels."""
        return 999.0 * jnp.asarray(t, float)


@dataclass(frozen=True, kw_only=True)
class VP(VariancePreserving):
    """The VP SDE, dx = -beta/2 x dt + sqrt(beta) dw, beta(t) = beta_min + t (beta_max - beta_min).

    Song et al. (2021), "Score SDE", Eqs. 11 and 32-33.
    """
    beta_min: float = 0.1    # beta(0)
    beta_max: float = 20.0   # beta(1)
    t_min: float = 1e-5      # the least noisy time the network is trained at; t = 0 is the data

    def __post_init__(self):
        _check_t_min(self.t_min)
        require(0 < self.beta_min < self.beta_max, "beta_min", self.beta_min, "must be positive and below beta_max = "
                f"{self.beta_max!r} (Song et al. 2021: 0.1 and 20).")

    @property
    def t_end(self) -> float:
        """1e-3, where Song et al. (2021, code: run_lib.py, sampling_eps) end both SDEs; they train down to 1e-5."""
        return max(self.t_min, 1e-3)

    def integral(self, t: Time) -> Array:
        """B(t), the integral of beta from 0 to t: alpha^2 = e^-B."""
        return t * self.beta_min + t**2 * (self.beta_max - self.beta_min) / 2

    def noisy_log_snr(self, t: Time) -> Array:
        return -jnp.log(jnp.expm1(self.integral(t)))

    def time_of_log_snr(self, log_snr: Array) -> Array:
        return _time_of_integral(self, jax.nn.softplus(-jnp.asarray(log_snr, float)))


@dataclass(frozen=True, kw_only=True)
class SubVP(VP):
    """The sub-VP SDE: alpha is the VP SDE's, and sigma = 1 - alpha^2, the VP SDE's variance (Song et al. 2021, Eqs. 33
    and 35)."""

    def noisy_log_snr(self, t: Time) -> Array:
        b = self.integral(t)
        return -b - 2 * jnp.log(-jnp.expm1(-b))

    def alpha(self, t: Time) -> Array:
        return jnp.exp(-self.integral(jnp.asarray(t, float)) / 2)

    def sigma(self, t: Time) -> Array:
        return -jnp.expm1(-self.integral(jnp.asarray(t, float)))

    def time_of_log_snr(self, log_snr: Array) -> Array:
        # With a = alpha: a / (1 - a^2) = e^(lambda/2) =: 1/n, so a^2 + n a - 1 = 0.
        n = jnp.exp(-jnp.asarray(log_snr, float) / 2)
        return _time_of_integral(self, 2 * jnp.arcsinh(n / 2))


def _time_of_integral(process: VP, b: Array) -> Array:
    """The t at which VP.integral is b: a root of a quadratic, in the form that does not cancel."""
    slope = process.beta_max - process.beta_min
    return 2 * b / (process.beta_min + jnp.sqrt(process.beta_min**2 + 2 * slope * b))


@dataclass(frozen=True, kw_only=True)
class Cosine(VariancePreserving):
    """lambda = -2 log tan(pi t / 2) + 2 log(shift), t rescaled to keep the first term in log_snr_min .. log_snr_max.

    Salimans & Ho (2022), Section 4 and code (+-20): without shift and rescaling, alpha = cos(pi t / 2). The shift is
    for images larger than the schedule was tuned for: Hoogeboom et al. (2023), "simple diffusion", Eq. 5, 64 /
    resolution (with +-15, before the shift).
    """
    shift: float = 1.0          # shifts lambda towards noise, for large images; 1: no shift
    log_snr_min: float = -20.0  # at t = 1
    log_snr_max: float = 20.0   # at t = 0
    t_min = 0.0  # `noisy_log_snr` is finite at 0

    def __post_init__(self):
        _check_shift(self.shift)
        require(self.log_snr_min < self.log_snr_max, "log_snr_min", self.log_snr_min, "must be below log_snr_max = "
                f"{self.log_snr_max!r} (Salimans & Ho 2022: -20 and 20; Hoogeboom et al. 2023: -15 and 15).")

    def _ends(self) -> tuple[float, float]:
        """The angle at t = 0, and pi/2 minus the angle at t = 1."""
        return math.atan(math.exp(-self.log_snr_max / 2)), math.atan(math.exp(self.log_snr_min / 2))

    def noisy_log_snr(self, t: Time) -> Array:
        low, high = self._ends()
        span = math.pi / 2 - high - low
        # Measured from the nearer end, where the tangent keeps its precision.
        base = jnp.where(t < 0.5, -jnp.log(jnp.tan(low + span * t)), jnp.log(jnp.tan(high + span * (1 - t))))
        return 2 * (base + math.log(self.shift))

    def time_of_log_snr(self, log_snr: Array) -> Array:
        low, high = self._ends()
        angle = jnp.arctan(jnp.exp(-jnp.asarray(log_snr, float) / 2 + math.log(self.shift)))
        return jnp.where(jnp.isposinf(log_snr), 0, jnp.clip((angle - low) / (math.pi / 2 - high - low), 0, 1))


@dataclass(frozen=True, kw_only=True)
class Laplace(VariancePreserving):
    """lambda is Laplace-distributed for uniform t.

    Hang et al. (2024), "Improved Noise Schedule for Diffusion Training", Table 1: lambda = mu - b sgn(1/2 - t) log(1 -
    2 |t - 1/2|); t is kept 1e-6 from the ends, where lambda is infinite.
    """
    log_snr_mean: float = 0.0   # mu, the mean of lambda for uniform t
    log_snr_scale: float = 0.5  # b, the scale of lambda for uniform t
    t_min: float = 1e-3

    def __post_init__(self):
        _check_t_min(self.t_min)
        require(self.log_snr_scale > 0, "log_snr_scale", self.log_snr_scale, "must be positive (Hang et al. 2024: "
                "0.5).")

    def noisy_log_snr(self, t: Time) -> Array:
        t = jnp.clip(jnp.asarray(t, float), 1e-6, 1 - 1e-6)
        # log(1 - 2 |t - 1/2|) from the nearer end, where it keeps its precision.
        near = jnp.minimum(t, 1 - t)
        return self.log_snr_mean - self.log_snr_scale * jnp.sign(0.5 - t) * jnp.log(2 * near)

    def time_of_log_snr(self, log_snr: Array) -> Array:
        y = (jnp.asarray(log_snr, float) - self.log_snr_mean) / self.log_snr_scale
        half = jnp.exp(-jnp.abs(y)) / 2
        t = jnp.clip(jnp.where(y > 0, half, 1 - half), 1e-6, 1)
        return jnp.where(jnp.isposinf(log_snr), 0, t)


@dataclass(frozen=True, kw_only=True)
class VarianceExploding(Process):
    """alpha = 1, sigma = t^power between sigma_min and sigma_max, t = sigma_min^(1/power) .. sigma_max^(1/power).

    power = 1 is EDM's process, sigma = t; power = 1/2 is the VE column of its Table 1 (Karras et al. 2022).
    """
    power: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        _check_levels(self.sigma_min, self.sigma_max)

    @property
    def t_min(self) -> float:
        return self.sigma_min ** (1 / self.power)

    @property
    def t_max(self) -> float:
        return self.sigma_max ** (1 / self.power)

    def alpha(self, t: Time) -> Array:
        return jnp.ones_like(t, float)

    def sigma(self, t: Time) -> Array:
        return jnp.asarray(t, float) ** self.power

    def log_snr(self, t: Time) -> Array:
        return -2 * self.power * jnp.log(jnp.asarray(t, float))

    def time_of_log_snr(self, log_snr: Array) -> Array:
        return jnp.exp(-jnp.asarray(log_snr, float) / (2 * self.power))

    def c_noise(self, t: Time) -> Array:
        """ln(sigma) / 4 (Karras et al. 2022, Table 1, c_noise)."""
        return jnp.log(self.sigma(t)) / 4


@dataclass(frozen=True, kw_only=True)
class VE(Process):
    """The VE SDE, alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t, t in (0, 1]; 0 is the data.

    Song et al. (2021), "Score SDE", Eqs. 9 and 30-31. Their 0.01 and 50 are for data in [0, 1] (code,
    configs/default_cifar10_configs.py); both double for data in [-1, 1] (Karras et al. 2022, code, VELoss).
    """
    sigma_min: float = 0.02
    sigma_max: float = 100.0
    t_min: float = 1e-5
    t_max = 1.0
    c_noise_is_level = True

    def __post_init__(self):
        _check_t_min(self.t_min)
        _check_levels(self.sigma_min, self.sigma_max)

    def alpha(self, t: Time) -> Array:
        return jnp.ones_like(t, float)

    def sigma(self, t: Time) -> Array:
        return _noisy(t, self.sigma_min * jnp.exp(jnp.asarray(t, float) * math.log(self.sigma_max / self.sigma_min)), 0)

    def log_snr(self, t: Time) -> Array:
        level = math.log(self.sigma_min) + jnp.asarray(t, float) * math.log(self.sigma_max / self.sigma_min)
        return _noisy(t, -2 * level, jnp.inf)

    def time_of_log_snr(self, log_snr: Array) -> Array:
        t = (-jnp.asarray(log_snr, float) / 2 - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)
        return jnp.clip(jnp.where(jnp.isposinf(log_snr), 0, t), 0, 1)

    def c_noise(self, t: Time) -> Array:
        """sigma; the Fourier embedding takes its logarithm (Song et al. 2021, code)."""
        return self.sigma(t)


@dataclass(frozen=True, kw_only=True)
class Flow(Process):
    """alpha = 1 - s, sigma = noise_scale s, s = shift t / (1 + (shift - 1) t), t in [0, 1]: flow matching on straight
    lines.

    Lipman et al. (2023); Liu et al. (2023), "Rectified flow"; Ma et al. (2024), "SiT", whose time runs the other way.
    The shift for other resolutions is Esser et al. (2024), "Stable Diffusion 3", Eq. 23. The scale of the noise for
    larger images is Li & He (2025), "JiT", Appendix A: the resolution / 256.
    """
    shift: float = 1.0
    noise_scale: float = 1.0  # the standard deviation of the noise that x is at t = 1
    network_time: Literal["noise", "data"] = "noise"  # the time that the network sees: noise, 1000 (1 - alpha) (Esser
                              # et al. 2024, code); data, alpha, from 0 for noise to 1 (Ma et al. 2024; Li & He 2025)
    t_min: float = 1e-3
    t_max: float = 1.0        # below 1 some data remain, so that eps can be predicted (Ma et al. 2024, code: 0.999)
    equal_steps_to_data = True  # 1, 1 - 1/N .. 1/N, 0 (Esser et al. 2024, code)

    def __post_init__(self):
        _check_t_min(self.t_min)
        _check_shift(self.shift)
        require(self.noise_scale > 0, "noise_scale", self.noise_scale, "must be positive; 1 is no scale (Li & He 2025: "
                "resolution / 256).")
        require(self.t_min < self.t_max <= 1, "t_max", self.t_max, f"must be above t_min = {self.t_min!r}, and at most "
                "1, which is noise alone.")

    def alpha(self, t: Time) -> Array:
        t = jnp.asarray(t, float)
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Time) -> Array:
        return self.noise_scale * self._noise_share(t)

    def log_snr(self, t: Time) -> Array:
        t = jnp.asarray(t, float)
        return 2 * (jnp.log1p(-t) - jnp.log(t) - math.log(self.shift * self.noise_scale))

    def time_of_log_snr(self, log_snr: Array) -> Array:
        return jax.nn.sigmoid(-jnp.asarray(log_snr, float) / 2 - math.log(self.shift * self.noise_scale))

    def c_noise(self, t: Time) -> Array:
        """1000 (1 - alpha), the range of the discrete papers' labels, or alpha."""
        return 1000 * self._noise_share(t) if self.network_time == "noise" else self.alpha(t)

    def _noise_share(self, t: Time) -> Array:
        """1 - alpha, without cancellation."""
        t = jnp.asarray(t, float)
        return self.shift * t / (1 + (self.shift - 1) * t)


def edm(*,
        sigma_min: float = 0.002,  # the smallest noise level
        sigma_max: float = 80.0,   # the largest noise level
        ) -> VarianceExploding:
    """EDM's process, sigma = t (Karras et al. 2022)."""
    return VarianceExploding(sigma_min=sigma_min, sigma_max=sigma_max)


TABULATED = {"vp": VP, "shifted_cosine": Cosine, "laplace": Laplace}  # whose marginals a chain of betas can take
PROCESSES = {**TABULATED, "sub_vp": SubVP, "ve": VE, "edm": edm, "flow": Flow}
