"""Every process passes the same checks: its paper's marginals and SDE, Bayes, inverse, ends, flow, precision."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import schedules
from diffusion.core.continuous import VE, VP, Cosine, Flow, Laplace, SubVP, VarianceExploding
from diffusion.core.learned_schedule import LearnedSchedule
from diffusion.core.processes import DiscreteProcess

B0, B1 = 0.1, 20.0
TABLES = {
    "linear": schedules.linear(100, start=1e-3, end=0.2), "cosine": schedules.cosine(100),
    "scaled_linear": schedules.scaled_linear(100, start=1e-3, end=0.2),
    "sigmoid": schedules.sigmoid(100, start=1e-3, end=0.2), "constant": schedules.constant(100, end=0.05),
    "warmup10": schedules.warmup(100, start=1e-3, end=0.1, share=0.1),
    "warmup50": schedules.warmup(100, start=1e-3, end=0.1, share=0.5),
    "jsd but its last": schedules.jsd(100)[:-1], "of VP": schedules.of_process(VP(), 100),
    "of shifted cosine": schedules.of_process(Cosine(shift=0.25), 100),
    "of Laplace": schedules.of_process(Laplace(scale=1.5), 100)}


def big_b(t):
    return B0 * t + (B1 - B0) * t**2 / 2


def beta(t):
    return B0 + (B1 - B0) * t


def kept(log_snr):
    """alpha and sigma of a log-SNR where alpha^2 + sigma^2 = 1."""
    return lambda t: (np.sqrt(1 / (1 + np.exp(-log_snr(t)))), np.sqrt(1 / (1 + np.exp(log_snr(t)))))


def flow(shift):
    def marginal(t):
        sigma = shift * t / (1 + (shift - 1) * t)
        return 1 - sigma, sigma
    return marginal


def cosine(shift):
    """Between log-SNRs of +-20, so nearly alpha = cos(pi t / 2): Salimans & Ho (2022), code."""
    end = np.arctan(np.exp(-10.0))
    return kept(lambda t: -2 * np.log(np.tan(end + (np.pi / 2 - 2 * end) * t)) + 2 * np.log(shift))


def random_schedule():
    rng, schedule = np.random.default_rng(0), LearnedSchedule(hidden=16)
    return schedule.process({"slope": jnp.asarray(-0.3), "in": jnp.asarray(6 * rng.normal(size=16)),
                             "bias": jnp.asarray(3 * rng.normal(size=16)), "out": jnp.asarray(4 * rng.normal(size=16))})


# name: (process, the paper's marginals, its f(t) and g(t) or None where it gives none)
PAPERS = {
    "VP": (VP(), lambda t: (np.exp(-big_b(t) / 2), np.sqrt(-np.expm1(-big_b(t)))),
           lambda t: (-beta(t) / 2, np.sqrt(beta(t)))),
    "sub-VP": (SubVP(), lambda t: (np.exp(-big_b(t) / 2), -np.expm1(-big_b(t))),
               lambda t: (-beta(t) / 2, np.sqrt(beta(t) * -np.expm1(-2 * big_b(t))))),
    "VE": (VE(), lambda t: (1 + 0 * t, 0.01 * 5000**t),
           lambda t: (0 * t, 0.01 * 5000**t * np.sqrt(2 * np.log(5000)))),
    "EDM": (VarianceExploding(), lambda t: (1 + 0 * t, t), lambda t: (0 * t, np.sqrt(2 * t))),
    "EDM's VE": (VarianceExploding(power=0.5, sigma_min=0.02, sigma_max=100.0), lambda t: (1 + 0 * t, np.sqrt(t)),
                 lambda t: (0 * t, 1 + 0 * t)),
    "flow": (Flow(), flow(1.0), lambda t: (-1 / (1 - t), np.sqrt(2 * t / (1 - t)))),
    "flow, shift 3": (Flow(shift=3.0), flow(3.0), None),
    "cosine": (Cosine(), cosine(1.0), None), "cosine, shift 1/4": (Cosine(shift=0.25), cosine(0.25), None),
    "Laplace": (Laplace(mean=0.3, scale=1.5),
                kept(lambda t: 0.3 - 1.5 * np.sign(0.5 - t) * np.log(1 - 2 * abs(t - 0.5))), None),
}
CONTINUOUS = {**{name: case[0] for name, case in PAPERS.items()},
              **{f"{name} table": DiscreteProcess(betas=betas) for name, betas in TABLES.items()}}
EVERY = [*CONTINUOUS, "learned"]


def member(name):
    return CONTINUOUS[name] if name in CONTINUOUS else random_schedule()  # whose arrays take the precision in force


def interior(process, count=41):
    """Times within the process; of a table within its linear pieces, where it has slopes."""
    if isinstance(process, DiscreteProcess):
        return np.linspace(1, process.t_max - 1, count).round() + np.linspace(0.2, 0.8, count)
    start, end = max(float(process.t_min), 1e-3 * process.t_max), 0.995 * process.t_max
    times = np.linspace(start, end, count)
    return times[np.abs(times / process.t_max - 0.5) > 1e-3]  # Laplace's slope has a jump in the middle


@pytest.mark.parametrize("name", PAPERS)
def test_marginals_are_the_papers(x64, name):
    process, marginal, _ = PAPERS[name]
    t = interior(process)
    alpha, sigma = marginal(t)
    np.testing.assert_allclose(process.alpha(t), alpha, rtol=2e-12)
    np.testing.assert_allclose(process.sigma(t), sigma, rtol=2e-12)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_one_chain_in_whole_and_in_real_times(x64, name):
    process = DiscreteProcess(betas=TABLES[name])
    whole = jnp.arange(1, process.t_max + 1)
    alpha_bar = np.cumprod(1 - TABLES[name])
    np.testing.assert_allclose(process.alpha(whole) ** 2, alpha_bar, rtol=1e-12)
    for f in (process.alpha, process.sigma, process.log_snr, process.label):
        np.testing.assert_allclose(f(whole.astype(float)), f(whole), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_alpha_sigma_and_log_snr_agree_and_log_snr_falls(x64, name):
    process = member(name)
    t = interior(process)
    alpha, sigma, log_snr = process.alpha(t), process.sigma(t), process.log_snr(t)
    np.testing.assert_allclose(2 * np.log(alpha / sigma), log_snr, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(process.noise_level(t), sigma / alpha, rtol=1e-9)
    assert np.all(np.diff(log_snr) < 0) and np.all(alpha > 0) and np.all(sigma > 0)
    if not isinstance(process, SubVP | VE | VarianceExploding | Flow):
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_time_inverts_log_snr(x64, name):
    process = member(name)
    t = interior(process)
    np.testing.assert_allclose(process.time(process.log_snr(t)), t, rtol=1e-7, atol=1e-9)  # learned: 30 halvings
    assert process.time(jnp.array(np.inf)) == 0


@pytest.mark.parametrize("name", EVERY)
def test_ends(x64, name):
    """t = 0 is the data; t_min is noisy by little and t_max by much; the prior is what x_T is without data."""
    process = member(name)
    zero = jnp.array(0.0)
    assert process.alpha(zero) == 1 and process.sigma(zero) == 0 and process.log_snr(zero) == np.inf
    x0 = jnp.linspace(-1, 1, 12).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(process.diffuse(x0, zero, jnp.ones_like(x0)), x0)
    end = jnp.asarray(process.t_max, float)
    assert process.log_snr(end) < 0 < process.log_snr(jnp.asarray(process.t_min or 1e-6, float)) + 8
    assert np.isfinite(process.prior_std(end)) and abs(process.prior_std(end) / process.sigma(end) - 1) < 0.35
    assert np.isfinite(process.label(interior(process))).all()


@pytest.mark.parametrize("name", EVERY)
def test_drift_and_diffusion_are_the_slopes_of_the_marginals(x64, name):
    """Central differences; f = alpha'/alpha and g^2 = (sigma^2)' - 2 f sigma^2, so that no log-SNR is used."""
    process = member(name)
    t = interior(process)
    h = 1e-6 * process.t_max if not isinstance(process, DiscreteProcess) else 1e-4
    slope = lambda f: (np.asarray(f(t + h)) - np.asarray(f(t - h))) / (2 * h)  # noqa: E731
    f, g = process.drift_and_diffusion(t)
    expected = slope(lambda t: np.log(process.alpha(t)))
    np.testing.assert_allclose(f, expected, rtol=1e-5, atol=1e-7 / process.t_max)
    variance = np.asarray(process.sigma(t)) ** 2
    np.testing.assert_allclose(g**2, slope(lambda t: process.sigma(t) ** 2) - 2 * expected * variance, rtol=2e-5,
                               atol=1e-8)
    alpha_rate, sigma_rate = process.slopes(t)
    np.testing.assert_allclose(alpha_rate, slope(process.alpha), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(sigma_rate, slope(process.sigma), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", [name for name, case in PAPERS.items() if case[2]])
def test_drift_and_diffusion_are_the_papers(x64, name):
    process, _, sde = PAPERS[name]
    t = interior(process)
    for found, expected in zip(process.drift_and_diffusion(t), sde(t)):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_the_sde_has_the_marginals(x64, name):
    """m' = f m and v' = 2 f v + g^2 integrated from one time to another (Song et al. 2021, Eq. 5; Runge-Kutta)."""
    process = member(name)
    whole = isinstance(process, DiscreteProcess)
    cuts = np.arange(20, 41.0) if whole else np.linspace(*interior(process)[[8, 30]], 21)

    def rate(state, t):
        f, g = process.drift_and_diffusion(t)
        return jnp.stack([f * state[0], 2 * f * state[1] + g**2])

    @jax.jit
    def advance(state, t, h):
        a = rate(state, t)
        b = rate(state + h / 2 * a, t + h / 2)
        c = rate(state + h / 2 * b, t + h / 2)
        return state + h / 6 * (a + 2 * b + 2 * c + rate(state + h * c, t + h))

    state = jnp.stack([process.alpha(cuts[0]), process.sigma(cuts[0]) ** 2])
    pieces = 20
    for start, end in zip(cuts[:-1], cuts[1:]):
        h = (end - start) * (1 - 1e-9) / pieces  # a table's slopes jump at whole times
        for i in range(pieces):
            state = advance(state, start + i * h, h)
    np.testing.assert_allclose(state, [process.alpha(cuts[-1]), process.sigma(cuts[-1]) ** 2], rtol=3e-6)


@pytest.mark.parametrize("name", EVERY)
def test_the_posterior_is_bayes_rule(x64, name):
    """From q(x_s | x_0) and q(x_t | x_s) = N(a x_s, v), a = alpha_t/alpha_s, v = sigma_t^2 - a^2 sigma_s^2."""
    process = member(name)
    times = interior(process)
    for i, j in ((2, 30), (10, 11), (0, 38), (25, 26)):
        s, t = jnp.asarray(times[i]), jnp.asarray(times[j])
        a = process.alpha(t) / process.alpha(s)
        v = process.sigma(t) ** 2 - a**2 * process.sigma(s) ** 2
        x0, x_t = jnp.asarray(0.7).reshape(1, 1), jnp.asarray(-0.4).reshape(1, 1)
        precision = 1 / process.sigma(s) ** 2 + a**2 / v
        mean = (process.alpha(s) * x0 / process.sigma(s) ** 2 + a * x_t / v) / precision
        found = process.posterior(x_t, x0, s, t)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found.variance.squeeze(), 1 / precision, rtol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_the_velocity_is_the_slope_of_the_flow_of_a_gaussian(x64, name):
    """For data N(0, c) the probability flow keeps x / sqrt(alpha^2 c + sigma^2)."""
    process, c = member(name), 0.3
    t = interior(process)
    scale = lambda t: np.sqrt(process.alpha(t) ** 2 * c + process.sigma(t) ** 2)  # noqa: E731
    x = 1.7 * np.asarray(scale(t))
    x0 = process.alpha(t) * c * x / scale(t) ** 2
    eps = process.sigma(t) * x / scale(t) ** 2
    h = 1e-6 * process.t_max if not isinstance(process, DiscreteProcess) else 1e-4
    expected = 1.7 * (scale(t + h) - scale(t - h)) / (2 * h)
    np.testing.assert_allclose(process.velocity(x0, eps, t), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", EVERY)
def test_float32_keeps_its_digits(name):
    """alpha, sigma and lambda within a few roundings of what float64 says at the same float32 time."""
    t = np.float32(interior(member(name)))
    single = [np.asarray(f(jnp.asarray(t))) for f in (member(name).alpha, member(name).sigma, member(name).log_snr)]
    assert all(value.dtype == np.float32 for value in single)
    with jax.enable_x64(True):
        process = member(name)
        double = [np.asarray(f(jnp.asarray(t, float))) for f in (process.alpha, process.sigma, process.log_snr)]
    for one, other in zip(single[:2], double[:2]):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    np.testing.assert_allclose(single[2], double[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_values_and_slopes_are_finite_under_jit(name):
    process = member(name)
    t = jnp.asarray(interior(process), jnp.float32)
    for f in (process.alpha, process.sigma, process.log_snr):
        assert np.isfinite(jax.jit(jax.vmap(jax.grad(f)))(t)).all()
        assert np.isfinite(jax.jit(f)(jnp.float32(0))) or f == process.log_snr


def test_a_time_between_whole_ones_is_between_their_log_snrs(x64):
    process = DiscreteProcess(betas=TABLES["cosine"])
    np.testing.assert_allclose(process.log_snr(17.25), 0.75 * process.log_snr(17) + 0.25 * process.log_snr(18),
                               rtol=1e-12)


@pytest.mark.parametrize("name", ["VP", "cosine, shift 1/4", "Laplace"])
def test_a_table_of_a_process_has_its_marginals(x64, name):
    process, steps = CONTINUOUS[name], 50
    table, t = DiscreteProcess(betas=schedules.of_process(process, steps)), np.arange(1, 51)
    for f in ("alpha", "sigma", "log_snr"):
        np.testing.assert_allclose(getattr(table, f)(t), getattr(process, f)(t / steps), rtol=1e-8, atol=1e-9)


def test_a_respaced_chain_is_a_chain_of_its_own(x64):
    """beta' = 1 - alpha_bar_{S_i} / alpha_bar_{S_{i-1}} (Nichol & Dhariwal 2021, Eq. 19), of any subset of times."""
    process, subset = DiscreteProcess(betas=TABLES["linear"]), np.array([3, 4, 20, 77, 100])
    alpha_bar = np.cumprod(1 - TABLES["linear"])[subset - 1]
    own = DiscreteProcess(betas=1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))
    whole = np.arange(1, 6)
    np.testing.assert_allclose(own.alpha(whole), process.alpha(subset), rtol=1e-12)
    x_t, x0 = jnp.ones((1, 1)), jnp.full((1, 1), 0.3)
    for s, t in ((1, 2), (2, 5), (4, 5)):
        for a, b in zip(own.posterior(x_t, x0, s, t), process.posterior(x_t, x0, subset[s - 1], subset[t - 1])):
            np.testing.assert_allclose(a, b, rtol=1e-10)
