"""The bound of the chain, on data of a known law."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from likelihood import exact

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
    return DiscreteProcess(betas=schedules.linear(steps, start=0.1 / steps, end=20 / steps))


def chain(steps):
    return grids.pairs(grids.linspace(steps, steps))


def run(estimator, process, law, shape, seed=0):
    x0 = exact.draw(law, shape, seed)
    keys = jax.random.split(jax.random.key(seed), len(x0))
    estimate = jax.jit(lambda keys, x0: estimator(keys, exact.diffusion(process, law), x0, None))(keys, x0)
    return jax.tree.map(np.asarray, estimate), np.asarray(x0)


def mean_and_error(x):
    return x.mean(), x.std(ddof=1) / np.sqrt(len(x))


@pytest.mark.parametrize("mean, std", [(0.0, 0.3), (0.9, 0.01), (-0.2, 0.004), (3.0, 0.5)])
def test_levels_have_mass_one(x64, mean, std):
    """Also where the normal is narrower than a level, or mostly outside; the masses are near the normal's own."""
    x0 = jnp.asarray(exact.LEVELS)
    log_p = discretized_gaussian_log_likelihood(x0, mean, jnp.log(std))
    assert abs(float(jnp.sum(jnp.exp(log_p))) - 1) < 1e-9
    edges = jax.scipy.stats.norm.cdf(np.concatenate([[-np.inf], exact.LEVELS[:-1] + 1 / 255, [np.inf]]), mean, std)
    np.testing.assert_allclose(jnp.exp(log_p), np.diff(edges), rtol=0, atol=3e-4)
    near = jax.grad(lambda m: discretized_gaussian_log_likelihood(x0, m, jnp.log(std)).sum())(mean)
    assert np.isfinite(near)


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
    x = jnp.zeros((2, 1, 1, 1))
    prediction = Prediction(x, x, x + 0.25)

    def variance(s, t, kind, after=None):
        found = reverse_log_variance(process, prediction, s, t, kind, after)
        return float(np.exp(jnp.broadcast_to(found, x.shape)).flat[0])
    tilde = lambda s, t: (1 - bar[s - 1]) / (1 - bar[t - 1]) * (1 - bar[t - 1] / bar[s - 1])  # noqa: E731
    for s, t in [(3, 4), (20, 50), (98, 99)]:
        small, large = tilde(s, t), 1 - bar[t - 1] / bar[s - 1]
        np.testing.assert_allclose(variance(s, t, "small"), small, rtol=1e-9)
        np.testing.assert_allclose(variance(s, t, "large"), large, rtol=1e-9)
        np.testing.assert_allclose(variance(s, t, "learned_range"), small**0.75 * large**0.25, rtol=1e-9)
    np.testing.assert_allclose(variance(0, 1, "small"), tilde(1, 2), rtol=1e-9)
    np.testing.assert_allclose(variance(0, 1, "large"), tilde(1, 2), rtol=1e-9)
    np.testing.assert_allclose(variance(0, 1, "learned_range"), tilde(1, 2)**0.75 * process.betas[0]**0.25, rtol=1e-9)
    np.testing.assert_allclose(variance(0, 5, "small", 30), tilde(5, 30), rtol=1e-9)
    assert np.isfinite(variance(0, 100, "small", 100))  # a chain of one step


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


@pytest.mark.parametrize("kind", ["small", "large"])
@pytest.mark.parametrize("times", [np.arange(100, 0, -1), np.array([100, 71, 40, 12, 3, 1])], ids=["full", "respaced"])
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


@pytest.mark.parametrize("law", [exact.GAUSSIAN, exact.MIXTURE], ids=["gaussian", "mixture"])
def test_bounds_fall_to_the_entropy(x64, law):
    """A bound for any number of steps, coming down to the entropy as they grow. With the large variance, the right one
    where the data are broad beside the noise; the small one stays 0.6 bits above at 1000 steps."""
    entropy, gaps = exact.entropy(law), []
    for steps in (30, 100, 1000):
        process = linear(steps)
        bits = run(make_vlb(chain(steps), variance="large"), process, law, (1500, 1, 2, 1))[0].bits_per_dim
        mean, error = mean_and_error(bits)
        gaps.append(mean - entropy)
        assert gaps[-1] > -4 * error
    assert gaps[0] > gaps[1] > gaps[2] - 3 * error and gaps[2] < 3.5 * error, gaps


CONTINUOUS = {"vp": (VP(t_min=1e-4), "log_snr"), "vp, time": (VP(), "time"), "flow": (Flow(t_min=0.005), "time"),
              "edm": (VarianceExploding(), "log_snr"), "cosine": (Cosine(log_snr_max=12.0), "log_snr"),
              "discrete": (linear(200), "log_snr")}


@pytest.mark.parametrize("law", [exact.GAUSSIAN, exact.MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_bound(x64, name, law):
    """The mean over the levels' law is the entropy, within 4 standard errors and the cells' width; also each example's
    own mean is that of VDM's formula: for a Gaussian the integral is (1/2) log of a ratio."""
    process, uniform = CONTINUOUS[name]
    estimate, x0 = run(make_continuous_vlb(64, uniform=uniform), process, law, (3000, 1, 2, 1))
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
    eps = jnp.asarray(np.random.default_rng(1).normal(size=x0.shape))
    z = np.asarray(x0 + 0.01 * eps)
    logits = -0.5 * ((z[..., None] - exact.LEVELS) / 0.01) ** 2
    index = np.round((np.asarray(x0) + 1) / 2 * 255).astype(int)
    log_p = np.take_along_axis(logits, index[..., None], -1)[..., 0] - np.logaddexp.reduce(logits, -1)
    np.testing.assert_allclose(reconstruction_term(process, x0, eps), -log_p.mean((1, 2, 3)) / np.log(2), rtol=1e-9)
    clean = reconstruction_term(VarianceExploding(sigma_min=1e-4), x0, eps)
    assert np.all(np.abs(clean) < 1e-11)


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


@pytest.mark.parametrize("make", [lambda: make_vlb(chain(20), variance="large"), lambda: make_continuous_vlb(3)])
def test_rows_are_their_own(make):
    process, law = linear(20), exact.MIXTURE
    x0 = exact.draw(law, (5, 2, 2, 1)).astype(jnp.float32)
    keys = jax.random.split(jax.random.key(3), 5)
    together = make()(keys, exact.diffusion(process, law), x0, None).bits_per_dim
    alone = make()(keys[3:4], exact.diffusion(process, law), x0[3:4], None).bits_per_dim
    np.testing.assert_allclose(alone[0], together[3], rtol=1e-6)
