"""Weights w(lambda) of the squared error in eps, lambda = log-SNR: the loss is w ||eps - eps_hat||^2.

A weight of the error in x_0 is exp(-lambda) times that here, since ||eps - eps_hat||^2 = SNR ||x_0 - x_0_hat||^2.
"""
import jax.numpy as jnp

from diffusion.typing import Array


def simple(log_snr: Array) -> Array:
    """1: L_simple of Ho et al. (2020), Eq. 14 (the SNR weighting of Salimans & Ho 2022)."""
    return jnp.ones_like(log_snr)


def truncated_snr(log_snr: Array) -> Array:
    """max(1, 1/SNR), which is max(SNR, 1) on x_0: Salimans & Ho (2022), Section 4."""
    return jnp.maximum(1.0, jnp.exp(-log_snr))


def snr_plus_one(log_snr: Array) -> Array:
    """1 + 1/SNR, which is SNR + 1 on x_0 and 1 on v: Salimans & Ho (2022), Section 4."""
    return 1.0 + jnp.exp(-log_snr)


def min_snr(log_snr: Array, *, gamma: float = 5.0) -> Array:
    """min(1, gamma/SNR), which is min(SNR, gamma) on x_0: Hang et al. (2023), Section 3.4."""
    return jnp.minimum(1.0, gamma * jnp.exp(-log_snr))
