"""The exact denoiser of a mixture of normals on several processes, and its probability flow."""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import schedules
from diffusion.core.continuous import VP, Flow, VarianceExploding
from diffusion.core.numerics import expand
from diffusion.core.parameterization import Diffusion, Prediction
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.base import sample

WEIGHTS, CENTERS, STDS = np.array([0.3, 0.7]), np.array([-0.9, 0.6]), np.array([0.5, 0.4])
MEAN = WEIGHTS @ CENTERS
VARIANCE = WEIGHTS @ (STDS**2 + CENTERS**2) - MEAN**2
# process, and the first and last time of the measured orders
PROCESSES = {"VP": (VP(), 0.6, 0.1), "EDM": (VarianceExploding(), 5.0, 0.3), "Flow": (Flow(), 0.9, 0.2)}
CHAIN = DiscreteProcess(betas=schedules.linear(200, start=5e-4, end=0.1))


def mixture(process, count=lambda: None):
    """The exact denoiser of a mixture of two normals in each coordinate."""
    def denoise(x, t, cond=None):
        count()
        # JAX keeps a NumPy constant in the precision in which it first met it.
        weights, centers, stds = (jnp.asarray(values, float) for values in (WEIGHTS, CENTERS, STDS))
        alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
        variance = (alpha[..., None] * stds) ** 2 + sigma[..., None] ** 2
        offset = x[..., None] - alpha[..., None] * centers
        share = jax.nn.softmax(jnp.log(weights) - offset**2 / 2 / variance - jnp.log(variance) / 2, axis=-1)
        x0 = jnp.sum(share * (centers + alpha[..., None] * stds**2 / variance * offset), -1).astype(x.dtype)
        return Prediction(x0, (x - alpha * x0) / sigma)
    return Diffusion(process, denoise)


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def run(solver, diffusion, steps, x, keys=None):
    keys = keys_of(len(x)) if keys is None else keys
    return jax.jit(lambda x, keys: sample(solver, diffusion, steps, x, keys))(x, keys)


def pairs(times):
    times = np.asarray(times)
    return np.stack([times[:-1], times[1:]], 1)


@functools.cache
def exact(name):
    """x at the first time, and what the probability-flow ODE makes of it, by 4000 steps of Runge-Kutta."""
    process, first, last = PROCESSES[name]
    denoise, count = mixture(process).denoise, 4000
    t = jnp.linspace(first, last, count + 1)

    def f(x, t):
        x0, eps, _ = denoise(x, t)
        return process.velocity(x0, eps, t)

    def body(i, x):
        h = t[i + 1] - t[i]
        a = f(x, t[i])
        b = f(x + h / 2 * a, t[i] + h / 2)
        c = f(x + h / 2 * b, t[i] + h / 2)
        return x + h / 6 * (a + 2 * b + 2 * c + f(x + h * c, t[i + 1]))

    x = jnp.linspace(-1.5, 1.5, 7)[:, None] * (process.sigma(first) + 0.3)
    return x, jax.jit(lambda x: jax.lax.fori_loop(0, count, body, x))(x)
