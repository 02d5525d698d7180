"""The losses: their known minimum for Gaussian data, and what each example's value depends on."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import continuous, losses, preconditioning, schedules, weightings
from diffusion.core import time_densities as td
from diffusion.core.numerics import expand
from diffusion.core.parameterization import EPS, SCORE, VELOCITY, X0, Diffusion, Prediction, V
from diffusion.core.processes import DiscreteProcess
from diffusion.core.uncertainty import Uncertainty

# Most of the time of these tests is the compiler's: this takes a third of it away.
PROCESS = DiscreteProcess(betas=schedules.linear(1000))
MEAN, STD = np.array([0.5, -1.0, 0.0]), np.array([0.3, 1.0, 2.0])  # of the data's coordinates
BATCH = 20_000
ZERO = lambda x_t, t, cond: Prediction(jnp.zeros_like(x_t), jnp.zeros_like(x_t))  # noqa: E731
SIMPLE = losses.make_denoising_loss(weightings.in_space(None, EPS))


def at(t, size=BATCH):
    """Times that are all t."""
    return td.Times(jnp.full(size, t), jnp.full(size, 1e-3))


def exact(shift=0.0, scale=1.0, process=PROCESS):
    """E[eps | x_t] of the Gaussian data, spoilt by a factor and a shift."""
    def denoise(x_t, t, cond):
        alpha, sigma = expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)
        mean, std = jnp.asarray(MEAN[None], float), jnp.asarray(STD[None], float)
        eps = scale * sigma * (x_t - alpha * mean) / (alpha**2 * std**2 + sigma**2) + shift
        return Prediction((x_t - sigma * eps) / alpha, eps)
    return Diffusion(process, denoise)


@pytest.fixture(scope="module")
def data():
    x0 = MEAN + STD * np.random.default_rng(0).normal(size=(BATCH, 3))
    return jax.random.split(jax.random.key(0), BATCH), x0


@jax.jit
def evaluate(keys, x0, t, shift, scale):
    return SIMPLE({}, exact(shift, scale), x0, None, at(t), keys)


def run(data, t, shift=0.0, scale=1.0):
    return jax.tree.map(np.asarray, evaluate(*data, t, shift, scale))


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


@pytest.mark.parametrize("density", [td.UniformDiscrete(), td.Importance(steps=1000, history=1)])
def test_the_minimum_over_all_times_is_the_mean_over_times(x64, data, density):
    """By importance sampling, too, with any history: here one that likes late times."""
    keys, x0 = data
    state = {"losses": jnp.linspace(0.1, 1, 1000)[:, None], "counts": jnp.ones(1000)} if density.init() else ()

    @jax.jit
    def loss(keys, x0):
        u = td.stratified(jax.random.key(5), jnp.arange(BATCH), BATCH)
        return SIMPLE({}, exact(), x0, None, density.draw(u, PROCESS, state), keys)

    per_example, aux = jax.tree.map(np.asarray, loss(keys, x0))
    expected = np.mean([variances(t)[0] for t in range(1, 1001)])
    assert abs(per_example.mean() - expected) < 4 * per_example.std() / BATCH**0.5
    assert aux.t.min() >= 1
    np.testing.assert_allclose(aux.log_snr, PROCESS.log_snr(aux.t))
    importance = np.asarray(per_example / aux.term)
    np.testing.assert_allclose(aux.weight, importance, rtol=1e-10)
    assert np.ptp(importance) > 1 if state else np.all(importance == 1)
    expected_t = 500.5 if not state else np.average(np.arange(1, 1001), weights=density.probabilities(state))
    assert abs(aux.t.mean() - expected_t) < 1


def test_the_weight_multiplies_each_example(x64, data):
    others = (weightings.truncated_snr, weightings.snr_plus_one, weightings.min_snr, weightings.p2, weightings.edm)

    @jax.jit
    def weighted(keys, x0):
        return [losses.make_denoising_loss(weightings.in_space(weighting, EPS))(
            {}, exact(), x0, None, at(700, 100), keys) for weighting in (None, *others)]

    (plain, _), *rest = weighted(data[0][:100], data[1][:100])
    for weighting, (per_example, aux) in zip(others, rest):
        signal = jax.nn.sigmoid(aux.log_snr)  # alpha^2
        np.testing.assert_allclose(per_example, weighting(signal, 1 - signal) / signal * plain, rtol=1e-12)
        np.testing.assert_allclose(aux.weight, weighting(signal, 1 - signal) / signal, rtol=1e-12)


SPACES = {"eps": EPS, "x0": X0, "v": V, "score": SCORE, "velocity": VELOCITY, "edm": preconditioning.edm(0.5)}


@pytest.mark.parametrize("process", [PROCESS, continuous.VP(), continuous.SubVP(), continuous.Flow(),
                                     continuous.VarianceExploding()], ids=["chain", "vp", "sub-vp", "flow", "edm"])
def test_one_weighting_is_one_loss_in_every_space(x64, data, process):
    """The error is measured in the space, and a weight on eps converted to it: the same number."""
    keys, x0 = data[0][:50], data[1][:50]
    t = np.linspace(process.t_min, process.t_max, 52)[1:-1]

    @jax.jit
    def evaluate(t, x0):
        def per_example(space, weighting):
            weight = weightings.in_space(weighting, space)
            times = td.Times(t, jnp.ones(50))
            loss, aux = losses.make_denoising_loss(weight, space)({}, exact(0.1, 0.8, process), x0, None, times, keys)
            return loss, aux.weight
        return {name: (per_example(space, weightings.snr_plus_one), per_example(space, None))
                for name, space in SPACES.items()}

    found = evaluate(t.astype(int) if process is PROCESS else t, x0)
    (reference, weight_of_eps), _ = found["eps"]
    for name, ((ours, weight), (plain, plain_weight)) in found.items():
        np.testing.assert_allclose(ours, reference, rtol=1e-8, err_msg=name)
        np.testing.assert_allclose(weight, weight_of_eps, rtol=1e-8, err_msg=name)
        # With no weighting it is the plain squared error in that space.
        np.testing.assert_allclose(plain, plain_weight / weight_of_eps * reference, rtol=1e-8, err_msg=name)


def numbers(x):
    return np.asarray(x, np.float64)


def test_the_exact_denoiser_is_where_the_gradient_is_zero(x64, data):
    """In the mean over the draws, of every space: d/d(shift), d/d(scale) of E[L] is 0 within its error."""
    keys, x0 = data
    t = np.random.default_rng(1).uniform(0.02, 0.98, BATCH)

    @jax.jit
    def slopes(t, x0):
        def values(spoilt):
            return {name: losses.make_denoising_loss(weightings.in_space(weightings.min_snr, space), space)(
                {}, exact(*spoilt, continuous.VP()), x0, None, td.Times(t, jnp.ones(BATCH)), keys)[0]
                for name, space in SPACES.items()}
        return [jax.jvp(values, ((0.0, 1.0),), (direction,))[1] for direction in ((1.0, 0.0), (0.0, 1.0))]

    for by_space in slopes(t, x0):
        for name, slope in by_space.items():
            slope = numbers(slope)
            assert abs(slope.mean()) < 4 * slope.std() / BATCH**0.5 and slope.std() > 0, name


def test_pairs_of_density_and_weighting_with_the_same_product_have_the_same_loss(x64, data):
    """Kingma & Gao (2023): the loss depends on the process and the density by w(lambda) p(lambda) alone."""
    keys, x0 = data
    u = td.stratified(jax.random.key(1), jnp.arange(BATCH), BATCH)
    cosine = continuous.Cosine(log_snr_min=-9.0, log_snr_max=9.0)
    edm = continuous.VarianceExploding(sigma_min=math.exp(-4.5), sigma_max=math.exp(4.5))
    settings = [(cosine, td.Uniform(), EPS), (cosine, td.LogitNormal(std=1.5), V),  # on the log-SNRs from -9 to 9
                (edm, td.LogNormal(mean=0.0, std=2.0), X0), (edm, td.CosineLogSnr(), SCORE)]

    @jax.jit
    def evaluate(keys, x0):
        results = []
        for process, density, space in settings:
            weight = weightings.in_space(weightings.sigmoid, space, per_log_snr=True)
            results.append(losses.make_denoising_loss(weight, space)(
                {}, exact(0.0, 0.7, process), x0, None, density.draw(u, process), keys)[0])
        return results

    # The spoilt guess 0.7 E[eps | x_t] errs, in the mean, by Var[eps | x_t] + 0.09 Var[E[eps | x_t]].
    x = np.linspace(-9, 9, 20001)
    signal = np.exp(x)[:, None] * STD**2
    error = np.mean((signal + 0.09) / (1 + signal), axis=1) + 0 * x
    expected = np.trapezoid(error / (1 + np.exp(x - 2)), x)
    for per_example in map(numbers, evaluate(keys, x0)):
        assert abs(per_example.mean() - expected) < 4 * per_example.std() / BATCH**0.5
        assert per_example.std() / BATCH**0.5 < 0.03 * expected


def test_likelihood_weighting_is_that_of_score_sde(x64, data):
    """g(t)^2 ||score - score_hat||^2 under uniform t, of their `likelihood_weighting`."""
    keys, x0 = data[0][:200], data[1][:200]
    weight = weightings.in_space(weightings.likelihood, EPS, per_log_snr=True)

    @jax.jit
    def evaluate(keys, x0):
        def of_process(process):
            times = td.Uniform().draw(td.independent(keys), process)
            return *[losses.make_denoising_loss(*weighting)({}, exact(0.1, 0.8, process), x0, None, times, keys)[0]
                     for weighting in ((weight, EPS), (weightings.in_space(None, SCORE), SCORE))
                     ], process.drift_and_diffusion(times.t)[1] ** 2 * (process.t_max - process.t_min)
        return list(map(of_process, (continuous.VP(), continuous.SubVP(), continuous.VE())))

    for ours, plain, factor in evaluate(keys, x0):
        np.testing.assert_allclose(ours, factor * plain, rtol=1e-8)


def test_uncertainty_is_least_at_the_logarithm_of_the_loss(x64, data):
    """EDM2, Eqs. 14-15 and 21: L e^-u + u, whose gradient in u is 1 - L e^-u."""
    keys, x0 = data[0][:500], data[1][:500]
    net = Uncertainty(channels=16)
    loss = losses.make_denoising_loss(weightings.in_space(None, EPS), uncertainty=net)
    weights, of_start = np.random.default_rng(0).normal(size=16), np.asarray(net.init()["weight"], float)

    def values(weight):
        params = {"uncertainty": {"weight": weight}}
        plain, aux = SIMPLE({}, exact(), x0, None, at(300, 500), keys)
        return plain, loss(params, exact(), x0, None, at(300, 500), keys), net(params["uncertainty"], aux.log_snr)

    evaluate = jax.jit(values)
    plain, (start, _), _ = evaluate(of_start)
    np.testing.assert_allclose(start, plain)
    _, (value, told), u = evaluate(weights)
    u = np.asarray(u)
    assert u.shape == (500,) and np.ptp(u) < 1e-12 and abs(u[0]) > 0.01
    np.testing.assert_allclose(value, plain * np.exp(-u) + u, rtol=1e-12)
    np.testing.assert_allclose(told.weight, np.exp(-u), rtol=1e-12)

    gradient = jax.grad(lambda weight: jnp.mean(values(weight)[1][0]))
    trained = jax.jit(lambda weight: jax.lax.fori_loop(0, 300, lambda _, w: w - 0.2 * gradient(w), weight))(of_start)
    np.testing.assert_allclose(np.exp(evaluate(trained)[2][0]), plain.mean(), rtol=1e-3)


def test_uncertainty_can_follow_any_curve(x64):
    """Its Fourier features fit ln L(lambda) of a Gaussian, from log-SNR -10 to 10, by least squares."""
    net, x = Uncertainty(), jnp.linspace(-10, 10, 400)
    features = np.asarray(jax.jit(jax.jacobian(lambda w: net({"weight": w}, x)))(jnp.zeros(128)))
    target = -np.log1p(np.exp(np.asarray(x)))
    fit = features @ np.linalg.lstsq(features, target, rcond=1e-10)[0]
    assert np.abs(fit - target).max() < 0.02


@jax.jit
def drawn_noise(keys, x0):
    """Loss, t and eps of the draw, as the denoiser sees them."""
    seen = {}

    def denoise(x_t, t, cond):
        seen.update(x_t=x_t, t=t, cond=cond)
        return ZERO(x_t, t, cond)

    times = td.UniformDiscrete().draw(td.independent(jax.vmap(jax.random.fold_in, (0, None))(keys, 1)), PROCESS)
    per_example, _ = SIMPLE({}, Diffusion(PROCESS, denoise), x0, "cond", times, keys)
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
    weighted = losses.make_denoising_loss(weightings.in_space(weightings.snr_plus_one, EPS))

    @jax.jit
    def loss(k, x):
        return weighted({}, exact(), x, None, td.UniformDiscrete().draw(td.independent(k), PROCESS), k)[0]

    whole = loss(keys, x0)
    assert whole.shape == (8,) and whole.dtype == jnp.float32
    order = np.array([3, 0, 7, 1, 6, 2, 5, 4])
    np.testing.assert_array_equal(loss(keys[order], x0[order]), whole[order])
    np.testing.assert_array_equal(loss(keys, x0.at[1:].set(0.0))[0], whole[0])
    changed = jnp.concatenate([keys[:1], jax.random.split(jax.random.key(9), 7)])
    np.testing.assert_array_equal(loss(changed, x0)[0], whole[0])
    assert np.all(np.asarray(loss(changed, x0)[1:]) != np.asarray(whole[1:]))
    np.testing.assert_allclose(loss(keys[2:5], x0[2:5]), whole[2:5], rtol=1e-6)


def test_uncertainty_is_a_layer_on_features_of_c_noise(x64):
    """EDM2: sqrt(2) cos(2 pi (f c + p)) of c = ln(sigma/alpha) / 4 = -lambda / 8, f ~ N(0, 1), p ~ U(0, 1), fixed."""
    log_snr, weight = np.linspace(-8, 8, 5), np.arange(1.0, 5.0)
    random = np.random.default_rng(0)
    frequencies, phases = random.standard_normal(4), random.uniform(size=4)
    features = np.sqrt(2) * np.cos(2 * np.pi * (-log_snr[:, None] / 8 * frequencies + phases))
    np.testing.assert_allclose(Uncertainty(channels=4)({"weight": weight}, log_snr), features @ weight / 2, rtol=1e-10)
