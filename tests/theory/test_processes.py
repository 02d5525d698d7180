"""The process tables, q(x_t|x_0) and q(x_s|x_t, x_0) against the papers, in 60-digit arithmetic from the betas."""
import functools
from decimal import Decimal, localcontext
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import schedules
from diffusion.core.processes import DiscreteProcess

BETAS = {
    "linear 1000": schedules.linear(1000),
    "linear 10": schedules.linear(10, beta_start=0.01, beta_end=0.9),
    "cosine 1000": schedules.cosine(1000),
    "cosine 7": schedules.cosine(7),
    "one step": np.array([0.3]),
}


class Exact:
    """Ho et al. (2020), Section 2: alpha_bar_t as the product of 1 - beta, for t = 0..T."""

    def __init__(self, betas):
        self.betas = [None, *map(Decimal, betas.tolist())]
        self.alpha_bar = [Decimal(1)]
        for beta in self.betas[1:]:
            self.alpha_bar.append(self.alpha_bar[-1] * (1 - beta))

    def noise_added_fraction(self, s, t):
        """1 - SNR_t / SNR_s with SNR = alpha_bar / (1 - alpha_bar)."""
        a_s, a_t = self.alpha_bar[s], self.alpha_bar[t]
        return 1 - a_t * (1 - a_s) / ((1 - a_t) * a_s)

    def bayes(self, s, t):
        """q(x_s|x_t, x_0) as the normalised product of q(x_s|x_0) and q(x_t|x_s): factors of x_t and x_0, variance."""
        a_s, ratio = self.alpha_bar[s], self.alpha_bar[t] / self.alpha_bar[s]
        prior, likelihood = 1 / (1 - a_s), ratio / (1 - ratio)  # precisions of x_s
        variance = 1 / (prior + likelihood)
        return variance * ratio.sqrt() / (1 - ratio), variance * prior * a_s.sqrt(), variance


@pytest.fixture(params=list(BETAS))
def case(request):
    with localcontext() as context:
        context.prec = 60
        yield DiscreteProcess(betas=BETAS[request.param]), Exact(BETAS[request.param]), found(request.param)


def some_pairs(t_max):
    """(s, t) with s < t: neighbours, long jumps, and the ends."""
    times = sorted({1, 2, 3, t_max // 4, t_max // 2, t_max - 1, t_max} & set(range(1, t_max + 1)))
    return sorted({(s, t) for t in times for s in [*times, t - 1] if 0 < s < t})


@functools.cache
def found(name):
    """In float64, by one program: alpha, sigma and log-SNR of t = 0..T, and of pairs (s, t) what is removed between
    them and the posterior (the factors of x_t and x_0 in its mean, its variance)."""
    process = DiscreteProcess(betas=BETAS[name])
    pairs = [*some_pairs(process.t_max), *((t - 1, t) for t in neighbours(process.t_max)), (0, process.t_max)]

    def evaluate(every, s, t):
        zero, one = jnp.zeros((len(pairs), 1)), jnp.ones((len(pairs), 1))
        of_x_t, of_x0 = process.posterior(one, zero, s, t), process.posterior(zero, one, s, t)
        return (process.alpha(every), process.sigma(every), process.log_snr(every),
                process.noise_added_fraction(s, t), of_x_t.mean[:, 0], of_x0.mean[:, 0], of_x0.variance[:, 0])

    with jax.enable_x64(True):
        alpha, sigma, log_snr, removed, *posterior = map(np.asarray, jax.jit(evaluate)(
            np.arange(process.t_max + 1), *np.array(pairs).T))
    return SimpleNamespace(alpha=alpha, sigma=sigma, log_snr=log_snr, removed=dict(zip(pairs, removed)),
                           posterior=dict(zip(pairs, np.transpose(posterior))))


def neighbours(t_max):
    """Times whose posteriors of the time before are looked at."""
    return sorted({1, 2, 3, t_max // 2, t_max - 1, t_max} & set(range(1, t_max + 1)))


def test_alpha_and_sigma_are_the_papers_cumulative_product(case):
    process, exact, ours = case
    alpha, sigma = ([float(f(a)) for a in exact.alpha_bar] for f in (Decimal.sqrt, lambda a: (1 - a).sqrt()))
    np.testing.assert_allclose(ours.alpha, alpha, rtol=1e-14)
    np.testing.assert_allclose(ours.sigma, sigma, rtol=1e-14)
    log_snr = [float((a / (1 - a)).ln()) for a in exact.alpha_bar[1:]]
    np.testing.assert_allclose(ours.log_snr[1:], log_snr, rtol=1e-14, atol=1e-14)
    assert ours.alpha.dtype == np.float64 and np.all(np.diff(ours.log_snr) < 0)


def test_sigma_follows_the_variance_of_the_markov_chain(case):
    """Var x_t = (1 - beta_t) Var x_{t-1} + beta_t (Eq. 2), another way than the product."""
    process, exact, ours = case
    variance = Decimal(0)
    for t, beta in enumerate(exact.betas[1:], 1):
        variance = (1 - beta) * variance + beta
        assert ours.sigma[t] ** 2 == pytest.approx(float(variance), rel=3e-14)


def test_time_0_is_clean_data(case):
    process, _, _ = case
    assert float(process.alpha(0)) == 1 and float(process.sigma(0)) == 0 and float(process.log_snr(0)) == np.inf
    x0 = jnp.linspace(-1, 1, 12).reshape(2, 2, 3)
    np.testing.assert_array_equal(process.diffuse(x0, 0, jnp.ones_like(x0)), x0)


def test_ends_and_labels():
    process = DiscreteProcess(betas=schedules.linear(1000))
    assert process.t_max == 1000 and process.prior_std(1000) == 1
    label = process.c_noise(jnp.array([1, 2, 1000]))
    np.testing.assert_array_equal(label, [0, 1, 999])
    assert label.dtype == jnp.float32 and process.c_noise(1).dtype == jnp.float32


def test_log_snr_falls_strictly(case):
    process, _, _ = case
    assert np.all(np.diff(process.log_snr(np.arange(1, process.t_max + 1))) < 0)


def test_diffuse_takes_a_time_for_each_example(x64, case):
    process, exact, _ = case
    t = np.array([1, process.t_max, (process.t_max + 1) // 2])
    x0, eps = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2))
    abar = np.array([float(exact.alpha_bar[i]) for i in t]).reshape(3, 1, 1, 1)
    expected = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * eps
    np.testing.assert_allclose(process.diffuse(x0, t, eps), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(process.diffuse(x0, t[1], eps)[1], expected[1], rtol=0, atol=1e-12)


def test_removed_is_one_minus_the_ratio_of_snrs(case):
    process, exact, ours = case
    for s, t in some_pairs(process.t_max):
        # Only the rounding of the two log-SNRs may show, as it must for times whose log-SNRs differ little.
        difference = ours.log_snr[s] - ours.log_snr[t]
        rtol = 1e-14 * (1 + max(abs(ours.log_snr[u]) for u in (s, t)) / min(difference, 1))
        assert ours.removed[s, t] == pytest.approx(float(exact.noise_added_fraction(s, t)), rel=rtol)


def test_removed_from_clean_data_is_all(case):
    process, _, _ = case
    np.testing.assert_array_equal(process.noise_added_fraction(0, np.arange(1, process.t_max + 1)), 1)


def test_posterior_of_neighbours_is_eqs_6_and_7(case):
    """mean = sqrt(abar_{t-1}) beta_t/(1 - abar_t) x_0 + sqrt(1 - beta_t) (1 - abar_{t-1})/(1 - abar_t) x_t, and
    variance = (1 - abar_{t-1})/(1 - abar_t) beta_t (Ho et al. 2020)."""
    process, exact, ours = case
    for t in neighbours(process.t_max):
        beta, a_s, a_t = exact.betas[t], exact.alpha_bar[t - 1], exact.alpha_bar[t]
        expected = ((1 - beta).sqrt() * (1 - a_s) / (1 - a_t), a_s.sqrt() * beta / (1 - a_t),
                    (1 - a_s) / (1 - a_t) * beta)
        np.testing.assert_allclose(ours.posterior[t - 1, t], [float(e) for e in expected], rtol=3e-12, atol=0)


def test_posterior_of_any_two_times_is_bayes_rule(case):
    process, exact, ours = case
    for s, t in some_pairs(process.t_max):
        np.testing.assert_allclose(ours.posterior[s, t], [float(e) for e in exact.bayes(s, t)], rtol=3e-12)


def test_posterior_at_time_0_is_the_data_without_noise(case):
    process, _, _ = case
    x_t, x0 = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    for t in {1, process.t_max}:
        mean, variance = process.posterior(x_t, x0, 0, t)
        np.testing.assert_array_equal(mean, x0)
        assert float(variance) == 0


def test_posterior_takes_times_for_each_example(x64):
    process = DiscreteProcess(betas=BETAS["linear 10"])
    s, t = np.array([0, 3, 9]), np.array([4, 5, 10])
    x_t, x0 = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 1))
    mean, variance = process.posterior(x_t, x0, s, t)
    assert mean.shape == (3, 2, 2, 1) and variance.shape == (3, 1, 1, 1)
    for i in range(3):
        row = process.posterior(x_t[i:i + 1], x0[i:i + 1], int(s[i]), int(t[i]))
        np.testing.assert_allclose(mean[i], row.mean[0], rtol=1e-14)
        np.testing.assert_allclose(variance[i].squeeze(), row.variance, rtol=1e-14)


def test_posterior_and_marginal_make_up_the_marginal(case):
    """The integral of q(x_s|x_t, x_0) q(x_t|x_0) over x_t is q(x_s|x_0), in mean and variance."""
    process, _, ours = case
    for s, t in some_pairs(process.t_max):
        of_x_t, of_x0, variance = ours.posterior[s, t]
        assert of_x_t * ours.alpha[t] + of_x0 == pytest.approx(ours.alpha[s], rel=1e-12)
        assert (of_x_t * ours.sigma[t]) ** 2 + variance == pytest.approx(ours.sigma[s] ** 2, rel=1e-12)


def test_float32_is_within_rounding_of_float64(case):
    """alpha and sigma to half a unit in the last place: sigma is not sqrt(1 - alpha^2), which would be off by 1e-3."""
    process, exact, _ = case
    t = jnp.arange(1, process.t_max + 1)
    added = process.noise_added_fraction(t - 1, t)
    assert process.alpha(t).dtype == process.sigma(t).dtype == added.dtype == jnp.float32
    half_ulp = 2.0**-24
    exactly = np.array([[float(a.sqrt()), float((1 - a).sqrt())] for a in exact.alpha_bar[1:]]).T
    np.testing.assert_allclose(np.asarray(process.alpha(t), float), exactly[0], rtol=half_ulp * 1.01)
    np.testing.assert_allclose(np.asarray(process.sigma(t), float), exactly[1], rtol=half_ulp * 1.01)
    # The log-SNRs are rounded before they are subtracted: an error of half an ulp of each, over their difference.
    log_snr = np.array([float((a / (1 - a)).ln()) for a in exact.alpha_bar[1:]])
    removed = np.array([float(exact.noise_added_fraction(s, s + 1)) for s in range(1, process.t_max)])
    error = np.abs(np.asarray(process.noise_added_fraction(t[:-1], t[1:]), float) / removed - 1)
    size = np.maximum(np.abs(log_snr[:-1]), np.abs(log_snr[1:]))
    assert np.all(error <= half_ulp * (4 + 3 * size / -np.expm1(-removed)))
    assert error.max(initial=0) < 1e-4


@pytest.mark.parametrize("name", ["alpha", "sigma", "log_snr"])
@pytest.mark.parametrize("x64_first", [False, True])
def test_tables_take_the_precision_in_force(name, x64_first):
    """Of one process in one program, also where a function compiled in the other precision is still alive."""
    process = DiscreteProcess(betas=BETAS["linear 10"])
    compiled = []
    for double in (x64_first, not x64_first):
        with jax.enable_x64(double):
            dtype, t = jnp.float64 if double else jnp.float32, np.arange(11)
            compiled.append(jax.jit(lambda t: getattr(process, name)(t)))
            assert compiled[-1](t).dtype == dtype and getattr(process, name)(t).dtype == dtype


def test_tables_work_under_jit_and_vmap():
    process = DiscreteProcess(betas=BETAS["linear 10"])
    t = jnp.arange(11)
    np.testing.assert_array_equal(jax.jit(process.alpha)(t), process.alpha(t))
    np.testing.assert_array_equal(jax.vmap(process.sigma)(t), process.sigma(t))


@pytest.mark.parametrize("betas, shown", [
    (np.array([1.0, 0.1]), r"shape \(2,\) in \[0.1, 1.0\]"), (np.array([0.1, 1.5]), r"\[0.1, 1.5\]"),
    (np.array([0.0, 0.5]), r"\[0.0, 0.5\]"),
    (np.array([0.1, -0.1]), r"\[-0.1, 0.1\]"), (np.array([0.1, np.nan]), r"\[nan, nan\]"),
    (np.zeros((0,)), r"shape \(0,\)"), (np.full((2, 2), 0.1), r"shape \(2, 2\)")])
def test_betas_outside_of_0_to_1_are_refused(betas, shown):
    with pytest.raises(ValueError, match=r"betas must be a table of numbers in \(0, 1\), got .*" + shown):
        DiscreteProcess(betas=betas)


@pytest.mark.filterwarnings("error")
def test_zero_terminal_snr_ends_in_pure_noise(x64):
    betas = schedules.with_zero_terminal_snr(schedules.linear(50, beta_start=1e-3, beta_end=0.2))
    process = DiscreteProcess(betas=betas)
    assert betas[-1] == 1 and process.alpha(50) == 0 and process.sigma(50) == 1 and process.log_snr(50) == -np.inf
    x0, eps, x_t = np.random.default_rng(0).normal(size=(3, 2, 3, 3, 1))
    np.testing.assert_array_equal(process.diffuse(x0, 50, eps), eps)
    for s in (49, 20, 1, 0):
        mean, variance = process.posterior(x_t, x0, s, 50)  # x_t says nothing of x_0: q(x_s | x_0)
        np.testing.assert_allclose(mean, process.alpha(s) * x0, atol=1e-15)
        np.testing.assert_allclose(variance, process.sigma(s) ** 2, atol=1e-15)
        assert process.noise_added_fraction(s, 50) == 1


def test_rescaled_labels_run_from_0_to_below_1000():
    process = DiscreteProcess(betas=schedules.linear(4000), c_noise_scale=1000 / 4000)
    np.testing.assert_array_equal(process.c_noise(np.array([1, 2, 4000])), [0, 0.25, 999.75])
