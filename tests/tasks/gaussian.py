"""Correlated Gaussian images, their exact denoiser, and the exact law of one part given another."""

import jax
import jax.numpy as jnp
import numpy as np
from compiling import large

from diffusion.core.numerics import expand
from diffusion.core.parameterization import Diffusion, Prediction
from diffusion.samplers.base import sample

ROWS = 2048  # to which grids are padded, so that one program serves all


def _sample(make, diffusion, given, steps, last, x, keys):
    return sample(make(given), diffusion, steps, x, keys, last=last)


_small = jax.jit(_sample, static_argnums=(0, 1))
_large = large(_sample, static_argnums=(0, 1))


def run(make, diffusion, steps, x, keys, given=None):
    """(carry, x) at the end of the steps by the solver make(given). The same function and diffusion: one program."""
    program = _small if x.size < 1000 else _large
    return program(make, diffusion, given, np.resize(steps, (ROWS, 2)), len(steps), x, keys)


def covariance(size, seed=0):
    """Positive definite [size, size], variances near 0.5, and far from diagonal."""
    a = np.random.default_rng(seed).normal(size=(size, size)) / np.sqrt(size)
    return 0.5 * (a @ a.T + 0.1 * np.eye(size))


def diffusion(process, mean, cov):
    """x_0 ~ N(mean, cov), of all pixels and channels of an image in one vector."""
    values, axes = np.linalg.eigh(cov)
    mean, values = mean[None], values[None]

    def denoise(x, t, cond=None):
        flat = x.reshape(len(x), -1)
        alpha, sigma = expand(process.alpha(t), flat), expand(process.sigma(t), flat)
        along = (flat - alpha * jnp.asarray(mean)) @ jnp.asarray(axes) / (alpha**2 * values + sigma**2)
        x0 = mean + (alpha * values * along) @ axes.T
        return Prediction(x0.reshape(x.shape), (sigma * along @ axes.T).reshape(x.shape))
    return Diffusion(process, denoise)


def conditional(mean, cov, known, y):
    """Mean [n - k] and covariance of the coordinates that are not `known` (bool [n]), given those as y [k]."""
    gain = cov[np.ix_(~known, known)] @ np.linalg.inv(cov[np.ix_(known, known)])
    return mean[~known] + gain @ (y - mean[known]), cov[np.ix_(~known, ~known)] - gain @ cov[np.ix_(known, ~known)]
