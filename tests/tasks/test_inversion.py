"""DDIM backwards and forwards again, the way between two noises, and SDEdit's start."""
import functools

import jax
import numpy as np
import pytest
from tasks import gaussian

from diffusion import tasks
from diffusion.core import grids, schedules
from diffusion.core.continuous import VP, VarianceExploding
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.base import draw_prior
from diffusion.samplers.ddim import DDIM

SHAPE = (2, 2, 1)
FINE = DiscreteProcess(betas=schedules.linear(2048, beta_start=0.1 / 2048, beta_end=20 / 2048))


def images(count=4, seed=1):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)) * 0.5


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def grid(process, steps):
    if process is FINE:
        return grids.pairs(grids.trailing(2048, steps))
    if isinstance(process, VP):
        return grids.pairs(np.arange(steps, 0, -1)) / float(steps)
    levels = np.geomspace(80, 0.002, steps)
    return np.stack([levels, np.append(levels[1:], 0)], 1)


@functools.cache
def exact(process):
    return gaussian.diffusion(process, np.full(4, 0.1), gaussian.covariance(4))


@functools.cache
def inversion(**options):
    return lambda _: tasks.Inversion(**options)


def ddim(_):
    return DDIM()


def there(process, steps, x, **options):
    rows = tasks.reverse_grid(steps)
    return np.asarray(gaussian.run(inversion(**options), exact(process), rows, x, keys_of(len(x)))[1])


def back(process, steps, x):
    return np.asarray(gaussian.run(ddim, exact(process), steps, x, keys_of(len(x)))[1])


@pytest.mark.parametrize("process", [FINE, VP(), VarianceExploding()], ids=["table", "vp", "edm"])
def test_many_iterations_invert_ddim_exactly(x64, process):
    steps, x = grid(process, 60), images()
    noise = there(process, steps, x, iterations=60)
    np.testing.assert_allclose(back(process, steps, noise), x, atol=1e-6)


def test_one_iteration_returns_at_first_order(x64):
    """The error halves where the steps double."""
    x, error = images(), []
    for steps in (64, 128, 256, 512):
        g = grid(FINE, steps)
        error.append(np.abs(back(FINE, g, there(FINE, g, x)) - x).max())
    order = np.log2(np.divide(error[:-1], error[1:]))
    assert np.all(np.abs(order - 1) < 0.25), (error, order)
    assert error[-1] < 0.02


def test_the_noise_of_an_image_has_the_models_law(x64):
    """Along the flow (x_t - alpha m) / sqrt(alpha^2 c + sigma^2) is constant on each principal axis."""
    x, cov = images(), gaussian.covariance(4)
    values, axes = np.linalg.eigh(cov)
    alpha_bar = np.prod(1 - FINE.betas)
    expected = np.sqrt(alpha_bar) * 0.1 + ((x.reshape(4, 4) - 0.1) @ axes * np.sqrt(
        (alpha_bar * values + 1 - alpha_bar) / values)) @ axes.T
    error = [np.abs(there(FINE, grid(FINE, n), x).reshape(4, 4) - expected).max() for n in (256, 512)]
    assert error[1] < 0.6 * error[0] and error[1] < 0.05 * np.abs(expected).max(), error


def test_evaluations(x64):
    steps = grid(FINE, 7)
    np.testing.assert_array_equal(tasks.reverse_grid(steps)[0], [0, steps[-1, 0]])
    assert tasks.Inversion(iterations=3).evaluations(tasks.reverse_grid(steps), ()) == 21
    rows = there(FINE, steps, images())
    others = images() * np.where(np.arange(4) == 2, 1, -0.5)[:, None, None, None]
    np.testing.assert_allclose(there(FINE, steps, others)[2], rows[2], rtol=1e-12)


def test_slerp(x64):
    slerp = jax.jit(tasks.slerp)
    a, b = np.random.default_rng(0).normal(size=(2, 3, *SHAPE))
    np.testing.assert_allclose(slerp(a, b, 0.0), a, atol=1e-14)
    np.testing.assert_allclose(slerp(a, b, 1.0), b, atol=1e-14)
    unit = lambda x: x / np.sqrt(np.sum(x**2, axis=(1, 2, 3), keepdims=True))  # noqa: E731
    a, b, share = unit(a), unit(b), np.array([0.2, 0.5, 0.9])
    way = np.asarray(slerp(a, b, share))
    np.testing.assert_allclose(np.sum(np.square(way), axis=(1, 2, 3)), 1, rtol=1e-12)
    angle = lambda x, y: np.arccos(np.sum(x * y, axis=(1, 2, 3)))  # noqa: E731
    np.testing.assert_allclose(angle(a, way), share * angle(a, b), rtol=1e-9)
    np.testing.assert_allclose(slerp(a, a, 0.3), a, atol=1e-12)
    assert np.all(np.isfinite(slerp(a, -a, 0.3)))


# ---- SDEdit --------------------------------------------------------------------------------------------------------

def test_the_strength_cuts_the_steps():
    steps = grid(FINE, 10)
    np.testing.assert_array_equal(tasks.truncate_grid(steps, 1.0), steps)
    assert len(tasks.truncate_grid(steps, 0.0)) == 0
    np.testing.assert_array_equal(tasks.truncate_grid(steps, 0.3), steps[7:])


def test_at_strength_0_the_image_and_at_1_a_sample(x64):
    x, keys, steps = images(), keys_of(4), grid(FINE, 20)
    start = jax.jit(lambda t: tasks.start(FINE, x, t, keys))
    np.testing.assert_array_equal(start(0), x)
    begin, prior = jax.jit(lambda: (tasks.start(VP(), x, 1.0, keys), draw_prior(VP(), 1.0, keys, SHAPE)))()
    np.testing.assert_allclose(begin, VP().alpha(1.0) * x + VP().sigma(1.0) * prior, atol=1e-6)  # drawn in float32
    distance = []
    for strength in (0.1, 0.4, 0.7, 1.0):
        part = tasks.truncate_grid(steps, strength)
        distance.append(np.abs(back(FINE, part, start(part[0, 0])) - x).mean())
    assert np.all(np.diff(distance) > 0) and distance[0] < 0.5 * distance[-1], distance


def test_the_noise_of_the_start_is_the_priors():
    x, keys = images().astype(np.float32), keys_of(4)
    edm = VarianceExploding()
    begin, prior = jax.jit(lambda: (tasks.start(edm, x, 80.0, keys), draw_prior(edm, 80.0, keys, SHAPE)))()
    np.testing.assert_allclose(begin - x, prior, rtol=1e-4, atol=1e-4)
