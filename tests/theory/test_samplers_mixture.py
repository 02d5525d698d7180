"""Samplers with the exact denoiser of a mixture of Gaussians, which is not linear.

In one dimension the law of the sampled chain is found by quadrature, p_s(y) = int p_t(x) N(y; m(x), std^2) dx, from the
papers' formulas; samples must have that law within their standard error, and it must go to the data's as T grows.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import grids, schedules
from diffusion.core.numerics import expand
from diffusion.core.parameterization import Diffusion, Prediction, clip_x0
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.ancestral import Ancestral
from diffusion.samplers.base import draw_prior, sample
from diffusion.samplers.ddim import DDIM

SOLVERS = {
    "ancestral small": Ancestral(variance="small"),
    "ancestral large": Ancestral(variance="large"),
    "ddim 0": DDIM(eta=0.0),
    "ddim 0.5": DDIM(eta=0.5),
    "ddim 1": DDIM(eta=1.0),
}
WEIGHTS, CENTERS, STDS = np.array([0.3, 0.7]), np.array([[-0.9], [0.6]]), np.array([0.25, 0.15])  # in one dimension
WEIGHTS_2D = np.array([0.5, 0.3, 0.2])
CENTERS_2D = np.array([[-0.8, -0.5], [0.8, -0.5], [0.0, 0.9]])
STDS_2D = np.array([0.15, 0.25, 0.2])
BORDER = -0.2  # between the two modes in one dimension


@functools.cache
def linear(steps):
    return DiscreteProcess(betas=schedules.linear(steps, beta_start=0.1 / steps, beta_end=20 / steps))


def posterior_mean(x, alpha, sigma, weights, centers, stds, np=jnp):
    """E[x_0 | x_t] [B, D] of a mixture with modes N(centers[k], stds[k]^2 I)."""
    weights, centers, stds = weights[None], centers[None], stds[None]
    variance = alpha**2 * stds**2 + sigma**2
    offset = x[:, None] - alpha * centers
    log_p = np.log(weights) - 0.5 * np.sum(offset**2, -1) / variance - 0.5 * x.shape[-1] * np.log(variance)
    share = np.exp(log_p - log_p.max(1, keepdims=True))
    share = share / share.sum(1, keepdims=True)
    return np.sum(share[..., None] * (centers + (alpha * stds**2 / variance)[..., None] * offset), 1)


def mixture(process, weights=WEIGHTS, centers=CENTERS, stds=STDS):
    def denoise(x, t, cond=None):
        alpha, sigma = process.alpha(t), process.sigma(t)
        x0 = posterior_mean(x, alpha, sigma, *(jnp.asarray(a, float) for a in (weights, centers, stds)))
        return Prediction(x0, (x - expand(alpha, x) * x0) / expand(sigma, x))
    return denoise


def run(name, process, x, keys, denoise):
    """Through all times of the process."""
    solver, steps = SOLVERS[name], grids.pairs(grids.linspace(process.t_max, process.t_max))
    return np.asarray(jax.jit(lambda steps, x, keys: sample(solver, Diffusion(process, denoise), steps, x, keys)[1])(
        steps, x, keys), float)


@functools.cache
def law_by_quadrature(name, process, nodes=800):
    """(nodes, density at t = 1, x_0_hat there): the law of the chain from N(0, 1) before its last, noiseless step."""
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - process.betas)])
    x, h = np.linspace(-5, 5, nodes, retstep=True)

    def guess(a):
        return posterior_mean(x[:, None], np.sqrt(a), np.sqrt(1 - a), WEIGHTS, CENTERS, STDS, np)[:, 0]

    density = np.exp(-x**2 / 2) / np.sqrt(2 * np.pi)
    for t in range(process.t_max, 1, -1):
        a_t, a_s, beta = alpha_bar[t], alpha_bar[t - 1], process.betas[t - 1]
        small = (1 - a_s) / (1 - a_t) * beta
        variance = {"ancestral large": beta, "ddim 0.5": small / 4}.get(name, small)
        of_x = np.sqrt(1 - a_s - (variance if name.startswith("ddim") else small)) / np.sqrt(1 - a_t)
        mean = of_x * x + (np.sqrt(a_s) - of_x * np.sqrt(a_t)) * guess(a_t)  # Eq. 12; Eq. 7 is its eta = 1
        assert np.sqrt(variance) > 0.9 * h  # else the sum below is no integral
        kernel = np.exp(-(x[:, None] - mean) ** 2 / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        density = h * kernel @ density
    return density * h, guess(alpha_bar[1])


def moments(mass, x0):
    """Mean, variance and the weight of the lower mode of a weighted sample."""
    mean = np.sum(mass * x0)
    return np.array([mean, np.sum(mass * (x0 - mean) ** 2), np.sum(mass * (x0 < BORDER))])


DATA = np.array([WEIGHTS @ CENTERS[:, 0], WEIGHTS @ (STDS**2 + CENTERS[:, 0] ** 2) - (WEIGHTS @ CENTERS[:, 0]) ** 2,
                 WEIGHTS[0]])  # as `moments`; the modes overlap at the border by less than 3e-3


@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "ddim 0"])
def test_samples_have_the_law_of_the_chain(name):
    process, count = linear(30), 50_000
    keys = jax.random.split(jax.random.key(0), count)
    x = draw_prior(process, process.t_max, keys, (1,))
    out = run(name, process, x, keys, mixture(process))[:, 0]
    mass, x0 = law_by_quadrature(name, process)
    assert mass.sum() == pytest.approx(1, abs=2e-5)
    exact = moments(mass, x0)
    fourth = np.sum(mass * (x0 - exact[0]) ** 4)
    error = np.sqrt(np.array([exact[1], fourth - exact[1] ** 2, exact[2] * (1 - exact[2])]) / count)
    assert np.all(np.abs(moments(np.full(count, 1 / count), out) - exact) < 4 * error)


@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "ddim 0"])
def test_the_law_of_the_chain_goes_to_the_datas(name):
    """First order: the error at T = 60 is about half of that at 30, and extrapolates to none."""
    at_30, at_60 = (moments(*law_by_quadrature(name, linear(steps))) - DATA for steps in (30, 60))
    assert np.all(np.abs(at_60) < 0.04), at_60
    assert np.all(np.abs(at_60) < 0.75 * np.abs(at_30) + 2e-3), (at_30, at_60)
    assert np.all(np.abs(2 * at_60 - at_30) < 0.01), (at_30, at_60)


def test_ddim_without_noise_carries_the_prior_to_the_data(x64):
    """Every x_T of a fine grid, weighted by N(0, 1): no sampling error, only the steps'."""
    x = np.linspace(-6, 6, 4001)
    mass = np.exp(-x**2 / 2) / np.exp(-x**2 / 2).sum()
    keys = jax.random.split(jax.random.key(0), len(x))
    error = []
    for steps in (250, 500, 1000):
        out = run("ddim 0", linear(steps), jnp.asarray(x[:, None]), keys, mixture(linear(steps)))
        error.append(moments(mass, out[:, 0]) - DATA)
        assert np.all(np.diff(out[:, 0]) > 0)  # a flow keeps the order
    assert np.all(np.abs(error[2]) < 5e-3), error
    assert 1.8 < (error[0] - error[1])[1] / (error[1] - error[2])[1] < 2.2
    assert np.all(np.abs(2 * error[2] - error[1]) < 3e-3), error


@pytest.mark.parametrize("name, steps", [("ancestral large", 200), ("ddim 0", 200)] + [
    pytest.param(name, 1000, marks=pytest.mark.slow) for name in SOLVERS])
def test_two_dimensions(name, steps):
    """Mean, covariance and mode weights of 20,000 chains are the data's.

    To 4 standard errors, and 3/T for the steps: in one dimension their error is 2/T (above).
    """
    process, count = linear(steps), 20_000
    keys = jax.random.split(jax.random.key(2), count)
    out = run(name, process, draw_prior(process, process.t_max, keys, (2,)), keys,
              mixture(process, WEIGHTS_2D, CENTERS_2D, STDS_2D))
    mean = WEIGHTS_2D @ CENTERS_2D
    spread = CENTERS_2D - mean
    covariance = (WEIGHTS_2D * spread.T) @ spread + WEIGHTS_2D @ STDS_2D**2 * np.eye(2)
    tolerance = 4 / count**0.5 + 3 / steps  # all standard deviations here are below 1
    assert np.all(np.abs(out.mean(0) - mean) < tolerance)
    assert np.all(np.abs(np.cov(out.T) - covariance) < tolerance)
    nearest = np.argmin(np.sum((out[:, None] - CENTERS_2D) ** 2, -1), 1)
    np.testing.assert_allclose(np.bincount(nearest, minlength=3) / count, WEIGHTS_2D, rtol=0, atol=tolerance)
    for k in range(3):  # the modes' own width
        np.testing.assert_allclose(out[nearest == k].std(0), STDS_2D[k], rtol=60 / steps)


@pytest.mark.parametrize("betas, grid", [
    (schedules.linear(100, beta_start=1e-3, beta_end=0.2), grids.linspace(100, 100)),
    (schedules.cosine(100), grids.trailing(100, 13))], ids=["linear", "cosine, respaced"])
def test_ddim_with_eta_1_is_the_ancestral_sampler(x64, betas, grid):
    """Sample by sample with the same keys: the step of Eq. 12 is the posterior of Eqs. 6-7, clipped x_0 or not."""
    process = DiscreteProcess(betas=betas)
    diffusion = Diffusion(process, mixture(process, WEIGHTS_2D, CENTERS_2D, STDS_2D))
    keys = jax.random.split(jax.random.key(0), 200)
    x = draw_prior(process, process.t_max, keys, (2,)).astype(jnp.float64)
    both = jax.jit(lambda steps, x, keys, bound: [sample(SOLVERS[name], clip_x0(diffusion, bound), steps, x, keys)[1]
                                              for name in ("ddim 1", "ancestral small")])
    results = [both(grids.pairs(grid), x, keys, bound) for bound in (np.inf, 0.7)]
    for ddim, ancestral in results:
        np.testing.assert_allclose(ddim, ancestral, rtol=0, atol=1e-11)
        assert np.all(np.isfinite(ddim)) and np.std(ddim) > 0.2
    assert np.abs(results[0][0] - results[1][0]).max() > 0.1
