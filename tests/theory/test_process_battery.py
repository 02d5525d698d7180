"""Every process passes the same checks: its paper's marginals and SDE, Bayes, inverse, ends, flow, precision."""
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import build
from diffusion import config as config_lib
from diffusion.core import schedules
from diffusion.core.continuous import VE, VP, Cosine, Flow, Laplace, SubVP, VarianceExploding, VariancePreserving
from diffusion.core.learned_schedule import LearnedSchedule
from diffusion.core.processes import DiscreteProcess
from diffusion.families import BY_NAME

B0, B1 = 0.1, 20.0
PROCESSES = BY_NAME["process"].members()
ENDS = {"beta_start": 1e-3, "beta_end": 0.2}  # those of a member's keys that it has
OF_PROCESS = {"shifted_cosine": {"shift": 0.25}, "laplace": {"log_snr_scale": 1.5}}
# The other keys of config.process by which a table is made, where its defaults will not do, or not alone.
SETTINGS = {
    "constant": [{"beta_end": 0.05}], "table": [{"betas": tuple(np.linspace(0.01, 0.1, 100))}],
    "warmup": [{"beta_end": 0.1, "warmup_share": share} for share in (0.1, 0.5)],
    "linear": [{}, {"zero_terminal_snr": True}],
    "table_of": [{"table_of": name, **OF_PROCESS.get(name, {})} for name in BY_NAME["table_of"].members()]}


def made(name, steps=None, **keys):
    """The process of config.process with these keys."""
    if steps:
        keys |= {"steps": steps} | {key: value for key, value in ENDS.items() if key in PROCESSES[name].keys} | keys
    return build.process(config_lib.override(config_lib.base(process=name), {
        f"process.{key}": value for key, value in keys.items()}).process)


TABLES = {", ".join([name, *(f"{key} {value}" for key, value in keys.items() if key != "betas")]): made(
    name, steps=100, **keys).betas for name, member in PROCESSES.items() if "steps" in member.keys
    for keys in SETTINGS.get(name, [{}])}


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


# name, that of a member first: (process, the paper's marginals, its f(t) and g(t) or None where it gives none)
PAPERS = {
    "vp": (VP(), lambda t: (np.exp(-big_b(t) / 2), np.sqrt(-np.expm1(-big_b(t)))),
           lambda t: (-beta(t) / 2, np.sqrt(beta(t)))),
    "sub_vp": (SubVP(), lambda t: (np.exp(-big_b(t) / 2), -np.expm1(-big_b(t))),
               lambda t: (-beta(t) / 2, np.sqrt(beta(t) * -np.expm1(-2 * big_b(t))))),
    "ve": (VE(), lambda t: (1 + 0 * t, 0.02 * 5000**t),
           lambda t: (0 * t, 0.02 * 5000**t * np.sqrt(2 * np.log(5000)))),
    "edm": (VarianceExploding(), lambda t: (1 + 0 * t, t), lambda t: (0 * t, np.sqrt(2 * t))),
    "edm, root of t": (VarianceExploding(power=0.5, sigma_min=0.02, sigma_max=100.0),
                       lambda t: (1 + 0 * t, np.sqrt(t)), lambda t: (0 * t, 1 + 0 * t)),
    "flow": (Flow(), flow(1.0), lambda t: (-1 / (1 - t), np.sqrt(2 * t / (1 - t)))),
    "flow, shift 3": (Flow(shift=3.0), flow(3.0), None),
    "flow, noise scale 2": (Flow(noise_scale=2.0, network_time="data", t_max=0.999), lambda t: (1 - t, 2 * t), None),
    "shifted_cosine": (Cosine(), cosine(1.0), None),
    "shifted_cosine, shift 1/4": (Cosine(shift=0.25), cosine(0.25), None),
    "laplace, wide": (Laplace(log_snr_mean=0.3, log_snr_scale=1.5),
                kept(lambda t: 0.3 - 1.5 * np.sign(0.5 - t) * np.log(1 - 2 * abs(t - 0.5))), None),
}
# Tables are one class: two of them pass all checks, and each is one chain in whole and in real times. All other members
# pass all checks, those without a paper here as their defaults have it.
CONTINUOUS = {name: case[0] for name, case in PAPERS.items()}
CONTINUOUS |= {f"table, {name}": DiscreteProcess(betas=TABLES[name]) for name in (
    "cosine", "linear, zero_terminal_snr True")}
for name, kind in PROCESSES.items():
    if "steps" not in kind.keys and name not in {known.split(",")[0] for known in PAPERS} | {"learned"}:
        CONTINUOUS[name] = made(name)
EVERY = [*CONTINUOUS, "learned"]
PAIRS = np.array([(2, 30), (10, 11), (0, 38), (25, 26)])  # (s, t) of posteriors, as places in the interior
PIECES = 20  # of each interval of the integration of the SDE


def member(name):
    return CONTINUOUS[name] if name in CONTINUOUS else random_schedule()  # whose arrays take the precision in force


def interior(process, count=41):
    """Times within the process; of a table within its linear pieces, where it has slopes, all but the last, whose
    slope is infinite where nothing is left of the data."""
    if isinstance(process, DiscreteProcess):
        return np.linspace(1, process.t_max - 2, count).round() + np.linspace(0.2, 0.8, count)
    start, end = max(float(process.t_min), 1e-3 * process.t_max), 0.995 * process.t_max
    times = np.linspace(start, end, count)
    return times[np.abs(times / process.t_max - 0.5) > 1e-3]  # Laplace's slope has a jump in the middle


def parts_of_the_path(process):
    """(time, width) of the steps of an integration, [N] each."""
    whole = isinstance(process, DiscreteProcess)
    cuts = np.arange(20, 41.0) if whole else np.linspace(*interior(process)[[8, 30]], 21)
    width = np.repeat(np.diff(cuts) * (1 - 1e-9) / PIECES, PIECES)  # a table's slopes jump at whole times
    return np.repeat(cuts[:-1], PIECES) + np.tile(np.arange(PIECES), len(cuts) - 1) * width, width, cuts[[0, -1]]


@functools.cache
def found(name):
    """All that the tests ask of a process, in float64: each function at all times at once, by one compiled program.

    found(name).t and others are times; found(name).alpha["t"] are the alphas there.
    """
    with jax.enable_x64(True):
        process = member(name)
        t = interior(process)
        path, width, ends_of_path = parts_of_the_path(process)
        h = 1e-6 * process.t_max if not isinstance(process, DiscreteProcess) else 1e-4
        times = {"t": t, "above": t + h, "below": t - h, "float32": np.asarray(t, np.float32).astype(float),
                 "zero": np.zeros(1), "start": np.array([process.t_min or 1e-6], float),
                 "end": np.array([process.t_max], float), "path": path, "middle": path + width / 2,
                 "next": path + width, "ends of the path": ends_of_path}

        def evaluate(every, t, pairs):
            values = {f: getattr(process, f)(every) for f in ("alpha", "sigma", "log_snr", "noise_level", "c_noise",
                                                               "prior_std")}
            values["f"], values["g"] = process.drift_and_diffusion(every)
            values["alpha_rate"], values["sigma_rate"] = process.alpha_sigma_derivatives(every)
            x0, ones = jnp.linspace(-1, 1, 12).reshape(1, 2, 2, 3), jnp.ones((len(pairs), 1))
            scale = process.alpha(t) ** 2 * 0.3 + process.sigma(t) ** 2
            single = dict(
                inverse=process.time_of_log_snr(jnp.append(process.log_snr(t), jnp.inf)),
                clean=process.diffuse(x0, jnp.zeros(()), jnp.ones_like(x0)) - x0,
                posterior=process.posterior(-0.4 * ones, 0.7 * ones, pairs[:, 0], pairs[:, 1]),
                velocity=process.velocity(process.alpha(t) * 0.3 * 1.7 / jnp.sqrt(scale),
                                          process.sigma(t) * 1.7 / jnp.sqrt(scale), t))
            return values, single

        cuts = np.cumsum([len(part) for part in times.values()])[:-1]
        values, single = jax.tree.map(np.asarray, jax.jit(evaluate)(np.concatenate([*times.values()]), t, t[PAIRS]))
    values = {f: dict(zip(times, np.split(value, cuts))) for f, value in values.items()}
    return SimpleNamespace(process=process, h=h, width=width, t=t, **values, **single)


@functools.cache
def found_in_float32(name):
    """alpha, sigma and log-SNR and their slopes, the last of them at t = 0."""
    process = member(name)
    t = np.append(np.asarray(interior(process), np.float32), np.float32(0))
    evaluate = jax.jit(lambda t: [jax.vmap(jax.value_and_grad(f))(t)
                                  for f in (process.alpha, process.sigma, process.log_snr)])
    return jax.tree.map(np.asarray, evaluate(t))


def slope(values, h):
    """By central differences."""
    return (values["above"] - values["below"]) / (2 * h)


@pytest.mark.parametrize("name", PAPERS)
def test_marginals_are_the_papers(name):
    here, (alpha, sigma) = found(name), PAPERS[name][1](found(name).t)
    np.testing.assert_allclose(here.alpha["t"], alpha, rtol=2e-12)
    np.testing.assert_allclose(here.sigma["t"], sigma, rtol=2e-12)


def test_a_table_is_one_chain_in_whole_and_in_real_times(x64):
    for name, betas in TABLES.items():
        process = DiscreteProcess(betas=betas)
        whole = np.arange(1, process.t_max + 1)
        np.testing.assert_allclose(process.alpha(whole) ** 2, np.cumprod(1 - betas), rtol=1e-12, err_msg=name)
        for f in (process.alpha, process.sigma, process.log_snr, process.c_noise):
            np.testing.assert_allclose(f(whole.astype(float)), f(whole), rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", EVERY)
def test_alpha_sigma_and_log_snr_agree_and_log_snr_falls(name):
    here = found(name)
    alpha, sigma, log_snr = here.alpha["t"], here.sigma["t"], here.log_snr["t"]
    np.testing.assert_allclose(2 * np.log(alpha / sigma), log_snr, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(here.noise_level["t"], sigma / alpha, rtol=1e-9)
    assert np.all(np.diff(log_snr) < 0) and np.all(alpha > 0) and np.all(sigma > 0)
    if isinstance(here.process, VariancePreserving | DiscreteProcess) and not isinstance(here.process, SubVP):
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_time_inverts_log_snr(name):
    here = found(name)
    np.testing.assert_allclose(here.inverse[:-1], here.t, rtol=1e-7, atol=1e-9)  # learned: 30 halvings
    assert here.inverse[-1] == 0  # of +inf


@pytest.mark.parametrize("name", EVERY)
def test_ends(name):
    """t = 0 is the data; t_min is noisy by little and t_max by much; the prior is what x_T is without data."""
    here = found(name)
    assert here.alpha["zero"] == 1 and here.sigma["zero"] == 0 and here.log_snr["zero"] == np.inf
    np.testing.assert_array_equal(here.clean, 0)
    assert here.log_snr["end"] < 0 < here.log_snr["start"] + 8
    assert np.isfinite(here.prior_std["end"]) and abs(here.prior_std["end"] / here.sigma["end"] - 1) < 0.35
    assert np.isfinite(here.c_noise["t"]).all()


@pytest.mark.parametrize("name", EVERY)
def test_drift_and_diffusion_are_the_slopes_of_the_marginals(name):
    """Central differences; f = alpha'/alpha and g^2 = (sigma^2)' - 2 f sigma^2, so that no log-SNR is used."""
    here = found(name)
    f = slope({place: np.log(alpha) for place, alpha in here.alpha.items() if place in ("above", "below")}, here.h)
    np.testing.assert_allclose(here.f["t"], f, rtol=1e-5, atol=1e-7 / here.process.t_max)
    variance = {place: sigma**2 for place, sigma in here.sigma.items()}
    np.testing.assert_allclose(here.g["t"] ** 2, slope(variance, here.h) - 2 * f * variance["t"], rtol=2e-5, atol=1e-8)
    np.testing.assert_allclose(here.alpha_rate["t"], slope(here.alpha, here.h), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(here.sigma_rate["t"], slope(here.sigma, here.h), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", [name for name, case in PAPERS.items() if case[2]])
def test_drift_and_diffusion_are_the_papers(name):
    here = found(name)
    for ours, expected in zip((here.f["t"], here.g["t"]), PAPERS[name][2](here.t)):
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_the_sde_has_the_marginals(name):
    """m' = f m and v' = 2 f v + g^2 integrated from one time to another (Song et al. 2021, Eq. 5; Runge-Kutta)."""
    here = found(name)

    def rate(state, place, i):
        f = here.f[place][i]
        return np.array([f * state[0], 2 * f * state[1] + here.g[place][i] ** 2])

    ends = np.stack([here.alpha["ends of the path"], here.sigma["ends of the path"] ** 2], 1)
    state = ends[0]
    for i, h in enumerate(here.width):
        a = rate(state, "path", i)
        b = rate(state + h / 2 * a, "middle", i)
        c = rate(state + h / 2 * b, "middle", i)
        state = state + h / 6 * (a + 2 * b + 2 * c + rate(state + h * c, "next", i))
    np.testing.assert_allclose(state, ends[1], rtol=3e-6)


@pytest.mark.parametrize("name", EVERY)
def test_the_posterior_is_bayes_rule(name):
    """From q(x_s | x_0) and q(x_t | x_s) = N(a x_s, v), a = alpha_t/alpha_s, v = sigma_t^2 - a^2 sigma_s^2."""
    here = found(name)
    (alpha_s, alpha_t), (sigma_s, sigma_t) = here.alpha["t"][PAIRS.T], here.sigma["t"][PAIRS.T]
    a = alpha_t / alpha_s
    v = sigma_t**2 - a**2 * sigma_s**2
    precision = 1 / sigma_s**2 + a**2 / v
    mean = (alpha_s * 0.7 / sigma_s**2 + a * -0.4 / v) / precision
    np.testing.assert_allclose(here.posterior.mean[:, 0], mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(here.posterior.variance[:, 0], 1 / precision, rtol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_the_velocity_is_the_slope_of_the_flow_of_a_gaussian(name):
    """For data N(0, 0.3) the probability flow keeps x / sqrt(0.3 alpha^2 + sigma^2); x is 1.7 times that root here."""
    here = found(name)
    flow = {place: 1.7 * np.sqrt(0.3 * here.alpha[place] ** 2 + here.sigma[place] ** 2) for place in ("above", "below")}
    np.testing.assert_allclose(here.velocity, slope(flow, here.h), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", EVERY)
def test_float32_keeps_its_digits(name):
    """alpha, sigma and lambda within a few roundings of what float64 says at the same float32 time."""
    single = [value[:-1] for value, _ in found_in_float32(name)]
    double = [getattr(found(name), f)["float32"] for f in ("alpha", "sigma", "log_snr")]
    assert all(value.dtype == np.float32 for value in single) and all(value.dtype == np.float64 for value in double)
    for one, other in zip(single[:2], double[:2]):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    np.testing.assert_allclose(single[2], double[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_values_and_slopes_are_finite_under_jit(name):
    (alpha, alpha_slope), (sigma, sigma_slope), (_, log_snr_slope) = found_in_float32(name)
    assert all(np.isfinite(part[:-1]).all() for part in (alpha_slope, sigma_slope, log_snr_slope))
    assert np.isfinite(alpha[-1]) and np.isfinite(sigma[-1])


def test_a_time_between_whole_ones_is_between_their_log_snrs(x64):
    process, t = DiscreteProcess(betas=TABLES["cosine"]), np.arange(1.0, 101)
    whole, between = process.log_snr(t), process.log_snr(t + 0.25)
    np.testing.assert_allclose(between[:-1], 0.75 * whole[:-1] + 0.25 * whole[1:], rtol=1e-12)


def test_a_table_of_a_process_has_its_marginals(x64):
    tables = {name: DiscreteProcess(betas=schedules.of_process(CONTINUOUS[name], 100))
              for name in ("vp", "shifted_cosine, shift 1/4", "laplace, wide")}
    t = np.arange(1, 101)
    expected = jax.jit(lambda t: {name: [f(t) for f in (CONTINUOUS[name].alpha, CONTINUOUS[name].sigma,
                                                       CONTINUOUS[name].log_snr)] for name in tables})(t / 100)
    for name, table in tables.items():
        for f, of_process in zip((table.alpha, table.sigma, table.log_snr), expected[name]):
            np.testing.assert_allclose(f(t), of_process, rtol=1e-8, atol=1e-9, err_msg=name)


def test_a_respaced_chain_is_a_chain_of_its_own(x64):
    """beta' = 1 - alpha_bar_{S_i} / alpha_bar_{S_{i-1}} (Nichol & Dhariwal 2021, Eq. 19), of any subset of times."""
    process, subset = DiscreteProcess(betas=TABLES["linear"]), np.array([3, 4, 20, 77, 100])
    alpha_bar = np.cumprod(1 - TABLES["linear"])[subset - 1]
    own = DiscreteProcess(betas=1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))
    s, t, x_t, x0 = np.array([1, 2, 4]), np.array([2, 5, 5]), np.ones((3, 1)), np.full((3, 1), 0.3)

    @jax.jit
    def evaluate(s, t, x_t, x0):
        places = jnp.asarray(subset)
        return ([own.alpha(jnp.arange(1, 6)), *own.posterior(x_t, x0, s, t)],
                [process.alpha(places), *process.posterior(x_t, x0, places[s - 1], places[t - 1])])

    (alpha, *posterior), (alpha_there, *posterior_there) = evaluate(s, t, x_t, x0)
    np.testing.assert_allclose(alpha, alpha_there, rtol=1e-12)
    for a, b in zip(posterior, posterior_there):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_the_network_is_told_what_the_papers_tell_it(x64):
    """c_noise: 999 t (Song et al. 2021, code), ln(sigma) / 4 (EDM, Table 1), sigma (VE), 1000 sigma (SD 3, code)."""
    t = np.array([0.3, 0.7])
    for process, label in ((VP(), 999 * t), (Cosine(), 999 * t),
                           (VarianceExploding(), np.log(t) / 4),
                           (VE(), 0.02 * 5000.0**t), (Flow(shift=3.0), 3000 * t / (1 + 2 * t))):
        np.testing.assert_allclose(process.c_noise(t), label, rtol=1e-12, err_msg=type(process).__name__)
