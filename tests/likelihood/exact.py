"""Data of a known law on the levels of a byte, and the exact denoiser of the density that they are levels of.

Coordinates are independent, each a mixture of normals; the halves of a Gaussian are equal, so that programs that take
the law as an argument serve both.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from diffusion.core.numerics import expand
from diffusion.core.parameterization import Diffusion, Prediction

LEVELS = np.arange(256) * 2 / 255 - 1

GAUSSIAN = (np.array([0.5, 0.5]), np.array([0.1, 0.1]), np.array([0.25, 0.25]))  # weights, means, standard deviations
MIXTURE = (np.array([0.3, 0.7]), np.array([-0.5, 0.4]), np.array([0.15, 0.1]))


def level_probabilities(law):
    """P of each level: the integral of the density over its cell, [256]."""
    weights, means, stds = law
    edge = lambda x: ndtr((x[:, None] - means) / stds) @ weights  # noqa: E731
    return edge(LEVELS + 1 / 255) - edge(LEVELS - 1 / 255)


def log_density(law, x):
    weights, means, stds = law
    z = (np.asarray(x)[..., None] - means) / stds
    return np.log(np.sum(weights / stds * np.exp(-z**2 / 2), -1)) - 0.5 * np.log(2 * np.pi)


def bits(law, x0):
    """-log2 P(x_0) per dimension, [B]."""
    index = np.round((np.asarray(x0, float) + 1) / 2 * 255).astype(int)
    return -np.log2(level_probabilities(law)[index]).reshape(len(x0), -1).mean(1)


def entropy(law):
    """Bits per dimension of the levels' law."""
    p = level_probabilities(law)
    return -np.sum(p * np.log2(p))


def draw(law, shape, seed=0):
    """x_0 of `shape` on the levels."""
    p = level_probabilities(law)
    return jnp.asarray(np.random.default_rng(seed).choice(LEVELS, shape, p=p / p.sum()))


def diffusion(process, law):
    """The exact denoiser: x_0_hat = E[x_0 | x_t], coordinate by coordinate."""
    def denoise(x, t, cond=None):
        weights, means, stds = (jnp.asarray(a, x.dtype).reshape((1,) * x.ndim + (-1,)) for a in law)
        alpha, sigma = expand(process.alpha(t), x[..., None]), expand(process.sigma(t), x[..., None])
        variance = alpha**2 * stds**2 + sigma**2
        offset = x[..., None] - alpha * means
        share = jax.nn.softmax(jnp.log(weights) - 0.5 * offset**2 / variance - 0.5 * jnp.log(variance), axis=-1)
        gain = alpha * stds**2 / variance
        x0 = jnp.sum(share * (means + gain * offset), -1)
        # eps_hat of its own formula: (x - alpha x_0_hat) / sigma cancels where sigma is small.
        eps = jnp.sum(share * sigma * offset / variance, -1)
        return Prediction(x0, eps)
    return Diffusion(process, denoise)


# Most of the time of these tests is the compiler's: this takes a third of it away.


@functools.cache
def program(estimator, process):
    """(keys, x0, law) -> what the estimator says by the law's exact denoiser: compiled once for all laws."""
    run = jax.jit(lambda keys, x0, law: estimator(keys, diffusion(process, law), x0, None))
    return lambda keys, x0, law: run(keys, x0, tuple(np.asarray(a, x0.dtype) for a in law))
