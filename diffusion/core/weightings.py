"""Weights w(lambda) of the squared error in eps, lambda = log-SNR: the loss is w ||eps - eps_hat||^2.

A weight of the error in x_0 is exp(-lambda) times that here, since ||eps - eps_hat||^2 = SNR ||x_0 - x_0_hat||^2. What
is trained for is w(lambda) p(lambda), the effective weight: a weight that is meant for the loss per unit of log-SNR,
whatever the density of times, is divided by p(lambda) (Kingma & Gao 2023, "Understanding Diffusion Objectives").
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion.core.parameterization import Parameterization
from diffusion.core.processes import Process
from diffusion.core.time_densities import Times
from diffusion.typing import Array

# (process, times) -> [B]: the weight of the squared error in the loss's space.
Weight = Callable[[Process, Times], Array]


def in_space(weighting: Callable[[Array], Array] | None, space: Parameterization, *, per_log_snr: bool = False
             ) -> Weight:
    """The weight of the error in `space` that is w(lambda) on the error in eps; None: 1 in the space itself.

    per_log_snr: w is divided by p(lambda).
    """
    def weight(process: Process, times: Times) -> Array:
        ones = jnp.ones(times.t.shape, float)
        w = ones if weighting is None else weighting(process.log_snr(times.t)) / space.error_ratio(process, times.t)**2
        return w / times.log_snr_density(process) if per_log_snr else w * ones
    return weight


def snr(log_snr: Array) -> Array:
    """1, which is SNR on x_0: the error in eps as it is (Ho et al. 2020, Eq. 14; Salimans & Ho 2022, Section 4)."""
    return jnp.ones_like(log_snr)


def truncated_snr(log_snr: Array) -> Array:
    """max(1, 1/SNR), which is max(SNR, 1) on x_0: Salimans & Ho (2022), Section 4."""
    return jnp.maximum(1.0, jnp.exp(-log_snr))


def snr_plus_one(log_snr: Array) -> Array:
    """1 + 1/SNR, which is SNR + 1 on x_0 and 1 on v: Salimans & Ho (2022), Section 4."""
    return 1.0 + jnp.exp(-log_snr)


def min_snr(log_snr: Array, *, gamma: float = 5.0) -> Array:
    """min(1, gamma/SNR), which is min(SNR, gamma) on x_0 and min(SNR, gamma)/(SNR + 1) on v.

    Hang et al. (2023), "Min-SNR", Section 3.4.
    """
    return jnp.minimum(1.0, gamma * jnp.exp(-log_snr))


def soft_min_snr(log_snr: Array, *, gamma: float = 4.0) -> Array:
    """gamma / (SNR + gamma), which is gamma SNR / (SNR + gamma) on x_0: Crowson et al. (2024), "HDiT"."""
    return jax.nn.sigmoid(jnp.log(gamma) - log_snr)


def p2(log_snr: Array, *, k: float = 1.0, gamma: float = 1.0) -> Array:
    """1 / (k + SNR)^gamma: Choi et al. (2022), "Perception Prioritized Training"."""
    return (k + jnp.exp(log_snr)) ** -gamma


def edm(log_snr: Array, *, sigma_data: float = 0.5) -> Array:
    """1 + 1/(SNR sigma_data^2), which is (sigma^2 + sigma_data^2)/(sigma sigma_data)^2 on x_0 and 1 on EDM's F.

    Karras et al. (2022), "EDM", Table 1, with sigma^2 = 1/SNR.
    """
    return 1.0 + jnp.exp(-log_snr) / sigma_data**2


def sigmoid(log_snr: Array, *, bias: float = 2.0) -> Array:
    """sigmoid(bias - lambda), for the loss per unit of log-SNR: Kingma & Gao (2023), whose bias is 2.
    """
    return jax.nn.sigmoid(bias - log_snr)


def likelihood(log_snr: Array) -> Array:
    """1, for the loss per unit of log-SNR: g^2 on the score, the variational bound in continuous time but for a factor.

    Song et al. (2021), "Maximum Likelihood Training of Score-Based Diffusion Models", Theorem 1; Kingma et al.
    (2021), VDM, Section 5.
    """
    return jnp.ones_like(log_snr)
