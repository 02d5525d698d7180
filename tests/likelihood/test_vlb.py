"""The bound of the chain, on data of a known law."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from likelihood import exact
from scipy import stats

from diffusion.core import grids, schedules
from diffusion.core.continuous import VP, Cosine, Flow, VarianceExploding
from diffusion.core.parameterization import Prediction
from diffusion.core.processes import DiscreteProcess
from diffusion.core.variational import (
    discretized_gaussian_log_likelihood,
    normal_kl,
    prior_term,
    reconstruction_term,
    reverse_log_variance,
)
from diffusion.likelihood.continuous import make_continuous_vlb
from diffusion.likelihood.vlb import make_vlb, rate_distortion


def linear(steps):
    return DiscreteProcess(betas=schedules.linear(steps, beta_start=0.1 / steps, beta_end=20 / steps))


def chain(steps):
    return grids.pairs(grids.linspace(steps, steps))


def run(estimator, process, law, shape, seed=0):
    x0 = exact.draw(law, shape, seed)
    keys = jax.random.split(jax.random.key(seed), len(x0))
    estimate = exact.program(estimator, process)(keys, x0, law)
    return jax.tree.map(np.asarray, estimate), np.asarray(x0)


def mean_and_error(x):
    return x.mean(), x.std(ddof=1) / np.sqrt(len(x))


def test_levels_have_mass_one(x64):
    """Also where the normal is narrower than a level, or mostly outside; the masses are near the normal's own."""
    @jax.jit
    @jax.vmap
    def evaluate(mean, std):
        log_p = lambda mean: discretized_gaussian_log_likelihood(  # noqa: E731
            jnp.asarray(exact.LEVELS), mean, jnp.log(std))
        return log_p(mean), jax.grad(lambda mean: log_p(mean).sum())(mean)

    mean, std = np.array([(0.0, 0.3), (0.9, 0.01), (-0.2, 0.004), (3.0, 0.5)]).T
    log_p, slope = map(np.asarray, evaluate(mean, std))
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1, rtol=0, atol=1e-9)
    edges = np.concatenate([[-np.inf], exact.LEVELS[:-1] + 1 / 255, [np.inf]])
    masses = np.diff(stats.norm.cdf(edges, mean[:, None], std[:, None]))
    np.testing.assert_allclose(np.exp(log_p), masses, rtol=0, atol=3e-4)
    assert np.isfinite(slope).all()


def test_mass_is_floored_and_finite_in_float32():
    x0, mean = jnp.array([[-1.0, -0.5, 0.3, 1.0], [1.0, 0.9, -1.0, -1.0]])
    far = discretized_gaussian_log_likelihood(x0, mean, -7.0)
    np.testing.assert_allclose(far, np.log(1e-12), rtol=1e-6)


def test_normal_kl(x64):
    """Against its integral; and 0 between equals, to second order for near ones."""
    x = np.linspace(-12, 12, 200_001)
    m1, v1, m2, v2 = 0.3, 0.5, -0.4, 1.7
    p, q = (np.exp(-(x - m) ** 2 / (2 * v)) / np.sqrt(2 * np.pi * v) for m, v in ((m1, v1), (m2, v2)))
    np.testing.assert_allclose(normal_kl(m1, np.log(v1), m2, np.log(v2)), np.trapezoid(p * np.log(p / q), x), rtol=1e-8)
    np.testing.assert_allclose(normal_kl(0.0, 1e-6, 0.0, 0.0), 0.25e-12, rtol=1e-4)


def test_reverse_variances_are_the_papers(x64):
    """From the betas; at the last step those of the step before it (Nichol & Dhariwal's code), respaced or not."""
    process = linear(100)
    bar = np.cumprod(1 - process.betas)
    x = np.zeros((1, 1))
    kinds = ("small", "large", "learned_range", 0.25)  # the last two are one

    @jax.jit
    @jax.vmap
    def variances(s, t, t_previous):
        prediction = Prediction(x, x, x + 0.25)
        found = [[reverse_log_variance(process, prediction, s, t, kind, t_previous) for kind in kinds],
                 [reverse_log_variance(process, prediction, s, t, kind) for kind in kinds]]
        return jax.tree.map(lambda a: jnp.exp(jnp.broadcast_to(a, (1, 1))).squeeze(), found)

    pairs = [(3, 4), (20, 50), (98, 99), (0, 1), (0, 5), (0, 100)]
    found = variances(*np.array(pairs).T, np.array([5, 80, 100, 1, 30, 100]))
    given, uniform = (dict(zip(pairs, np.transpose(part))) for part in found)  # pair -> of each kind
    tilde = lambda s, t: (1 - bar[s - 1]) / (1 - bar[t - 1]) * (1 - bar[t - 1] / bar[s - 1])  # noqa: E731
    for s, t in pairs[:3]:
        small, large = tilde(s, t), 1 - bar[t - 1] / bar[s - 1]
        for part in (given, uniform):  # the time before t has no bearing
            np.testing.assert_allclose(part[s, t], [small, large, *2 * [small**0.75 * large**0.25]],
                                       rtol=1e-9)
    np.testing.assert_allclose(uniform[0, 1], [*2 * [tilde(1, 2)], *2 * [tilde(1, 2)**0.75 * process.betas[0]**0.25]],
                               rtol=1e-9)
    np.testing.assert_allclose(given[0, 5][0], tilde(5, 30), rtol=1e-9)
    assert np.isfinite(given[0, 100][0])  # a chain of one step


def expected_kl(law, process, s, t, kind):
    """E KL of Gaussian data, by hand from Ho et al., Eqs. 6-8: the error's mean square is c s^2/(a^2 c + s^2)."""
    c = law[2][0] ** 2
    bar = np.concatenate([[1.0], np.cumprod(1 - process.betas)])
    beta = 1 - bar[t] / bar[s]
    tilde = (1 - bar[s]) / (1 - bar[t]) * beta
    variance = tilde if kind == "small" else beta
    weight = (np.sqrt(bar[s]) * beta / (1 - bar[t])) ** 2
    mse = c * (1 - bar[t]) / (bar[t] * c + 1 - bar[t])
    return 0.5 * (tilde / variance - 1 + np.log(variance / tilde) + weight * mse / variance) / np.log(2)


@pytest.mark.parametrize("kind, times", [
    ("small", np.arange(100, 0, -1)), ("large", np.array([100, 71, 40, 12, 3, 1]))], ids=["small", "large"])
def test_terms_of_a_gaussian(x64, kind, times):
    """Each L_t within 4.5 standard errors of its value, the prior's exact, and the columns in the steps' order."""
    process, law, steps = linear(100), exact.GAUSSIAN, grids.pairs(times)
    estimate, x0 = run(make_vlb(steps, variance=kind), process, law, (3000, 1, 2, 1))
    terms = estimate.terms
    expected = np.array([expected_kl(law, process, s, t, kind) for t, s in steps[:-1]])
    error = terms["vlb"][:, :-1].std(0, ddof=1) / np.sqrt(len(x0))
    assert np.all(np.abs(terms["vlb"][:, :-1].mean(0) - expected) < 4.5 * error + 2e-5)
    a2 = np.cumprod(1 - process.betas)[-1]
    np.testing.assert_allclose(terms["prior"], (0.5 * (a2 * x0**2 - a2 - np.log(1 - a2))).mean((1, 2, 3)) / np.log(2),
                               rtol=1e-6)
    np.testing.assert_allclose(estimate.bits_per_dim, terms["prior"] + terms["vlb"].sum(1), rtol=1e-12)
    t = times[len(times) // 2]
    c, bar = law[2][0] ** 2, np.cumprod(1 - process.betas)[t - 1]
    mse = c * (1 - bar) / (bar * c + 1 - bar)
    np.testing.assert_allclose(terms["x0_mse"][:, len(times) // 2].mean(), mse, rtol=0.1)
    np.testing.assert_allclose(terms["eps_mse"], terms["x0_mse"] * np.exp(process.log_snr(times)), rtol=1e-6)


BOUNDS = [(linear(steps), make_vlb(chain(steps), variance="large")) for steps in (30, 100, 1000)]


@pytest.mark.slow
def test_bounds_fall_to_the_entropy(x64):
    """A bound for any number of steps, coming down to the entropy as they grow. With the large variance, the right one
    where the data are broad beside the noise; the small one stays 0.6 bits above at 1000 steps."""
    law, gaps = exact.MIXTURE, []
    entropy = exact.entropy(law)
    for process, bound in BOUNDS:
        bits = run(bound, process, law, (1500, 1, 2, 1))[0].bits_per_dim
        mean, error = mean_and_error(bits)
        gaps.append(mean - entropy)
        assert gaps[-1] > -4 * error
    assert gaps[0] > gaps[1] > gaps[2] - 3 * error and gaps[2] < 3.5 * error, gaps


ESTIMATORS = {uniform: make_continuous_vlb(64, uniform=uniform) for uniform in ("log_snr", "time")}
CONTINUOUS = {"vp": (VP(t_min=1e-4), "log_snr"), "vp, time": (VP(), "time"), "flow": (Flow(t_min=0.005), "time"),
              "edm": (VarianceExploding(), "log_snr"), "cosine": (Cosine(log_snr_max=12.0), "log_snr"),
              "discrete": (linear(200), "log_snr")}


@pytest.mark.parametrize("law", [exact.GAUSSIAN, exact.MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_bound(x64, name, law):
    """The mean over the levels' law is the entropy, within 4 standard errors and the cells' width; also each example's
    own mean is that of VDM's formula: for a Gaussian the integral is (1/2) log of a ratio."""
    process, uniform = CONTINUOUS[name]
    estimate, x0 = run(ESTIMATORS[uniform], process, law, (3000, 1, 2, 1))
    mean, error = mean_and_error(estimate.bits_per_dim)
    # The reconstruction is from all 256 levels alike, so what z_0 leaves open of the level is not the data's law.
    assert -4 * error < mean - exact.entropy(law) < 4 * error + 0.02, (mean, exact.entropy(law), error)
    np.testing.assert_allclose(sum(estimate.terms[n] for n in ("prior", "diffusion", "reconstruction")),
                               estimate.bits_per_dim, rtol=1e-10)
    if law is exact.GAUSSIAN:
        c = law[2][0] ** 2
        end = jnp.asarray(process.t_min or 1e-7, float), jnp.asarray(process.t_max, float)
        high, low = (np.exp(np.asarray(process.log_snr(t))) for t in end)
        found, error = mean_and_error(estimate.terms["diffusion"])
        np.testing.assert_allclose(found, 0.5 * np.log2((1 + c * high) / (1 + c * low)), rtol=0, atol=4 * error + 1e-4)


def test_reconstruction_is_vdms(x64):
    """Against the softmax over all levels, written out; and nearly free where the noise is far below a level."""
    process = VarianceExploding(sigma_min=0.01)
    x0 = exact.draw(exact.MIXTURE, (50, 1, 2, 1))
    eps = np.random.default_rng(1).normal(size=x0.shape)
    found, clean = jax.jit(lambda x0, eps: [reconstruction_term(p, x0, eps) for p in (
        process, VarianceExploding(sigma_min=1e-4))])(x0, eps)
    z = np.asarray(x0 + 0.01 * eps)
    logits = -0.5 * ((z[..., None] - exact.LEVELS) / 0.01) ** 2
    index = np.round((np.asarray(x0) + 1) / 2 * 255).astype(int)
    log_p = np.take_along_axis(logits, index[..., None], -1)[..., 0] - np.logaddexp.reduce(logits, -1)
    np.testing.assert_allclose(found, -log_p.mean((1, 2, 3)) / np.log(2), rtol=1e-9)
    assert np.all(np.abs(clean) < 1e-11)


@pytest.mark.parametrize("width", [0.05, 0.7, 3.9, 4.1, 40.0])
def test_reconstruction_among_thousands_of_levels(width):
    """In float32, against the softmax over all in float64, also at the bounds; width: of the noise, in levels."""
    levels, rng = 65_536, np.random.default_rng(2)
    own = np.concatenate([rng.integers(0, levels, 20), [0, 1, levels - 2, levels - 1]])
    every = np.linspace(-1, 1, levels)
    eps = rng.normal(size=(3, len(own), 1)).astype(np.float32)
    noise = width * 2 / (levels - 1)
    x0 = np.broadcast_to(every[own][:, None], eps.shape).astype(np.float32)
    found = jax.jit(lambda x0, eps: reconstruction_term(VarianceExploding(sigma_min=noise), x0, eps,
                                                        levels=levels))(x0, eps)
    z = every[own][:, None] + noise * eps.astype(float)
    logits = -0.5 * ((z[..., None] - every) / noise) ** 2
    log_p = np.take_along_axis(logits, own[None, :, None, None], -1)[..., 0] - np.logaddexp.reduce(logits, -1)
    np.testing.assert_allclose(found, -log_p.mean((1, 2)) / np.log(2), rtol=1e-3, atol=1e-4)


def test_masses_of_65536_levels_add_up_to_1():
    """In float32, where the normal is as wide as at the last steps of chains, and at the bounds."""
    every = jnp.linspace(-1, 1, 65_536)
    for mean, std in ((0.3, 6e-3), (0.999, 6e-3), (-0.2, 3e-2)):
        log_p = discretized_gaussian_log_likelihood(every, mean, jnp.log(std), 65_536)
        np.testing.assert_allclose(np.exp(np.asarray(log_p, float)).sum(), 1, rtol=1e-3)
        density = stats.norm.logpdf(every, mean, std) + np.log(2 / 65_535)
        near = np.abs(np.asarray(every) - mean) < 2 * std  # where the approximate CDF has the density to 2 %
        np.testing.assert_allclose(np.asarray(log_p)[near][1:-1], density[near][1:-1], atol=0.02)


def test_prior_of_variance_exploding(x64):
    x0 = exact.draw(exact.MIXTURE, (5, 2, 2, 3))
    np.testing.assert_allclose(prior_term(VarianceExploding(), x0), np.mean(x0**2, (1, 2, 3)) / (2 * 80**2 * np.log(2)),
                               rtol=1e-9)


def test_rate_and_distortion():
    rate, distortion = rate_distortion(0.5, np.array([1.0, 2.0, 4.0]), np.array([0.04, 0.01, 0.0]))
    np.testing.assert_allclose(rate, [0.5, 1.5, 3.5, 7.5])
    np.testing.assert_allclose(distortion, [25.5, 12.75, 0.0, 0.0])


@pytest.mark.parametrize("steps", [[[10, 5], [4, 0]], [[10, 5], [5, 1]], [[5, 10], [10, 0]], np.zeros((0, 2))])
def test_a_broken_chain_is_refused(steps):
    with pytest.raises(ValueError, match="chain of times down to 0"):
        make_vlb(np.array(steps), variance="small")


@pytest.mark.parametrize("estimator, process", [(make_vlb(chain(20), variance="large"), linear(20)),
                                                (make_continuous_vlb(3), VP())], ids=["chain", "continuous"])
def test_rows_are_their_own(estimator, process):
    law = exact.MIXTURE
    x0 = exact.draw(law, (5, 2, 2, 1)).astype(jnp.float32)
    keys = jax.random.split(jax.random.key(3), 5)
    run = exact.program(estimator, process)
    whole = np.asarray(run(keys, x0, law).bits_per_dim)
    others = jnp.ones_like(x0).at[1].set(x0[3])  # the row in another place and company, with its own key
    found = run(keys[::-1], others, law).bits_per_dim
    np.testing.assert_allclose(found[1], whole[3], rtol=1e-6)
    assert np.isfinite(whole).all() and np.abs(found[0] - whole[0]) > 1e-4
