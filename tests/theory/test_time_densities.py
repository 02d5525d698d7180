"""Each density of times against its closed form, and the importance sampler against guided-diffusion's."""
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from diffusion import build
from diffusion import config as config_lib
from diffusion.core import schedules, time_densities
from diffusion.core.processes import DiscreteProcess
from diffusion.core.time_densities import Importance, LogNormal, UniformDiscrete
from diffusion.families import BY_NAME

# All in continuous time but the learned one, whose times of a log-SNR are found by halving an interval.
PROCESSES = {name: build.process(config_lib.base(process=name).process)
             for name, member in BY_NAME["process"].members().items()
             if "steps" not in member.keys and name != "learned"}
CHAIN = DiscreteProcess(betas=schedules.linear(7))
# name: (member, its keys where the defaults will not do, or not alone)
CASES = {name: (name, {}) for name in BY_NAME["density"].members()}
CASES |= {"logit_normal": ("logit_normal", {"density_mean": 0.5, "density_std": 0.8}),
          "mode, ends": ("mode", {"mode_scale": -0.5})}


def densities_of(process):
    """Those that draw times of the process."""
    found = {case: BY_NAME["density"].make(config_lib.override(config_lib.base(density=name), {
        f"loss.{key}": value for key, value in keys.items()}).loss, process=process)
        for case, (name, keys) in CASES.items()}
    return {case: density for case, density in found.items() if density.of_chain in (None, process.discrete)}


N = 4000
U = (np.arange(N) + 0.5) / N


@functools.cache
def drawn(name):
    """density -> (t, p, importance, p(lambda), lambda) of U on a process, in float64, by one program."""
    def evaluate(u):
        def of_density(density):
            times = density.draw(u[:, None], PROCESSES[name])
            return *times[:3], times.log_snr_density(PROCESSES[name]), PROCESSES[name].log_snr(times.t)
        return {density: of_density(member) for density, member in densities_of(PROCESSES[name]).items()}
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(evaluate)(U))


# Most of the time of these tests is the compiler's: this takes a third of it away.


@functools.cache
def noise_level(process):
    return jax.jit(process.noise_level)


def level(process, t):
    """By one program for all numbers of times."""
    with jax.enable_x64(True):
        return np.asarray(noise_level(process)(np.resize(t, N)))[:len(t)]


def share(process, t):
    return (t - process.t_min) / (process.t_max - process.t_min)


def mode_cdf(v, scale):
    """P(f(u) <= v) by bisection of the paper's f, which falls in u."""
    low, high = np.zeros_like(v), np.ones_like(v)
    for _ in range(60):
        u = (low + high) / 2
        above = 1 - u - scale * (np.cos(math.pi / 2 * u) ** 2 - 1 + u) > v
        low, high = np.where(above, u, low), np.where(above, high, u)
    return 1 - low


# Name -> distribution function of the times, before it is cut to the process's.
CDF = {
    "uniform": share,
    "log_normal": lambda process, t: stats.norm.cdf(np.log(level(process, t)), -1.2, 1.2),
    "logit_normal": lambda process, t: stats.norm.cdf(np.log(share(process, t) / (1 - share(process, t))), 0.5, 0.8),
    "mode": lambda process, t: mode_cdf(share(process, t), 1.29),
    "mode, ends": lambda process, t: mode_cdf(share(process, t), -0.5),
    "cosine_log_snr": lambda process, t: 2 / math.pi * np.arctan(level(process, t)),  # alpha = cos(pi t / 2)
}


@pytest.mark.parametrize("name", PROCESSES)
def test_quantiles_and_density_are_those_of_the_closed_form(name):
    process = PROCESSES[name]
    for density, (t, p, importance, _, _) in drawn(name).items():
        assert t.min() >= process.t_min and t.max() <= process.t_max and importance == 1.0, density
        inner = (U > 0.01) & (U < 0.99)
        if density not in CDF:  # that it is the density of its own quantiles
            np.testing.assert_allclose(p[inner], 1 / np.abs(np.gradient(t, U))[inner], rtol=2e-3, err_msg=density)
            continue
        cdf = CDF[density]
        with np.errstate(divide="ignore"):
            low, high = (cdf(process, np.array([end])) for end in (max(process.t_min, 1e-7), process.t_max))
        expected = (cdf(process, t) - low) / (high - low)
        expected = expected if t[-1] > t[0] else 1 - expected
        np.testing.assert_allclose(expected, U, atol=2e-6, err_msg=density)
        h = 1e-5 * np.minimum(t, process.t_max - t)
        slope = np.abs(cdf(process, t + h) - cdf(process, t - h)) / (2 * h) / (high - low)
        np.testing.assert_allclose(p[inner], slope[inner], rtol=2e-4, err_msg=density)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_density_of_log_snr_adds_to_one(name):
    for density, (_, _, _, p, log_snr) in drawn(name).items():
        order = np.argsort(log_snr)
        total = integrate.trapezoid(p[order], log_snr[order])
        assert abs(total - (N - 1) / N) < 2e-3, density  # all but the two halves of a quantile at the ends


def test_every_u_gives_a_time_of_finite_noise_in_float32():
    u = np.array([0.0, 2.0**-23, 0.5, 1 - 2.0**-23, 1 - 2.0**-24], np.float32)

    def times_and_log_snr(u, density, process):
        times = density.draw(u[:, None], process)
        return times.t, times.p, process.log_snr(times.t)

    found = jax.jit(lambda u: {(name, of): times_and_log_snr(u, density, process) for of, process in PROCESSES.items()
                           for name, density in densities_of(process).items()})(u)
    for (name, of), (t, p, log_snr) in jax.tree.map(np.asarray, found).items():
        assert t.dtype == np.float32, (name, of)
        assert np.all(t > 0) and np.all(t <= np.float32(PROCESSES[of].t_max) * (1 + 1e-6)), (name, of)
        assert np.all(np.isfinite(t) & np.isfinite(p)) and np.all(p > 0), (name, of)
        assert not np.isposinf(log_snr).any(), (name, of)


def test_uniform_over_the_integers():
    times = UniformDiscrete().draw(jnp.asarray(np.arange(7000) / 7000 + 1e-5)[:, None], CHAIN)
    np.testing.assert_array_equal(np.bincount(times.t), [0] + [1000] * 7)
    np.testing.assert_allclose(times.p, 1 / 7, rtol=1e-6)
    assert int(UniformDiscrete().draw(jnp.float32([[1 - 2.0**-24]]), CHAIN).t[0]) == 7


def test_draws_of_a_chains_times_are_as_often_as_the_density_says():
    """Each counted by its importance."""
    for name, density in densities_of(CHAIN).items():
        times = density.draw(jnp.asarray((np.arange(7000) + 0.5) / 7000)[:, None], CHAIN, density.init())
        t, p, importance = (np.broadcast_to(x, 7000) for x in times[:3])
        assert t.min() >= 1 and t.max() <= 7, name
        often = np.bincount(t, importance, minlength=8)[1:] / 7000
        np.testing.assert_allclose(often, p[[np.flatnonzero(t == i)[0] for i in range(1, 8)]], atol=1e-3, err_msg=name)


def test_the_density_of_a_chain_in_log_snr_adds_to_one(x64):
    process = DiscreteProcess(betas=schedules.linear(1000))
    density, log_snr = jax.jit(lambda u: (UniformDiscrete().draw(u[:, None], process).log_snr_density(process),
                                      process.log_snr(jnp.arange(1, 1001))))((np.arange(1000) + 0.5) / 1000)
    np.testing.assert_allclose(density[:-1] * -np.diff(log_snr), 1 / 1000, rtol=1e-9)


def test_independent_u_are_uniform_and_of_their_own_key():
    keys = jax.random.split(jax.random.key(0), 5000)
    u = np.asarray(time_densities.independent(keys))[:, 0]
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    np.testing.assert_array_equal(time_densities.independent(keys[::-1])[:, 0], u[::-1])


def test_stratified_u_share_one_draw():
    """VDM, Appendix I.1: u_i = (u_0 + i/B) mod 1. Each is uniform over the seeds, and one lies in every B-th part."""
    positions = jnp.arange(50)
    draw = jax.jit(lambda keys, positions: jax.vmap(
        lambda key: time_densities.stratified(key, positions, 50)[:, 0])(keys))
    keys = jax.vmap(jax.random.key)(np.arange(400))
    u = np.asarray(draw(keys, positions))
    np.testing.assert_array_equal(np.sort(np.floor(u * 50 % 50), axis=1)[:, [0, 25, -1]], [[0, 25, 49]] * 400)
    for place in (0, 31):
        assert stats.kstest(u[:, place], "uniform").pvalue > 1e-3
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(draw(keys, positions[order])[3], u[3][order])


def test_stratified_times_lower_the_variance_of_a_mean():
    def means(key):
        stratified = time_densities.stratified(key, jnp.arange(64), 64)
        alone = time_densities.independent(jax.random.split(key, 64))
        return [jnp.mean(jnp.log(LogNormal().draw(u, PROCESSES["edm"]).t)) for u in (stratified, alone)]
    even, alone = map(np.asarray, jax.jit(jax.vmap(means))(jax.vmap(jax.random.key)(np.arange(40))))
    assert even.std() < 0.4 * alone.std()


GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "resampler.npz")
STEPS, HISTORY, UNIFORM = GOLDEN["settings"]
SAMPLER = Importance(steps=int(STEPS), history=int(HISTORY), uniform=float(UNIFORM))


def test_importance_is_that_of_guided_diffusion():
    """Its probabilities after each of 40 batches, before and after the history is full, and its weights."""
    process = DiscreteProcess(betas=schedules.linear(SAMPLER.steps, beta_start=0.01, beta_end=0.5))

    @jax.jit
    def update(state, t, loss):
        state = SAMPLER.update(state, t, loss)
        return state, SAMPLER.probabilities(state), SAMPLER.draw(jnp.arange(2**12)[:, None] / 2**12, process, state)

    state, warm = SAMPLER.init(), 0
    for t, loss, expected, weights in zip(GOLDEN["t"], GOLDEN["loss"], GOLDEN["probabilities"], GOLDEN["weights"]):
        state, probabilities, times = update(state, (t + 1).astype(np.int32), loss)
        np.testing.assert_allclose(probabilities, expected, rtol=2e-6)
        warm += not np.allclose(expected, 1 / STEPS)
        seen = weights[np.asarray(times.t) - 1]
        np.testing.assert_allclose(np.asarray(times.importance)[seen > 0], seen[seen > 0], rtol=3e-3)
        np.testing.assert_allclose(times.p, 1 / STEPS)
    assert 5 < warm < 40


def test_importance_sampling_does_not_change_the_mean():
    """Summed over a fine grid of u, importance * f is the mean over uniform t, for the least likely t too."""
    process = DiscreteProcess(betas=schedules.linear(50, beta_start=0.01, beta_end=0.5))
    density = Importance(steps=50, history=2)
    rng = np.random.default_rng(0)
    state = {"losses": jnp.asarray(10.0 ** rng.uniform(-6, 0, (50, 2)), jnp.float32), "counts": jnp.full(50, 2)}
    times = jax.jit(lambda u: density.draw(u[:, None], process, state))(np.arange(2**23, dtype=np.float32) / 2**23)
    t, importance = np.asarray(times.t), np.asarray(times.importance, np.float64)
    total = np.bincount(t, weights=importance, minlength=51)[1:] / 2**23
    np.testing.assert_allclose(total, 1 / 50, rtol=1e-6)
    np.testing.assert_allclose(np.bincount(t, minlength=51)[1:] / 2**23, density.probabilities(state), rtol=0.02,
                               atol=2e-6)


def test_rarely_seen_times_keep_all_draws_uniform():
    density, t = Importance(steps=3, history=2), np.array([1, 1, 1, 2, 2, 1, 3])
    update = jax.jit(density.update)
    state = update(density.init(), t, np.arange(1.0, 8.0))
    np.testing.assert_array_equal(state["counts"] >= 2, [True, True, False])
    np.testing.assert_allclose(density.probabilities(state), 1 / 3, rtol=1e-6)
    np.testing.assert_array_equal(np.sort(state["losses"][0]), [3, 6])  # the newest two of t = 1
    state = update(state, np.array([3]), np.array([1.0]))
    moments = np.sqrt([(9 + 36) / 2, (16 + 25) / 2, (49 + 1) / 2])
    np.testing.assert_allclose(density.probabilities(state), 0.999 * moments / moments.sum() + 0.001 / 3, rtol=1e-5)
