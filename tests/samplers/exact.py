"""The exact denoiser of a mixture of normals on several processes, and its probability flow."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from compiling import large

from diffusion.core import schedules
from diffusion.core.continuous import VP, Flow, VarianceExploding
from diffusion.core.numerics import expand
from diffusion.core.parameterization import Diffusion, Prediction
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.base import draw_prior, sample

WEIGHTS, CENTERS, STDS = np.array([0.3, 0.7]), np.array([-0.9, 0.6]), np.array([0.5, 0.4])
MEAN = WEIGHTS @ CENTERS
VARIANCE = WEIGHTS @ (STDS**2 + CENTERS**2) - MEAN**2
# process, and the first and last time of the measured orders
PROCESSES = {"VP": (VP(), 0.6, 0.1), "EDM": (VarianceExploding(), 5.0, 0.3), "Flow": (Flow(), 0.9, 0.2)}
ROWS = 128  # to multiples of which grids are padded
IMAGE = np.linspace(-1, 1, 4).reshape(2, 2, 1)
CHAIN = DiscreteProcess(betas=schedules.linear(200, beta_start=5e-4, beta_end=0.1))


@functools.cache
def mixture(process):
    """The exact denoiser of a mixture of two normals in each coordinate."""
    def denoise(x, t, cond=None):
        # JAX keeps a NumPy constant in the precision in which it first met it.
        shape = (1,) * x.ndim + (-1,)
        weights, centers, stds = (jnp.asarray(values, float).reshape(shape) for values in (WEIGHTS, CENTERS, STDS))
        alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
        a, s = expand(alpha, x[..., None]), expand(sigma, x[..., None])
        variance = (a * stds) ** 2 + s**2
        offset = x[..., None] - a * centers
        share = jax.nn.softmax(jnp.log(weights) - offset**2 / 2 / variance - jnp.log(variance) / 2, axis=-1)
        x0 = jnp.sum(share * (centers + a * stds**2 / variance * offset), -1).astype(x.dtype)
        return Prediction(x0, (x - alpha * x0) / sigma)
    return Diffusion(process, denoise)


CALLS = []  # one entry for each call of a `counted` denoiser


@functools.cache
def counted(process):
    """The mixture's denoiser where cond [B] is 0, and where it is 1 that of data which are one image, IMAGE. One
    program then shows both what a solver makes of a law and whether it leaves noise in the data."""
    of_mixture = mixture(process).denoise

    def denoise(x, t, cond):
        jax.debug.callback(lambda: CALLS.append(1))
        found, one = of_mixture(x, t), expand(cond, x) == 1
        x0 = jnp.asarray(IMAGE, x.dtype)[None]
        eps = (x - expand(process.alpha(t), x) * x0) / expand(process.sigma(t), x)
        return Prediction(jnp.where(one, x0, found.x0), jnp.where(one, eps, found.eps))
    return Diffusion(process, denoise)


@functools.cache
def keys_of(count, seed=0):
    with jax.ensure_compile_time_eval():  # also where a program that is being traced asks first
        return jax.random.split(jax.random.key(seed), count)


def program(solver, diffusion, carry, x, keys, cond, steps, first, last):
    """(carry, x) after the rows first .. last - 1 of steps [ROWS, 2]: one compilation for all grids and parts of them,
    since only the solver, the diffusion and the shapes are constants of it."""
    return sample(solver, diffusion, steps, x, keys, cond, first=first, last=last, carry=carry)


small_program = jax.jit(program, static_argnums=(0, 1))
large_program = large(program, static_argnums=(0, 1))


def run(solver, diffusion, steps, x, keys=None, cond=None, first=0, last=None, carry=None):
    keys = keys_of(len(x)) if keys is None else keys
    padded = np.resize(steps, (-(-len(steps) // ROWS) * ROWS, 2))
    program = small_program if x.size < 1000 else large_program
    return program(solver, diffusion, carry, x, keys, cond, padded, first, len(steps) if last is None else last)


def for_many_samples(sampler):
    """A config's sampler whose chain is compiled for a long run."""
    return dataclasses.replace(sampler, advance=large(sampler.advance.__wrapped__))


def calls_of(*args, **kwargs):
    """What `run` returns with a `counted` diffusion, and the calls of its denoiser."""
    CALLS.clear()
    carry, out = jax.block_until_ready(run(*args, **kwargs))
    jax.effects_barrier()
    return carry, out, len(CALLS)


@functools.partial(jax.jit, static_argnums=0)
def times_of(process, log_snr):
    return process.time_of_log_snr(log_snr)


@functools.partial(jax.jit, static_argnums=(0, 1))
def prior(process, shape, t, keys):
    """`draw_prior` in the default precision."""
    return draw_prior(process, t, keys, shape).astype(float)


def pairs(times):
    times = np.asarray(times)
    return np.stack([times[:-1], times[1:]], 1)


@functools.cache
def exact(name):
    """x at the first time, and what the probability-flow ODE makes of it, by 4000 steps of Runge-Kutta."""
    process, first, last = PROCESSES[name]
    denoise, count = mixture(process).denoise, 4000
    t = np.linspace(first, last, count + 1)
    x = np.linspace(-1.5, 1.5, 7)[:, None] * (float(process.sigma(first)) + 0.3)

    @jax.jit
    def solve(x, t):
        def f(x, t):
            x0, eps, _ = denoise(x, t)
            return process.velocity(x0, eps, t)

        def body(i, x):
            h = t[i + 1] - t[i]
            a = f(x, t[i])
            b = f(x + h / 2 * a, t[i] + h / 2)
            c = f(x + h / 2 * b, t[i] + h / 2)
            return x + h / 6 * (a + 2 * b + 2 * c + f(x + h * c, t[i + 1]))

        return jax.lax.fori_loop(0, count, body, x)

    return x, np.asarray(solve(x, t))
