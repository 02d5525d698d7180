"""Guidance by reconstruction (Ho et al. 2022) with the exact denoiser of correlated Gaussian images."""
import functools

import jax
import numpy as np
import pytest
from tasks import gaussian
from tasks.test_replacement import MASK, PROCESSES, SHAPE, keys_of, of_gaussian, prior

from diffusion import tasks
from diffusion.samplers.ddim import DDIM

PROJECT = tasks.pixel_projection(MASK)


@pytest.mark.parametrize("name, t", [("vp", 0.5), ("flow", 0.7), ("edm", 2.0), ("table", 20)])
def test_it_is_equation_7(x64, name, t):
    """Against the derivative of a linear denoiser written down: x_0 = mean + A (x - alpha mean)."""
    process, size = PROCESSES[name][0], int(np.prod(SHAPE))
    cov, rng = gaussian.covariance(size), np.random.default_rng(0)
    x, known = rng.normal(size=(2, 3, *SHAPE))
    t = np.full(3, t)
    alpha, sigma = (float(f(t)[0]) for f in (process.alpha, process.sigma))
    a = alpha * cov @ np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(size))
    plain = (x.reshape(3, -1) @ a.T)
    measured = np.broadcast_to(MASK, SHAPE).reshape(-1)
    gradient = -2 * (measured * (known.reshape(3, -1) - plain)) @ a
    expected = plain - 1.7 * alpha / 2 * gradient * (1 - measured)
    found = tasks.reconstructing(of_gaussian(process), known, PROJECT, 1.7).denoise(x, t, {})
    np.testing.assert_allclose(found.x0.reshape(3, -1), expected, atol=1e-10)
    np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, x, atol=1e-10)


@functools.cache
def solver(weight):
    def make(known):
        inner = DDIM(eta=1.0)
        if weight:
            inner = tasks.Reconstruction(solver=inner, known=known, project=PROJECT, weight=weight)
        return tasks.Replacement(solver=inner, known=known, project=PROJECT)
    return make


def test_the_unknown_part_comes_closer_to_its_conditional_mean(x64):
    """Of 256 samples for one known part, which stays exact; as in the paper, a weight above 1 is better."""
    process, steps = PROCESSES["vp"]
    size, keys = int(np.prod(SHAPE)), keys_of(256)
    known = np.broadcast_to(np.random.default_rng(3).normal(size=SHAPE) * 0.7, (256, *SHAPE))
    measured = np.broadcast_to(MASK, SHAPE).reshape(-1) > 0
    mean, _ = gaussian.conditional(np.zeros(size), gaussian.covariance(size), measured, known[0].reshape(-1)[measured])

    def error(weight):
        x = np.asarray(gaussian.run(solver(weight), of_gaussian(process), steps, prior(process, steps, keys), keys,
                                    known)[1])
        np.testing.assert_array_equal(PROJECT(x), PROJECT(known))
        return np.sqrt(np.mean((x.reshape(256, -1)[:, ~measured].mean(0) - mean) ** 2))
    plain = error(0.0)
    assert error(1.0) < 0.85 * plain and error(3.0) < 0.5 * plain


def test_it_costs_as_many_predictions_as_its_solver():
    steps = PROCESSES["vp"][1]
    wrapped = tasks.Reconstruction(solver=DDIM(), known=None, project=PROJECT)
    assert wrapped.evaluations(steps, None) == DDIM().evaluations(steps, None) == 20
    assert jax.tree.leaves(wrapped.init(np.zeros((1, *SHAPE)))) == jax.tree.leaves(DDIM().init(np.zeros((1, *SHAPE))))
