"""Weights w(lambda) of the squared error in eps, lambda = log-SNR: the loss is w ||eps - eps_hat||^2.

A weight w' on the error in x_0 is w = exp(-lambda) w' here, since ||eps - eps_hat||^2 = SNR ||x_0 - x_0_hat||^2. The
effective weight in training is w(lambda) p(lambda): a weight defined per unit of log-SNR, whatever the density of
times, is therefore divided by p(lambda) (Kingma & Gao 2023, "Understanding Diffusion Objectives").

Each weighting returns alpha^2 w as a function of alpha^2 and sigma^2, SNR = alpha^2 / sigma^2. This product is finite
where w is not: at alpha = 0 (zero terminal SNR, Lin et al. 2024).
"""
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from diffusion.core.parameterization import Parameterization, V
from diffusion.core.processes import Process
from diffusion.core.time_densities import Times
from diffusion.errors import require
from diffusion.typing import Array, Time

# (process, times) -> [B]: the weight of the squared error in the loss's space.
Weight = Callable[[Process, Times], Array]
# (alpha^2, sigma^2) -> alpha^2 w
Weighting = Callable[[Array, Array], Array]
LEAST_SNR = 2e-9  # about e^-20; -20 is the lowest log-SNR that the log's bins resolve


def in_space(weighting: Weighting | None, space: Parameterization, *, per_log_snr: bool = False) -> Weight:
    """The weight of the error in `space` equivalent to w(lambda) on the error in eps; None: weight 1 in `space`.

    At fixed x_t an error in F = a x_0 + b eps is (alpha b - sigma a) / alpha times the error in eps, so the weight is
    alpha^2 w / (alpha b - sigma a)^2. per_log_snr: w is divided by p(lambda).
    """
    def weight(process: Process, times: Times) -> Array:
        signal, noise = process.alpha(times.t) ** 2, process.sigma(times.t) ** 2
        w = jnp.ones(times.t.shape, float)
        if weighting is not None:
            w = weighting(signal, noise) / space.determinant(process, times.t) ** 2
        if per_log_snr:  # 0 at alpha = 0, the limit: alpha^2 falls faster than p(lambda)
            left = signal > 0
            w = jnp.where(left, w / jnp.where(left, times.log_snr_density(process), 1), 0)
        return w * jnp.ones(times.t.shape, float)
    return weight


def space_of(weighting: Weighting | None, space: Parameterization, process: Process) -> Parameterization:
    """The space to measure the weighted error in: `space`, or v if the process ends in pure noise. With a weighting the
    loss is the same in every space, but at alpha = 0 the error in eps is 0 and its weight unbounded."""
    ends_in_noise = not np.isfinite(process.log_snr(process.t_max))
    return V if weighting is not None and ends_in_noise else space


def on_eps(weight: Array, space: Parameterization, process: Process, t: Time) -> Array:
    """The weight of the squared error in eps, [B], equivalent to `weight` on the error in `space`, computed with the
    SNR clipped at LEAST_SNR, below which it may be unbounded."""
    signal, noise = process.alpha(t) ** 2, process.sigma(t) ** 2
    return weight * space.determinant(process, t) ** 2 / jnp.maximum(signal, LEAST_SNR * noise)


def _check_positive(name: str, value: float) -> None:
    require(value > 0, name, value, "must be positive.")


def snr(signal: Array, noise: Array) -> Array:
    """w = 1, which is SNR on x_0: the error in eps as it is (Ho et al. 2020, Eq. 14; Salimans & Ho 2022, Section 4)."""
    return signal


def truncated_snr(signal: Array, noise: Array) -> Array:
    """w = max(1, 1/SNR), which is max(SNR, 1) on x_0: Salimans & Ho (2022), Section 4."""
    return jnp.maximum(signal, noise)


def snr_plus_one(signal: Array, noise: Array) -> Array:
    """w = 1 + 1/SNR, which is SNR + 1 on x_0 and 1 on v: Salimans & Ho (2022), Section 4."""
    return signal + noise


def min_snr(signal: Array, noise: Array, *,
            gamma: float = 5.0,  # the SNR above which the weight on x0 no longer grows
            ) -> Array:
    """w = min(1, gamma/SNR), which is min(SNR, gamma) on x_0 and min(SNR, gamma)/(SNR + 1) on v.

    Hang et al. (2023), "Min-SNR", Section 3.4.
    """
    _check_positive("gamma", gamma)
    return jnp.minimum(signal, gamma * noise)


def soft_min_snr(signal: Array, noise: Array, *, gamma: float = 4.0) -> Array:
    """w = gamma / (SNR + gamma), which is gamma SNR / (SNR + gamma) on x_0: Crowson et al. (2024), "HDiT"."""
    _check_positive("gamma", gamma)
    return gamma * signal * noise / (signal + gamma * noise)


def p2(signal: Array, noise: Array, *, p2_k: float = 1.0, p2_gamma: float = 1.0) -> Array:
    """w = 1 / (k + SNR)^gamma: Choi et al. (2022), "Perception Prioritized Training"."""
    _check_positive("p2_k", p2_k)
    _check_positive("p2_gamma", p2_gamma)
    return signal * (noise / (p2_k * noise + signal)) ** p2_gamma


def edm(signal: Array, noise: Array, sigma_data: float = 0.5) -> Array:
    """w = 1 + 1/(SNR sigma_data^2): (sigma^2 + sigma_data^2)/(sigma sigma_data)^2 on x_0 and 1 on EDM's F.

    Karras et al. (2022), "EDM", Table 1, with sigma^2 = 1/SNR.
    """
    return signal + noise / sigma_data**2


def sigmoid(signal: Array, noise: Array, *,
            bias: float = 2.0,  # the log-SNR at which the weight is 1/2
            ) -> Array:
    """w = sigmoid(bias - lambda), for the loss per unit of log-SNR: Kingma & Gao (2023), whose bias is 2."""
    return signal * noise / (noise + signal * math.exp(-bias))


def clipped_velocity(signal: Array, noise: Array, *,
                     least_sigma: float = 0.05,  # smaller sigma count as this
                     ) -> Array:
    """w = min(1, (sigma / least)^2) / alpha^2, which is 1 / max(sigma, least)^2 on x_0: the error in the flow process's
    velocity (x_t - x_0) / sigma of a predicted x_0, with its denominator clipped (Li & He 2025, "JiT", code, t_eps)."""
    _check_positive("least_sigma", least_sigma)
    return jnp.minimum(1.0, noise / least_sigma**2)


def likelihood(signal: Array, noise: Array) -> Array:
    """w = 1, for the loss per unit of log-SNR: g^2 on the score, the variational bound in continuous time up to a
    factor.

    Song et al. (2021), "Maximum Likelihood Training of Score-Based Diffusion Models", Theorem 1; Kingma et al.
    (2021), VDM, Section 5.
    """
    return signal


# Members of loss.weighting; None is 1 on the error in loss.space.
WEIGHTINGS = {"simple": None, "snr": snr, "truncated_snr": truncated_snr, "snr_plus_one": snr_plus_one,
              "min_snr": min_snr, "soft_min_snr": soft_min_snr, "p2": p2, "edm": edm, "sigmoid": sigmoid,
              "likelihood": likelihood, "clipped_velocity": clipped_velocity}
for weighting in (sigmoid, likelihood):
    weighting.per_log_snr = True  # of an integral over lambda, whatever the density of the times
