"""The denoising loss: its known minimum for Gaussian data, and what each example's value depends on."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import losses, schedules, time_densities, weightings
from diffusion.core.numerics import expand
from diffusion.core.parameterization import Prediction
from diffusion.core.processes import DiscreteProcess

PROCESS = DiscreteProcess(betas=schedules.linear(1000))
MEAN, STD = np.array([0.5, -1.0, 0.0]), np.array([0.3, 1.0, 2.0])  # of the data's coordinates
BATCH = 20_000
ZERO = lambda x_t, t, cond: Prediction(jnp.zeros_like(x_t), jnp.zeros_like(x_t))  # noqa: E731


def at(t):
    """A time density with all its mass at t."""
    return lambda keys, process: jnp.full(keys.shape, t)


def exact(shift=0.0, scale=1.0):
    """E[eps | x_t] of the Gaussian data, spoilt by a factor and a shift."""
    def denoise(x_t, t, cond):
        alpha, sigma, mean = expand(PROCESS.alpha(t), x_t), expand(PROCESS.sigma(t), x_t), jnp.asarray(MEAN, float)
        eps = scale * sigma * (x_t - alpha * mean) / (alpha**2 * jnp.asarray(STD, float) ** 2 + sigma**2) + shift
        return Prediction((x_t - sigma * eps) / alpha, eps)
    return denoise


@pytest.fixture(scope="module")
def data():
    x0 = MEAN + STD * np.random.default_rng(0).normal(size=(BATCH, 3))
    return jax.random.split(jax.random.key(0), BATCH), x0


@jax.jit
def evaluate(keys, x0, t, shift, scale):
    loss = losses.make_denoising_loss(PROCESS, at(t), weightings.simple)
    return loss(keys, exact(shift, scale), x0, None)


def run(data, t, shift=0.0, scale=1.0):
    return evaluate(*data, t, shift, scale)


def variances(t):
    """(posterior variance of eps given x_t, variance of E[eps | x_t]), each a mean over the coordinates."""
    alpha_bar = np.cumprod(1 - PROCESS.betas)[t - 1]
    total = alpha_bar * STD**2 + (1 - alpha_bar)
    return np.mean(alpha_bar * STD**2 / total), np.mean((1 - alpha_bar) / total)


@pytest.mark.parametrize("t", [1, 10, 100, 300, 600, 1000])
def test_the_exact_denoiser_reaches_the_posterior_variance(x64, data, t):
    """min E||eps - eps_hat||^2 = Var[eps | x_t] = alpha^2 c / (alpha^2 c + sigma^2) for data of variance c."""
    per_example, aux = run(data, t)
    error = abs(per_example.mean() - variances(t)[0])
    assert error < 4 * per_example.std() / BATCH**0.5
    np.testing.assert_allclose(aux.log_snr, float(PROCESS.log_snr(t)))


@pytest.mark.parametrize("t", [1, 100, 300, 1000])
@pytest.mark.parametrize("shift, scale", [(0.1, 1.0), (-0.1, 1.0), (0.0, 0.9), (0.0, 1.1), (0.05, 1.05)])
def test_any_other_denoiser_is_worse_by_its_squared_distance(x64, data, t, shift, scale):
    """E||eps - (eps* + d)||^2 = minimum + E||d||^2: the best guess is orthogonal to every error that x_t can see."""
    excess = run(data, t, shift, scale)[0] - run(data, t)[0]
    expected = shift**2 + (scale - 1) ** 2 * variances(t)[1]
    assert expected > 0 and abs(excess.mean() - expected) < 4 * excess.std() / BATCH**0.5


def test_the_minimum_over_all_times_is_the_mean_over_times(x64, data):
    keys, x0 = data
    loss = losses.make_denoising_loss(PROCESS, time_densities.uniform_discrete, weightings.simple)
    per_example, aux = jax.jit(lambda k, x: loss(k, exact(), x, None))(keys, x0)
    expected = np.mean([variances(t)[0] for t in range(1, 1001)])
    assert abs(per_example.mean() - expected) < 4 * per_example.std() / BATCH**0.5
    t = np.argmin(np.abs(np.asarray(aux.log_snr)[:, None] - np.asarray(PROCESS.log_snr(np.arange(1001)))), axis=1)
    assert t.min() >= 1 and abs(t.mean() - 500.5) < 4 * 289 / BATCH**0.5


def test_the_weight_multiplies_each_example(x64, data):
    @jax.jit
    def weighted(keys, x0):
        return [losses.make_denoising_loss(PROCESS, at(700), weighting)(keys, exact(), x0, None)
                for weighting in (weightings.simple, *others)]

    others = (weightings.truncated_snr, weightings.snr_plus_one, weightings.min_snr)
    (plain, aux), *rest = weighted(data[0][:100], data[1][:100])
    for weighting, (per_example, _) in zip(others, rest):
        np.testing.assert_allclose(per_example, weighting(aux.log_snr) * plain, rtol=1e-12)


@jax.jit
def drawn_noise(keys, x0):
    """Loss, t and eps of the draw, as the denoiser sees them."""
    seen = {}

    def denoise(x_t, t, cond):
        seen.update(x_t=x_t, t=t, cond=cond)
        return ZERO(x_t, t, cond)

    loss = losses.make_denoising_loss(PROCESS, time_densities.uniform_discrete, weightings.simple)
    per_example, _ = loss(keys, denoise, x0, "cond")
    assert seen["cond"] == "cond"
    alpha, sigma = (expand(a(seen["t"]), x0) for a in (PROCESS.alpha, PROCESS.sigma))
    return per_example, seen["t"], (seen["x_t"] - alpha * x0) / sigma


def test_the_denoiser_sees_the_noise_that_it_is_judged_by():
    per_example, _, eps = drawn_noise(jax.random.split(jax.random.key(1), 256), jnp.full((256, 8, 8, 1), 0.7))
    np.testing.assert_allclose(per_example, np.mean(eps**2, (1, 2, 3)), rtol=2e-4)


def test_no_two_examples_share_noise():
    _, t, eps = drawn_noise(jax.random.split(jax.random.key(1), 256), jnp.zeros((256, 8, 8, 1)))
    eps = np.asarray(eps).reshape(256, -1)
    correlation = np.corrcoef(eps) - np.eye(256)
    assert np.abs(correlation).max() < 5.5 / 64**0.5  # of 33,000 pairs, each within 1/sqrt(64)
    assert len(np.unique(eps)) > 0.999 * eps.size and len(np.unique(t)) > 200
    # The noise is not tied to the time either: its mean and the time are independent.
    assert abs(np.corrcoef(eps.mean(1), t)[0, 1]) < 4 / 256**0.5


def test_an_example_depends_on_its_own_key_and_data_alone(data):
    keys, x0 = data[0][:8], jnp.asarray(data[1][:8], jnp.float32)
    loss = jax.jit(lambda k, x: losses.make_denoising_loss(
        PROCESS, time_densities.uniform_discrete, weightings.snr_plus_one)(k, exact(), x, None)[0])
    whole = loss(keys, x0)
    assert whole.shape == (8,) and whole.dtype == jnp.float32
    order = np.array([3, 0, 7, 1, 6, 2, 5, 4])
    np.testing.assert_array_equal(loss(keys[order], x0[order]), whole[order])
    np.testing.assert_array_equal(loss(keys, x0.at[1:].set(0.0))[0], whole[0])
    changed = jnp.concatenate([keys[:1], jax.random.split(jax.random.key(9), 7)])
    np.testing.assert_array_equal(loss(changed, x0)[0], whole[0])
    assert np.all(np.asarray(loss(changed, x0)[1:]) != np.asarray(whole[1:]))
    np.testing.assert_allclose(loss(keys[2:5], x0[2:5]), whole[2:5], rtol=1e-6)
