"""Samplers with the exact denoiser of Gaussian data. Each step is then affine, so the law of the result is known
exactly: its mean and covariance follow from the steps' factors without drawing anything."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import grids, numerics, schedules
from diffusion.core.numerics import expand
from diffusion.core.parameterization import Diffusion, Prediction
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.ancestral import Ancestral
from diffusion.samplers.base import draw_prior, sample
from diffusion.samplers.ddim import DDIM

# Most of the time of these tests is the compiler's: this takes a third of it away.
MEAN = np.array([0.4, -0.8, 0.2])
VARIANCES = np.array([0.05, 0.5, 2.0])  # of the data along its principal axes
AXES = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
COVARIANCE = AXES @ np.diag(VARIANCES) @ AXES.T

SOLVERS = {
    "ancestral small": Ancestral(variance="small"),
    "ancestral large": Ancestral(variance="large"),
    "ddim 0": DDIM(eta=0.0),
    "ddim 0.5": DDIM(eta=0.5),
    "ddim 1": DDIM(eta=1.0),
}


def linear(steps):
    """The linear schedule at another T with the end points scaled, so that the noise at T stays the same."""
    return DiscreteProcess(betas=schedules.linear(steps, beta_start=0.1 / steps, beta_end=20 / steps))


def gaussian(process, mean=MEAN, variances=VARIANCES, axes=AXES):
    """x_0_hat = E[x_0 | x_t], by its gain alpha c / (alpha^2 c + sigma^2) along each principal axis."""
    def denoise(x, t, cond=None):
        alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
        m, c, q = (jnp.asarray(a, float) for a in (mean[None], variances[None], axes))
        gain = alpha * c / (alpha**2 * c + sigma**2)
        x0 = m + ((x - alpha * m) @ q * gain) @ q.T
        return Prediction(x0, (x - alpha * x0) / sigma)
    return denoise


def steps_by_the_papers(name, process, grid):
    """(factors on the principal axes [3], factor of the mean [3], std) of each step, from the betas alone.

    Ho et al. (2020), Eqs. 6-7 and Section 3.2, with beta = 1 - abar_t/abar_s; Song et al. (2021), Eqs. 12 and 16.
    """
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - process.betas)])
    for t, s in zip(grid[:-1], grid[1:]):
        a_t, a_s = alpha_bar[t], alpha_bar[s]
        beta = 1 - a_t / a_s
        gain = np.sqrt(a_t) * VARIANCES / (a_t * VARIANCES + 1 - a_t)  # x_0_hat = gain x + (1 - sqrt(a_t) gain) mean
        if name.startswith("ancestral"):
            of_x0 = np.sqrt(a_s) * beta / (1 - a_t)
            of_x = np.sqrt(1 - beta) * (1 - a_s) / (1 - a_t)
            std = np.sqrt(beta * ((1 - a_s) / (1 - a_t) if name.endswith("small") else s > 0))
        else:
            std = float(name.split()[1]) * np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(beta)
            of_x = np.sqrt(1 - a_s - std**2) / np.sqrt(1 - a_t)
            of_x0 = np.sqrt(a_s) - of_x * np.sqrt(a_t)
        yield of_x + of_x0 * gain, of_x0 * (1 - np.sqrt(a_t) * gain), std


def law_by_the_papers(name, process, grid):
    """Mean [3] over the data's mean and variances [3] on the principal axes of what the chain from N(0, I) returns."""
    mean, variance, whole = np.zeros(3), np.ones(3), np.ones(3)
    for factor, of_mean, std in steps_by_the_papers(name, process, grid):
        mean, variance, whole = factor * mean + of_mean, factor**2 * variance + std**2, factor * whole
    return mean, variance, whole


def chain(t_max, steps):
    """The times of a chain, its end at 0 included."""
    return np.append(grids.linspace(t_max, steps), 0)


@functools.cache
def chain_program(name, process):
    """(steps [S, 2], last, x, keys) -> x after the first `last` steps: one program for all lengths of a chain."""
    run = jax.jit(lambda steps, last, x, keys: sample(SOLVERS[name], Diffusion(process, gaussian(process)), steps, x,
                                                      keys, last=last)[1])
    table = np.zeros((process.t_max, 2), np.int32)

    def padded(grid, x, keys):
        steps = grids.pairs(grid[:-1], grid[-1])
        return np.asarray(run(np.concatenate([steps, table[len(steps):]]), len(steps), x, keys))
    return padded


@functools.cache
def step_program(solver, process):
    """(x, t, s, keys, variance_fraction, mean, variances) -> (x at s, x_0_hat) of one step for data of this law."""
    def step(x, t, s, keys, fraction, mean, variances):
        law = gaussian(process, mean, variances)
        denoise = lambda *_: law(*_)._replace(variance_fraction=fraction)  # noqa: E731
        return solver.step((), x, t, s, Diffusion(process, denoise), keys, None)[1], denoise(x, t).x0
    run = jax.jit(step)
    return lambda x, t, s, keys, fraction=None, mean=MEAN, variances=VARIANCES: tuple(map(np.asarray, run(
        x, t, s, keys, np.zeros(x.shape) if fraction is None else fraction, mean, variances)))


def keys_of(seed, count):
    return jax.random.split(jax.random.key(seed), count)


PROCESS = linear(40)
X, KEYS = np.random.default_rng(0).normal(size=(6, 3)), keys_of(0, 6)


def noise():
    """What a step draws with KEYS."""
    return np.asarray(numerics.normal(KEYS, (3,), jnp.float64))


@pytest.mark.parametrize("name", SOLVERS)
def test_each_step_is_the_papers(x64, name):
    """Mean and noise of one step, between neighbours and across gaps, with the noise that its keys draw. The last step
    returns the estimate, without noise."""
    step, z = step_program(SOLVERS[name], PROCESS), noise()
    for t, s in [(40, 39), (40, 1), (40, 20), (21, 20), (7, 3), (2, 1), (40, 0), (5, 0), (3, 0), (1, 0)]:
        (factor, of_mean, std), = steps_by_the_papers(name, PROCESS, [t, s])
        expected = (X @ AXES * factor) @ AXES.T + (MEAN @ AXES * of_mean) @ AXES.T + std * z
        found, x0 = step(X, t, s, KEYS)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        if s == 0:
            np.testing.assert_array_equal(found, x0)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_chain_is_the_product_of_its_steps(x64, name):
    """Same keys in each row, so that the noise drops out of differences; rows are the origin and the basis."""
    grid = chain(40, 40)
    x = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    out = chain_program(name, PROCESS)(grid, x, jnp.broadcast_to(keys_of(0, 1), 4))
    _, _, whole = law_by_the_papers(name, PROCESS, grid)
    np.testing.assert_allclose(out[1:] - out[0], AXES @ np.diag(whole) @ AXES.T, atol=1e-13)


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_have_the_law_of_the_chain(x64, name):
    """Mean and full covariance of 50,000 chains of 12 steps, within 5 standard errors of the exact law."""
    count, grid = 50_000, chain(40, 12)
    keys = keys_of(1, count)
    x = draw_prior(PROCESS, PROCESS.t_max, keys, (3,)).astype(jnp.float64)
    out = chain_program(name, PROCESS)(grid, x, keys)
    of_mean, variance, _ = law_by_the_papers(name, PROCESS, grid)
    on_axes = (out - (MEAN @ AXES * of_mean) @ AXES.T) @ AXES
    assert np.all(np.abs(on_axes.mean(0)) < 5 * np.sqrt(variance / count))
    error = np.sqrt(np.outer(variance, variance) * (1 + np.eye(3)) / count)  # of a sample covariance (Wishart)
    assert np.all(np.abs(on_axes.T @ on_axes / count - np.diag(variance)) < 5 * error)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_law_of_the_full_chain_goes_to_the_datas(name):
    """Halving beta halves the error of the covariance. That of the mean is not the steps': x_T starts at N(0, I),
    where the data's has the mean alpha_T m, and the probability flow carries that offset to alpha_T sqrt(c) m."""
    laws = [law_by_the_papers(name, linear(steps), chain(steps, steps)) for steps in (500, 1000, 2000)]
    error = [variance / VARIANCES - 1 for _, variance, _ in laws]
    assert np.all(np.abs(error[2]) < 0.02)
    assert 1.7 < np.abs(error[0] - error[1]).max() / np.abs(error[1] - error[2]).max() < 2.2
    assert np.all(np.abs(2 * error[2] - error[1]) < 3e-3)  # the limit of T -> infinity, but for 1/T^2
    for steps, (of_mean, _, _) in zip((500, 1000, 2000), laws):
        assert np.all(np.abs(of_mean - 1) < 1.05 * np.sqrt(np.prod(1 - linear(steps).betas) * VARIANCES))


def test_ddim_is_exact_for_a_single_data_point(x64):
    """x_s ~ N(alpha_s x_0, sigma_s^2) at each step for any eta (Song et al. 2021, Lemma 1), and so for `small`."""
    z = noise()
    for name in ("ancestral small", "ddim 0", "ddim 0.5", "ddim 1"):
        step = lambda x: step_program(SOLVERS[name], PROCESS)(x, t, s, KEYS, variances=np.zeros(3))[0]  # noqa: B023, E731
        for t, s in [(40, 39), (40, 1), (30, 10), (2, 1)]:
            (alpha_t, sigma_t), (alpha_s, sigma_s) = marginal(t), marginal(s)
            mean = step(np.broadcast_to(alpha_t * MEAN, (6, 3)))
            std = ((mean[0] - mean[1]) / (z[0] - z[1])).mean()
            np.testing.assert_allclose(mean - std * z, np.broadcast_to(alpha_s * MEAN, (6, 3)), atol=1e-13)
            factor = (step(np.ones((6, 3))) - step(np.zeros((6, 3))))[0, 0]
            assert factor**2 * sigma_t**2 + std**2 == pytest.approx(sigma_s**2, rel=1e-11)


def marginal(t):
    """alpha and sigma from the betas."""
    alpha_bar = np.prod(1 - PROCESS.betas[:t])
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


def test_the_large_variance_is_exact_for_standard_normal_data(x64):
    """N(0, I) stays N(0, I) at each step (Ho et al. 2020, Section 3.2), but for the last, which adds no noise."""
    step, z = step_program(SOLVERS["ancestral large"], PROCESS), noise()
    for t, s in [(40, 39), (40, 1), (30, 10), (2, 1)]:
        at_0, at_1 = (step(np.full((6, 3), v), t, s, KEYS, mean=np.zeros(3), variances=np.ones(3))[0]
                      for v in (0.0, 1.0))
        factor, std = (at_1 - at_0).mean(), ((at_0[0] - at_0[1]) / (z[0] - z[1])).mean()
        assert factor**2 + std**2 == pytest.approx(1, rel=1e-12)
    at_1, _ = step(np.ones((6, 3)), 1, 0, KEYS, mean=np.zeros(3), variances=np.ones(3))
    np.testing.assert_allclose(at_1, marginal(1)[0], rtol=1e-13)


def test_ddim_without_noise_is_a_function_of_its_start(x64):
    x = np.random.default_rng(0).normal(size=(4, 3))
    a, b = (chain_program("ddim 0", PROCESS)(chain(40, 12), x, keys_of(seed, 4)) for seed in (0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(chain_program("ddim 0.5", PROCESS)(chain(40, 12), x, keys_of(0, 4)) - a).max() > 0.1


def test_ddim_converges_to_the_probability_flow_at_first_order(x64):
    """(x_t - alpha m) / sqrt(alpha^2 c + sigma^2) is constant along the ODE, so its end is known in closed form."""
    process, x = linear(4096), np.random.default_rng(0).normal(size=(20, 3))
    a = np.prod(1 - process.betas)
    expected = MEAN + ((x - np.sqrt(a) * MEAN) @ AXES * np.sqrt(VARIANCES / (a * VARIANCES + 1 - a))) @ AXES.T
    run, keys = chain_program("ddim 0", process), keys_of(0, 20)
    error = [np.abs(run(np.append(grids.trailing(4096, n), 0), x, keys) - expected).max()
             for n in (32, 64, 128, 256, 512)]
    order = np.log2(np.divide(error[:-1], error[1:]))
    assert np.all(np.abs(order - 1) < 0.15), (error, order)
    assert error[-1] < 0.01


def test_a_learned_variance_lies_between_small_and_large_by_their_logarithms(x64):
    """Nichol & Dhariwal (2021), Eq. 15: at v = 0 the small one, at 1 the large one, halfway the geometric mean."""
    learned, z = Ancestral(variance="learned_range"), noise()
    for t, s in [(40, 39), (40, 7), (3, 2), (2, 1)]:
        (factor, of_mean, _), = steps_by_the_papers("ancestral small", PROCESS, [t, s])  # of any variance

        def std(solver, fraction=0.0):
            out, _ = step_program(solver, PROCESS)(X, t, s, KEYS, np.full(X.shape, fraction))  # noqa: B023
            return (out - (X @ AXES * factor) @ AXES.T - (MEAN @ AXES * of_mean) @ AXES.T) / z  # noqa: B023

        small, large = std(SOLVERS["ancestral small"]), std(SOLVERS["ancestral large"])
        assert np.all(small < large)
        for fraction, expected in [(0.0, small), (1.0, large), (0.5, np.sqrt(small * large))]:
            np.testing.assert_allclose(std(learned, fraction), expected, rtol=1e-9, err_msg=f"{t} {s} {fraction}")


def test_a_learned_variance_adds_nothing_to_the_finished_picture(x64):
    out, x0 = step_program(Ancestral(variance="learned_range"), PROCESS)(X, 5, 0, KEYS, np.ones(X.shape))
    np.testing.assert_allclose(out, x0, rtol=1e-12)


def test_ddim_from_a_time_to_itself_moves_nothing(x64):
    """The last step of a chain that ends at t = 1 (diffusers' set_alpha_to_one=False)."""
    for name in ("ddim 0", "ddim 0.5"):
        np.testing.assert_allclose(step_program(SOLVERS[name], PROCESS)(X, 1, 1, KEYS)[0], X, rtol=1e-12)


def test_from_zero_snr_ddim_with_eta_1_is_the_ancestral_sampler(x64):
    """The root of what eta = 1 leaves is 0, and not that of a negative rounding error."""
    process = DiscreteProcess(betas=schedules.with_zero_terminal_snr(
        schedules.linear(40, beta_start=1e-3, beta_end=0.2)))
    denoise = lambda x, t, cond=None: Prediction(jnp.tanh(x), x)  # noqa: E731
    step = jax.jit(lambda s: [solver.step((), X, 40, s, Diffusion(process, denoise), KEYS, None)[1] for solver in (
        DDIM(eta=1.0), Ancestral(variance="small"))])
    for s in (39, 20, 1, 0):
        np.testing.assert_allclose(*step(s), rtol=1e-12, err_msg=str(s))
