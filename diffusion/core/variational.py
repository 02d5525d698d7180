"""The terms of the variational bound on -log p(x_0), in bits per dimension (Ho et al. 2020, Eq. 5).

Data are K evenly spaced levels in [-1, 1], 2 / (K - 1) apart: `levels` is K, 256 of a byte, 65,536 of 16-bit sound.
"""
import math
from typing import Literal

import jax
import jax.numpy as jnp

from diffusion.core.numerics import expand, mean_over
from diffusion.core.parameterization import Diffusion, Prediction
from diffusion.core.processes import Process
from diffusion.core.time_densities import clean_end
from diffusion.errors import require
from diffusion.typing import Array, Cond, Image, Time

Variance = Literal["small", "large", "learned_range"] | float

BYTE = 256
_LEAST_LOG_PROBABILITY = math.log(1e-12)  # of a level, as in the code of Ho et al. and Nichol & Dhariwal


def variance_of(name: Literal["small", "large", "learned_range", "mixed"], share: float) -> Variance:
    """The Variance of a name; "mixed" is the share of the large one. Raises FieldError for a share outside [0, 1]."""
    require(0 <= share <= 1, "variance_share", share, "must lie in [0, 1]: 0 is the small variance, 1 the large one "
            "(Hoogeboom et al. 2023: 0.2; Ho & Salimans 2022: 0.3).")
    return share if name == "mixed" else name


def normal_kl(mean1: Array, log_variance1: Array, mean2: Array, log_variance2: Array) -> Array:
    """KL(N(mean1, variance1) || N(mean2, variance2)) of each coordinate, in nats."""
    ratio = log_variance1 - log_variance2
    # expm1, since nearly equal variances cancel in e^r - 1 - r.
    return 0.5 * (jnp.expm1(ratio) - ratio + (mean1 - mean2) ** 2 * jnp.exp(-log_variance2))


def discretized_gaussian_log_likelihood(x0: Image, mean: Array, log_std: Array, levels: int = BYTE) -> Array:
    """log of the mass that N(mean, std^2) puts on x_0's level, in nats, [B, ...] (Ho et al. 2020, Eq. 13).

    The levels -1 and 1 get the tails. As in the authors' code, the normal CDF is approximated by Phi(z) = sigmoid(2
    sqrt(2/pi) (z + 0.044715 z^3)), to within 2e-4. Phi is itself a CDF, so the levels' masses add to 1. Masses are at
    least 1e-12.
    """
    def logit(edge: Array) -> Array:
        z = (edge - mean) * jnp.exp(-log_std)
        return 2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)

    half = 1 / (levels - 1)
    upper, lower = logit(x0 + half), logit(x0 - half)
    below, above = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a)), which does not cancel in the tails.
    between = below + above + jnp.log(-jnp.expm1(lower - upper))
    log_mass = jnp.where(x0 < half / 4 - 1, below, jnp.where(x0 > 1 - half / 4, above, between))
    return jnp.maximum(log_mass, _LEAST_LOG_PROBABILITY)


def reverse_log_variance(process: Process, prediction: Prediction, s: Time, t: Time, variance: Variance,
                         t_previous: Time | None = None) -> Array:
    """log of the variance of p(x_s | x_t), s < t, to broadcast against x (Ho et al. 2020, Section 3.2).

    small          sigma_s^2 (1 - SNR_t/SNR_s): beta-tilde, the posterior variance; exact for a single data point
    large          sigma_t^2 (1 - SNR_t/SNR_s) = 1 - alpha_t^2/alpha_s^2: beta_t, exact for data ~ N(0, I)
    learned_range  between their logarithms, by the network's output (Nichol & Dhariwal 2021, Eq. 15)
    a number       between their logarithms, by this share of large (Ho & Salimans 2022, v; Hoogeboom et al. 2023)

    At s = 0, where beta-tilde is 0, `small` and `large` are both beta-tilde of the preceding step (t_previous -> t), as
    in the code of both papers. t_previous: the time before t in the grid; None: 2t, as in a uniform grid.
    """
    t_previous = jnp.minimum(2 * t, process.t_max) if t_previous is None else t_previous
    last = s == 0
    upper, lower = jnp.where(last, t_previous, t), jnp.where(last, t, s)
    # A grid of one step has no preceding step.
    removed = jnp.where(upper > lower, process.noise_added_fraction(lower, upper), 1.0)
    small = expand(2 * jnp.log(process.sigma(lower)) + jnp.log(removed), prediction.x0)
    if variance == "small":
        return small
    large = expand(2 * jnp.log(process.sigma(t)) + jnp.log(process.noise_added_fraction(s, t)), prediction.x0)
    if variance == "large":
        return jnp.where(expand(last, prediction.x0), small, large)
    v = prediction.variance_fraction if variance == "learned_range" else variance
    return v * large + (1 - v) * small


def vlb_term(diffusion: Diffusion, x0: Image, x_t: Image, t: Time, cond: Cond, variance: Variance,
             s: Time | None = None, t_previous: Time | None = None) -> Array:
    """L_{t-1} (Ho et al. 2020, Eq. 5), in bits per dimension, [B]; t is [B] or a scalar.

    KL(q(x_s | x_t, x_0) || p(x_s | x_t)), and -log p(x_0 | x_t) at s = 0, for a draw x_t ~ q(x_t | x_0). s: the next
    time of the grid, t - 1 if None. t_previous: as in `reverse_log_variance`.
    """
    return vlb_of_prediction(diffusion.process, diffusion.denoise(x_t, t, cond), x0, x_t, t, variance, s, t_previous)


def vlb_of_prediction(process: Process, prediction: Prediction, x0: Image, x_t: Image, t: Time, variance: Variance,
                      s: Time | None = None, t_previous: Time | None = None, mask: Array | None = None,
                      levels: int = BYTE) -> Array:
    """`vlb_term` for a given prediction, which a loss may have changed. mask: as in `numerics.mean_over`."""
    s = t - 1 if s is None else s
    log_variance = reverse_log_variance(process, prediction, s, t, variance, t_previous)
    mean = process.posterior(x_t, prediction.x0, s, t).mean
    kl = normal_kl(process.posterior(x_t, x0, s, t).mean,
                   reverse_log_variance(process, prediction, s, t, "small", t_previous), mean, log_variance)
    nll = -discretized_gaussian_log_likelihood(x0, mean, log_variance / 2, levels)
    return jnp.where(s == 0, mean_over(nll, mask), mean_over(kl, mask)) / math.log(2)


def prior_term(process: Process, x0: Image, mask: Array | None = None) -> Array:
    """L_T = KL(q(x_T | x_0) || p(x_T)), in bits per dimension, [B]; nothing in it is learned (Ho et al., Eq. 5)."""
    t = jnp.asarray(process.t_max)
    kl = normal_kl(process.alpha(t) * x0, 2 * jnp.log(process.sigma(t)), 0.0, 2 * jnp.log(process.prior_std(t)))
    return mean_over(kl, mask) / math.log(2)


def reconstruction_term(process: Process, x0: Image, eps: Image, mask: Array | None = None,
                        levels: int = BYTE) -> Array:
    """-log p(x_0 | x_t) at t = t_min, x_t = alpha x_0 + sigma eps, in bits per dimension, [B].

    p is proportional to q(x_t | x_0) over the levels (VDM, Eq. 15 and Appendix E.4).
    """
    level = process.noise_level(clean_end(process))
    if levels <= BYTE:
        log_sum = _log_sum_of_all(x0 + level * eps, level, levels)
    else:
        log_sum = _log_sum_of_many(x0, eps, level, levels)
    return mean_over(log_sum + 0.5 * eps**2, mask) / math.log(2)


def _log_sum_of_all(noisy: Array, level: Array, levels: int) -> Array:
    """log of the sum over the levels l_k of exp(-(noisy - l_k)^2 / (2 level^2)), by addition."""
    last = levels - 1
    # The nearest level has the largest exponent, which is subtracted.
    nearest = jnp.clip(jnp.round((noisy + 1) / 2 * last), 0, last)
    exponent = lambda k, noisy, level: -0.5 * ((noisy - (2 * k / last - 1)) / level) ** 2  # noqa: E731
    largest = exponent(nearest, noisy, level)
    # One level at a time, also in the gradient: all at once would take K times the data's memory.
    one = jax.checkpoint(lambda k, noisy, level, largest: jnp.exp(exponent(k, noisy, level) - largest))
    total = jax.lax.fori_loop(0, levels, lambda k, total: total + one(k, noisy, level, largest), jnp.zeros_like(noisy))
    return largest + jnp.log(total)


def _log_sum_of_many(x0: Array, eps: Array, level: Array, levels: int) -> Array:
    """The same of noisy = x0 + level eps for thousands of levels: by addition of the near ones where the noise is below
    4 of them, and else by the integral, which differs only beside the bounds, by less than 1 %."""
    width = level * (levels - 1) / 2  # the noise, in levels
    own = jnp.round((x0 + 1) * (levels - 1) / 2)  # x0's level; others are counted from it, so that float32 is exact
    valid = lambda k: (own + k >= 0) & (own + k <= levels - 1)  # noqa: E731
    narrow, wide = jnp.minimum(width, 4.0), jnp.maximum(width, 4.0)

    nearest = jax.lax.stop_gradient(jnp.clip(jnp.round(narrow * eps), -own, levels - 1 - own))
    exponent = lambda k, narrow: -0.5 * (eps - k / narrow) ** 2  # noqa: E731
    largest = exponent(nearest, narrow)
    one = jax.checkpoint(lambda k, narrow, largest: jnp.where(
        valid(nearest + k), jnp.exp(exponent(nearest + k, narrow) - largest), 0))
    total = jax.lax.fori_loop(-32, 33, lambda k, total: total + one(k, narrow, largest), jnp.zeros_like(x0))

    # Level k stands for k - 1/2 .. k + 1/2.
    inside = (jax.scipy.stats.norm.cdf((levels - 0.5 - own) / wide - eps)
              - jax.scipy.stats.norm.cdf((-0.5 - own) / wide - eps))
    integral = jnp.log(wide * math.sqrt(2 * math.pi)) + jnp.log(jnp.maximum(inside, 1e-30))
    return jnp.where(width < 4, largest + jnp.log(total), integral)
