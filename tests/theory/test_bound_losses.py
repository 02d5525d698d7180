"""The losses that are variational bounds, discrete and continuous: their values for Gaussian data, what they teach."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion import config as config_lib
from diffusion.build.objective import objective
from diffusion.build.processes import process
from diffusion.core import continuous, losses, schedules, variational, weightings
from diffusion.core import time_densities as td
from diffusion.core.learned_schedule import LearnedSchedule
from diffusion.core.numerics import expand, normal
from diffusion.core.parameterization import EPS, Diffusion, Prediction
from diffusion.core.processes import DiscreteProcess

# Most of the time of these tests is the compiler's: this takes a third of it away.
CHAIN = DiscreteProcess(betas=schedules.linear(20, beta_start=0.005, beta_end=0.6))
BATCH = 20_000
STD = np.array([0.2, 0.5, 1.0])


def exact(process, fraction=None, scale=1.0):
    """E[x_0 | x_t] of data N(0, STD^2) in every coordinate."""
    def denoise(x_t, t, cond):
        alpha, sigma = expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)
        eps = scale * sigma * x_t / (alpha**2 * jnp.asarray(STD[None], float) ** 2 + sigma**2)
        return Prediction((x_t - sigma * eps) / alpha, eps, None if fraction is None else fraction + 0 * x_t)
    return Diffusion(process, denoise)


@pytest.fixture(scope="module")
def data():
    """Levels of a byte, so that the decoder's term is one of them."""
    x0 = np.clip(np.random.default_rng(0).normal(size=(BATCH, 3)) * STD, -1, 1)
    return jax.random.split(jax.random.key(0), BATCH), np.round((x0 + 1) * 127.5) / 127.5 - 1


@functools.cache
def terms_by_quadrature(variance):
    """L_0 .. L_{T-1} of the chain in the mean over the data's law, by Gauss-Hermite in eps for each coordinate."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    x0 = np.clip(stats.norm.ppf((np.arange(1000) + 0.5) / 1000)[:, None] * STD, -1, 1)  # of each coordinate's law
    x0 = np.round((x0 + 1) * 127.5) / 127.5 - 1

    @jax.jit
    def of_t(t):
        def of_node(total, node_and_weight):
            node, weight = node_and_weight
            x_t = CHAIN.diffuse(x0, t, jnp.full(x0.shape, node))
            return total + weight * variational.vlb_term(exact(CHAIN), x0, x_t, t, None, variance).mean(), None
        return jax.lax.scan(of_node, 0.0, (nodes, weights / weights.sum()))[0]
    return np.array([of_t(t) for t in range(1, 21)])


@pytest.mark.parametrize("variance, density", [("large", td.UniformDiscrete()),
                                               ("small", td.Importance(steps=20, history=1))])
def test_l_vlb_is_the_sum_of_the_likelihood_codes_terms(x64, data, variance, density):
    keys, x0 = data
    state = {"losses": jnp.linspace(1.0, 0.05, 20)[:, None], "counts": jnp.ones(20)} if density.init() else ()
    loss = losses.make_vlb_loss(variance)

    @jax.jit
    def evaluate(keys, x0):
        u = td.stratified(jax.random.key(1), jnp.arange(BATCH), BATCH)
        # Stratified times in the order of u: the rows of the data are independent of it.
        return loss({}, exact(CHAIN), x0, None, density.draw(u, CHAIN, state), keys)

    per_example, aux = jax.tree.map(np.asarray, evaluate(keys, x0))
    expected = terms_by_quadrature(variance)
    assert abs(per_example.mean() - expected.sum()) < 4 * per_example.std() / BATCH**0.5 + 0.01 * expected.sum()
    for t in (1, 7, 20):  # and term is T L_t, which is what the importance sampler goes by
        rows = np.asarray(aux.t) == t
        of_t = np.asarray(aux.term)[rows]
        error = 5 * of_t.std() / rows.sum() ** 0.5 / 20
        assert abs(of_t.mean() / 20 - expected[t - 1]) < error + 0.02 * expected[t - 1]


def test_hybrid_is_simple_plus_a_thousandth_of_the_bound(x64, data):
    keys, x0 = data[0][:200], data[1][:200]
    times = td.UniformDiscrete().draw(td.independent(keys), CHAIN)
    weight = weightings.in_space(None, EPS)
    hybrid, simple, vlb = jax.jit(lambda x0: [loss({}, exact(CHAIN, 0.3, 0.9), x0, None, times, keys)[0] for loss in (
        losses.make_hybrid_loss("learned_range", weight), losses.make_denoising_loss(weight),
        losses.make_vlb_loss("learned_range"))])(x0)
    np.testing.assert_allclose(hybrid, simple + 0.001 * vlb, rtol=1e-12)


def test_hybrid_teaches_the_mean_by_simple_and_the_variance_by_the_bound(x64, data):
    """The stop-gradient of Nichol & Dhariwal (2021), Section 3.1; one call of the network."""
    keys, x0 = data[0][:200], data[1][:200]
    times = td.UniformDiscrete().draw(td.independent(keys), CHAIN)
    weight = weightings.in_space(None, EPS)
    calls = []

    def gradient(params, loss):
        def mean(params):
            diffusion = exact(CHAIN, params["fraction"], params["scale"])
            counted = diffusion._replace(denoise=lambda *a: (calls.append(loss), diffusion.denoise(*a))[1])
            return jnp.mean(loss(params, counted, x0, None, times, keys)[0])
        return jax.grad(mean)(params)

    three = (losses.make_hybrid_loss("learned_range", weight), losses.make_denoising_loss(weight),
             losses.make_vlb_loss("learned_range"))
    evaluate = jax.jit(lambda params: [gradient(params, loss) for loss in three])
    hybrid, simple, vlb = evaluate({"fraction": 0.3, "scale": 0.9})
    assert calls.count(three[0]) == 1
    np.testing.assert_allclose(hybrid["scale"], simple["scale"], rtol=1e-12)
    np.testing.assert_allclose(hybrid["fraction"], 0.001 * vlb["fraction"], rtol=1e-12)
    assert abs(vlb["scale"]) > 1e-3 and abs(vlb["fraction"]) > 1e-3 and simple["fraction"] == 0


def test_gradients_are_finite_at_every_time_in_float32():
    x0 = np.random.default_rng(0).integers(0, 256, (20, 3)).astype(np.float32) / np.float32(127.5) - 1
    keys, times = jax.random.split(jax.random.key(0), 20), td.Times(jnp.arange(1, 21), jnp.full(20, 0.05))
    every = (losses.make_vlb_loss("small"), losses.make_vlb_loss("learned_range"),
             losses.make_hybrid_loss("learned_range", weightings.in_space(None, EPS)))

    def values(scale):
        return [loss({}, exact(CHAIN, 0.5, scale), x0, None, times, keys)[0] for loss in every]
    for value, jacobian in zip(*jax.jit(lambda scale: (values(scale), jax.jacobian(values)(scale)))(np.float32(0.3))):
        assert jacobian.shape == (20,) and jacobian.dtype == np.float32
        assert np.all(np.isfinite(jacobian)) and np.all(np.isfinite(value))


WIDE, LINEAR = td.LogNormal(mean=0.0, std=3.0), LearnedSchedule(hidden=0).process({})
VE_50 = continuous.VE(sigma_min=0.01, sigma_max=50.0)


# Uniform times only where lambda is linear in t: elsewhere their estimate varies too much to be tested.
@pytest.mark.parametrize("process, density", [
    (LINEAR, td.Uniform()), (LINEAR, WIDE), (VE_50, td.Uniform()), (continuous.VP(), WIDE),
    (continuous.VarianceExploding(), WIDE), (continuous.Cosine(log_snr_min=-5.0, log_snr_max=13.3), WIDE)])
def test_the_continuous_bound_of_a_gaussian(x64, data, process, density):
    """prior + 1/2 int Var[eps | x] d lambda + decoder; Var[eps | x] = c e^lambda / (1 + c e^lambda), whose integral is
    a difference of ln(1 + c e^lambda). Any density of times gives the same number."""
    keys, x0 = data
    loss = losses.make_continuous_vlb_loss()

    @jax.jit
    def evaluate(keys, x0):
        u = td.stratified(jax.random.key(1), jnp.arange(BATCH), BATCH)
        plain = variational.reconstruction_term(process, x0, jax.random.normal(jax.random.key(9), x0.shape))
        return loss({}, exact(process), x0, None, density.draw(u, process), keys)[0], plain

    per_example, reconstruction = map(np.asarray, evaluate(keys, x0))
    clean, noisy = (float(process.log_snr(jnp.asarray(t))) for t in (td.clean_end(process), process.t_max))
    c = np.mean(x0**2, axis=0)
    # The denoiser is that of the variance STD^2, and the rows have nearly that, c: its error, in the mean, is
    # Var + (shrinkage of another law); both are close, so compare with the integral for the error itself.
    x = np.linspace(noisy, clean, 40001)[:, None]
    signal = np.exp(x)
    gain = 1 / (1 + signal * STD**2)  # eps_hat = gain (sqrt(SNR) x_0 + eps), in units of sigma
    error = (1 - gain) ** 2 + gain**2 * signal * c
    diffusion = np.trapezoid(np.mean(error, axis=1), x[:, 0]) / 2 / np.log(2)
    prior = np.asarray(variational.prior_term(process, jnp.asarray(x0))).mean()
    expected = diffusion + prior + reconstruction.mean()
    assert abs(per_example.mean() - expected) < 4 * (per_example.std() + reconstruction.std()) / BATCH**0.5
    assert per_example.std() / BATCH**0.5 < 0.02 * abs(expected)
    closed = np.mean(np.log1p(np.exp(clean) * STD**2) - np.log1p(np.exp(noisy) * STD**2)) / 2 / np.log(2)
    assert abs(diffusion - closed) < 0.03 * closed


def test_the_diffusion_term_is_the_likelihood_weighting(x64, data):
    """1/(2 ln 2) of it, per log-SNR: what is left when the terms without a network are taken off."""
    keys, x0 = data[0][:300], data[1][:300]
    process, fold = continuous.VP(), jax.vmap(jax.random.fold_in, (0, None))
    weight = weightings.in_space(weightings.likelihood, EPS, per_log_snr=True)

    @jax.jit
    def evaluate(keys, x0):
        times, diffusion = td.LogNormal().draw(td.independent(keys), process), exact(process, scale=0.8)
        rest = variational.prior_term(process, x0) + variational.reconstruction_term(
            process, x0, normal(fold(keys, 1), x0.shape[1:], x0.dtype))
        return (losses.make_continuous_vlb_loss()({}, diffusion, x0, None, times, keys), rest,
                losses.make_denoising_loss(weight)({}, diffusion, x0, None, times, fold(keys, 0)))

    (bound, aux), rest, (weighted, told) = jax.tree.map(np.asarray, evaluate(keys, x0))
    np.testing.assert_allclose(bound - rest, weighted / (2 * np.log(2)), rtol=1e-6)
    np.testing.assert_allclose(aux.weight, told.weight / (2 * np.log(2)), rtol=1e-8)


def test_the_discrete_bound_comes_near_the_continuous_one(x64, data):
    """The bound of the VP chain with many steps, against its integral between the same log-SNRs (VDM, Section 4)."""
    keys, x0 = data
    chain = DiscreteProcess(betas=schedules.linear(2000, beta_start=1e-4 / 2, beta_end=0.02 / 2))

    @jax.jit
    def evaluate(keys, x0):
        u = td.stratified(jax.random.key(1), jnp.arange(BATCH), BATCH)
        times = td.UniformDiscrete().draw(u, chain)
        times = times._replace(t=jnp.maximum(times.t, 2))  # without the decoder
        return losses.make_vlb_loss("small")({}, exact(chain, scale=0.9), x0, None, times, keys)[0]

    per_example = np.asarray(evaluate(keys, x0))
    clean, noisy = (float(chain.log_snr(t)) for t in (1, 2000))
    x = np.linspace(noisy, clean, 40001)[:, None]
    signal, c = np.exp(x), np.mean(x0**2, axis=0)
    gain = 0.9 / (1 + signal * STD**2)
    error = (1 - gain) ** 2 + gain**2 * signal * c
    expected = np.trapezoid(np.mean(error, axis=1), x[:, 0]) / 2 / np.log(2)
    assert abs(per_example.mean() - expected) < 4 * per_example.std() / BATCH**0.5 + 0.02 * expected


@pytest.mark.parametrize("name", ["hybrid", "vlb"])
def test_by_config_the_bound_teaches_a_learned_variance(name):
    """It took the fixed variance of loss.variance instead, and the second head had no gradient."""
    config = config_lib.override(config_lib.base(), {"process.steps": 20, "loss.name": name, "learned_range": True})
    loss = objective(config, process(config.process)).loss
    x0, t = jnp.full((2, 2, 2, 1), 0.5), jnp.array([3, 15])
    times = td.Times(t, jnp.full(2, 1 / 20))

    def of_fraction(fraction):
        diffusion = Diffusion(process(config.process), lambda x_t, t, cond: Prediction(
            0.9 * x0, jnp.zeros_like(x0), fraction * jnp.ones_like(x0)))
        inputs = losses.Inputs(x0, None, times, lambda stream: jax.random.split(jax.random.key(0), 2), 0)
        return loss(losses.Bind({"online": lambda params, keys: diffusion}, {"online": {}}), inputs)[0].sum()
    assert abs(float(jax.grad(of_fraction)(0.3))) > 1e-4
