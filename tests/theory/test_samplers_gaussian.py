"""Samplers with the exact denoiser of Gaussian data. Each step is then affine, so the law of the result is known
exactly: its mean and covariance follow from the steps' factors without drawing anything."""
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
    return DiscreteProcess(betas=schedules.linear(steps, start=0.1 / steps, end=20 / steps))


def gaussian(process, mean=MEAN, variances=VARIANCES, axes=AXES):
    """x_0_hat = E[x_0 | x_t], by its gain alpha c / (alpha^2 c + sigma^2) along each principal axis."""
    def denoise(x, t, cond=None):
        alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
        m, c, q = (jnp.asarray(a, float) for a in (mean, variances, axes))
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


def run(name, process, grid, x, keys, denoise=None):
    solver, steps = SOLVERS[name], grids.pairs(grid[:-1], grid[-1])
    diffusion = Diffusion(process, denoise or gaussian(process))
    return jax.jit(lambda x, keys: sample(solver, diffusion, steps, x, keys)[1])(x, keys)


def keys_of(seed, count):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("name", SOLVERS)
def test_each_step_is_the_papers(x64, name):
    """Mean and noise of one step, between neighbours and across gaps, with the noise that its keys draw."""
    process, x, keys = linear(40), np.random.default_rng(0).normal(size=(6, 3)), keys_of(0, 6)
    noise = numerics.normal(keys, (3,), jnp.float64)
    solver, denoise = SOLVERS[name], gaussian(process)
    step = jax.jit(lambda x, t, s: solver.step((), x, t, s, Diffusion(process, denoise), keys, None)[1])
    for t, s in [(40, 39), (40, 1), (40, 20), (21, 20), (7, 3), (2, 1), (40, 0), (3, 0), (1, 0)]:
        (factor, of_mean, std), = steps_by_the_papers(name, process, [t, s])
        expected = (x @ AXES * factor) @ AXES.T + (MEAN @ AXES * of_mean) @ AXES.T + std * noise
        np.testing.assert_allclose(step(x, t, s), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_chain_is_the_product_of_its_steps(x64, name):
    """Same keys in each row, so that the noise drops out of differences; rows are the origin and the basis."""
    process, grid = linear(60), chain(60, 60)
    x = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    out = run(name, process, grid, x, jnp.broadcast_to(keys_of(0, 1), 4))
    _, _, whole = law_by_the_papers(name, process, grid)
    np.testing.assert_allclose(out[1:] - out[0], AXES @ np.diag(whole) @ AXES.T, atol=1e-13)


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_have_the_law_of_the_chain(x64, name):
    """Mean and full covariance of 50,000 chains of 12 steps, within 5 standard errors of the exact law."""
    process, count = linear(60), 50_000
    grid, keys = chain(60, 12), keys_of(1, count)
    out = np.asarray(run(name, process, grid, draw_prior(process, process.t_max, keys, (3,)).astype(jnp.float64), keys))
    of_mean, variance, _ = law_by_the_papers(name, process, grid)
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
    process = linear(40)
    one_point = gaussian(process, variances=np.zeros(3))
    keys = keys_of(0, 2)
    z = numerics.normal(keys, (3,), jnp.float64)
    for name in ("ancestral small", "ddim 0", "ddim 0.5", "ddim 1"):
        solver = SOLVERS[name]
        for t, s in [(40, 39), (40, 1), (30, 10), (2, 1)]:
            step = lambda x, keys: solver.step((), x, t, s, Diffusion(process, one_point), keys, None)[1]  # noqa: B023, E731
            mean = step(jnp.broadcast_to(process.alpha(t) * MEAN, (2, 3)), keys)
            std = ((mean[0] - mean[1]) / (z[0] - z[1])).mean()
            np.testing.assert_allclose(mean - std * z, jnp.broadcast_to(process.alpha(s) * MEAN, (2, 3)), atol=1e-13)
            factor = (step(jnp.ones((2, 3)), keys) - step(jnp.zeros((2, 3)), keys))[0, 0]
            assert factor**2 * process.sigma(t) ** 2 + std**2 == pytest.approx(float(process.sigma(s)) ** 2, rel=1e-11)


def test_the_large_variance_is_exact_for_standard_normal_data(x64):
    """N(0, I) stays N(0, I) at each step (Ho et al. 2020, Section 3.2), but for the last, which adds no noise."""
    process = linear(40)
    denoise, keys = gaussian(process, np.zeros(3), np.ones(3)), keys_of(0, 2)
    solver, z = SOLVERS["ancestral large"], numerics.normal(keys, (3,), jnp.float64)
    for t, s in [(40, 39), (40, 1), (30, 10), (2, 1)]:
        at_0, at_1 = (solver.step((), jnp.full((2, 3), v), t, s, Diffusion(process, denoise), keys, None)[1]
                      for v in (0.0, 1.0))
        factor, std = (at_1 - at_0).mean(), ((at_0[0] - at_0[1]) / (z[0] - z[1])).mean()
        assert factor**2 + std**2 == pytest.approx(1, rel=1e-12)
    at_1 = solver.step((), jnp.ones((2, 3)), 1, 0, Diffusion(process, denoise), keys, None)[1]
    np.testing.assert_allclose(at_1, float(process.alpha(1)), rtol=1e-13)


@pytest.mark.parametrize("t", [1, 5, 40])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_last_step_returns_the_estimate_without_noise(name, t):
    process = linear(40)
    x = jax.random.normal(jax.random.key(0), (5, 3))
    out = SOLVERS[name].step((), x, t, 0, Diffusion(process, gaussian(process)), keys_of(1, 5), None)[1]
    np.testing.assert_array_equal(out, gaussian(process)(x, t).x0)


def test_ddim_without_noise_is_a_function_of_its_start(x64):
    process, x = linear(60), np.random.default_rng(0).normal(size=(4, 3))
    a, b = (run("ddim 0", process, chain(60, 12), x, keys_of(seed, 4)) for seed in (0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(run("ddim 0.5", process, chain(60, 12), x, keys_of(0, 4)) - a).max() > 0.1


def test_ddim_converges_to_the_probability_flow_at_first_order(x64):
    """(x_t - alpha m) / sqrt(alpha^2 c + sigma^2) is constant along the ODE, so its end is known in closed form."""
    process, x = linear(4096), np.random.default_rng(0).normal(size=(20, 3))
    a = np.prod(1 - process.betas)
    expected = MEAN + ((x - np.sqrt(a) * MEAN) @ AXES * np.sqrt(VARIANCES / (a * VARIANCES + 1 - a))) @ AXES.T
    error = [float(jnp.abs(run("ddim 0", process, grids.trailing(4096, n), x, keys_of(0, 20)) - expected).max())
             for n in (32, 64, 128, 256, 512)]
    order = np.log2(np.divide(error[:-1], error[1:]))
    assert np.all(np.abs(order - 1) < 0.15), (error, order)
    assert error[-1] < 0.01


@pytest.mark.parametrize("t, s", [(40, 39), (40, 7), (3, 2), (2, 1)])
def test_a_learned_variance_lies_between_small_and_large_by_their_logarithms(x64, t, s):
    """Nichol & Dhariwal (2021), Eq. 15: at v = 0 the small one, at 1 the large one, halfway the geometric mean."""
    process, x, keys = linear(40), np.random.default_rng(0).normal(size=(6, 3)), keys_of(0, 6)
    noise = numerics.normal(keys, (3,), jnp.float64)

    def std(variance, fraction=None):
        denoise = lambda *_: gaussian(process)(*_)._replace(variance_fraction=fraction)  # noqa: E731
        solver = Ancestral(variance=variance)
        out = solver.step((), x, t, s, Diffusion(process, denoise), keys, None)[1]
        return (out - process.posterior(x, gaussian(process)(x, t).x0, s, t).mean) / noise

    small, large = std("small"), std("large")
    assert np.all(small < large)
    for fraction, expected in [(0.0, small), (1.0, large), (0.5, np.sqrt(small * large))]:
        np.testing.assert_allclose(std("learned_range", np.full(x.shape, fraction)), expected, rtol=1e-9)


def test_a_learned_variance_adds_nothing_to_the_finished_picture(x64):
    process, x, keys = linear(40), np.random.default_rng(0).normal(size=(6, 3)), keys_of(0, 6)
    denoise = lambda *_: gaussian(process)(*_)._replace(variance_fraction=np.ones((6, 3)))  # noqa: E731
    out = Ancestral(variance="learned_range").step((), x, 5, 0, Diffusion(process, denoise), keys, None)[1]
    np.testing.assert_allclose(out, denoise(x, 5).x0, rtol=1e-12)


def test_ddim_from_a_time_to_itself_moves_nothing(x64):
    """The last step of a chain that ends at t = 1 (diffusers' set_alpha_to_one=False)."""
    process, x, keys = linear(40), np.random.default_rng(0).normal(size=(6, 3)), keys_of(0, 6)
    for eta in (0.0, 0.7):
        out = DDIM(eta=eta).step((), x, 1, 1, Diffusion(process, gaussian(process)), keys, None)[1]
        np.testing.assert_allclose(out, x, rtol=1e-12)


@pytest.mark.parametrize("s", [39, 20, 1, 0])
def test_from_zero_snr_ddim_with_eta_1_is_the_ancestral_sampler(x64, s):
    """The root of what eta = 1 leaves is 0, and not that of a negative rounding error."""
    process = DiscreteProcess(betas=schedules.zero_terminal_snr(schedules.linear(40, start=1e-3, end=0.2)))
    x, keys = np.random.default_rng(0).normal(size=(6, 3)), keys_of(0, 6)
    denoise = lambda x, t, cond=None: Prediction(jnp.tanh(x), x)  # noqa: E731
    ddim, ancestral = (solver.step((), x, 40, s, Diffusion(process, denoise), keys, None)[1] for solver in (
        DDIM(eta=1.0), Ancestral(variance="small")))
    np.testing.assert_allclose(ddim, ancestral, rtol=1e-12)
