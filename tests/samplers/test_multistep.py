"""UniPC, DEIS, SA-Solver, LMS, PNDM and consistency sampling: order, law of the samples, evaluations, last step."""
import functools
import pathlib
from decimal import Decimal, getcontext
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import large
from samplers.exact import (
    CHAIN,
    IMAGE,
    MEAN,
    PROCESSES,
    VARIANCE,
    calls_of,
    counted,
    exact,
    keys_of,
    mixture,
    pairs,
    run,
    times_of,
)

from diffusion.core import grids, numerics
from diffusion.core.continuous import VP, VarianceExploding
from diffusion.core.parameterization import Diffusion, Prediction
from diffusion.samplers import history, multistep
from diffusion.samplers.consistency import Consistency
from diffusion.samplers.deis import DEIS
from diffusion.samplers.lms import LMS
from diffusion.samplers.pndm import PNDM
from diffusion.samplers.sa_solver import SASolver
from diffusion.samplers.unipc import UniPC

# ---- orders -------------------------------------------------------------------------------------------------------

# name -> (solver, the order in theory). The corrector adds one. PNDM: Liu et al. (2022), Section 3.4.
ORDERS = {f"UniPC-{p} {b} {m}": (UniPC(order=p, variant=b, predict=m), p + 1)
          for p in (1, 2, 3) for b in ("B1", "B2") for m in ("x0", "eps")}
ORDERS |= {f"UniP-{p} {b} {m}": (UniPC(order=p, variant=b, predict=m, corrector=False), p)
           for p, b, m in [(1, "B1", "x0"), (2, "B1", "eps"), (2, "B2", "x0"), (2, "B2", "eps"), (3, "B2", "x0"),
                           (3, "B1", "eps")]}
ORDERS |= {f"DEIS-{p}": (DEIS(order=p), p) for p in (1, 2, 3, 4)}
ORDERS |= {f"LMS-{p}": (LMS(order=p), p) for p in (1, 2, 3, 4)}
ORDERS |= {f"SA-{p}{q}": (SASolver(predictor=p, corrector=q, tau=0.0), max(p, q))
           for p, q in [(1, 0), (2, 0), (3, 0), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4)]}
ORDERS |= {f"PNDM {s}": (PNDM(start=s), 2) for s in ("heun", "runge_kutta")}


# All on one process, and one of each kind, with and without a corrector, on the others.
CASES = [(solver, "EDM") for solver in ORDERS]
CASES += [(solver, name) for name in ("VP", "Flow")
          for solver in ("UniPC-3 B2 x0", "UniPC-2 B1 eps", "UniP-2 B2 x0", "DEIS-3", "LMS-4", "SA-34", "SA-20",
                         "PNDM heun", "PNDM runge_kutta")]


@functools.cache
def grid(name, even_in_t, count):
    """Even in log-SNR, or in t for PNDM. Two shorter steps first, so that their lower order does not count: with h the
    length of the others, one of h^2 (whose local error, of order 1, is then h^4) and one of h^(4/3) (order 2, h^4)."""
    process, first, last = PROCESSES[name]
    if even_in_t:
        return pairs(np.linspace(first, last, count + 1))
    begin, end = process.log_snr(first), process.log_snr(last)
    h = 1 / count
    share = np.concatenate([[0, h**2], np.linspace(h**2 + h ** (4 / 3), 1, count + 1)])
    return pairs(times_of(process, begin + share * (end - begin)))


# One of each kind and order, on one process; the others are slow.
QUICK = {"UniPC-2 B2 x0", "UniPC-3 B1 eps", "UniP-2 B1 eps", "UniP-3 B2 x0", "DEIS-3", "LMS-4", "SA-22", "SA-34",
         "PNDM heun", "PNDM runge_kutta"}


@pytest.mark.parametrize("solver, name", [
    pytest.param(*case, marks=[] if case[0] in QUICK and case[1] == "EDM" else [pytest.mark.slow]) for case in CASES])
def test_order_of_convergence(x64, solver, name):
    """The error falls by 2^order when the steps are halved."""
    solver, order = ORDERS[solver]
    x, reference = exact(name)
    steps = [grid(name, isinstance(solver, PNDM), count) for count in (24, 48, 96)]
    error = [np.abs(run(solver, mixture(PROCESSES[name][0]), rows, x)[1] - reference).max() for rows in steps]
    slope = np.log2(error[-2] / error[-1])
    if isinstance(solver, PNDM) and name == "EDM":  # equal steps in sigma: this is Adams-Bashforth itself
        order = {"heun": 3, "runge_kutta": 4}[solver.start]
        assert order - 0.3 < slope, (slope, error)
    else:
        assert order - 0.3 < slope < order + 0.7, (slope, error)
    assert error[-1] < 2e-2 / 4 ** (order - 1), error


@pytest.mark.parametrize("h, reach, used", [
    (0.3, 4.0, [1, 1, 1]), (0.7, 4.0, [1, 1, 0]), (1.0, 4.0, [1, 0, 0]),  # 5 times the step before
    (1.0, 8.0, [1, 1, 1]), (6.0, 40.0, [1, 1, 0]), (5.0, np.inf, [1, 1, 1])])
def test_values_within_reach(h, reach, used):
    """After steps of 0.2 and, before it, 0.8: of a density e^(-h (1 - u)), the ODE's in x_0."""
    times = jnp.array([0.0, -0.2, -1.0])
    assert multistep.within_reach(times, jnp.asarray(h), jnp.asarray(-h), reach).tolist() == [bool(u) for u in used]


def test_short_steps_lose_no_digits(x64):
    """A thousand steps: the weights in float32 are those in float64."""
    weights = jax.jit(lambda nodes, rate: multistep.weights(nodes, np.ones(4, bool), lambda u: jnp.exp(rate * (1 - u))))
    for rate in (-1e-3, -1e-6, 0.0, 0.02):
        both = [weights(np.array([0.0, -1.0, -2.1, -2.9], dtype), dtype(rate)) for dtype in (np.float32, np.float64)]
        assert [w.dtype for w in both] == [np.float32, np.float64]
        np.testing.assert_allclose(*both, rtol=2e-6)


def test_weights_are_those_of_adams(x64):
    """Adams-Bashforth and Adams-Moulton of four values; one past value; and what is not valid counts for nothing."""
    weights = jax.jit(lambda nodes, valid: multistep.weights(nodes, valid, jnp.ones_like))
    bashforth = weights(np.arange(0.0, -4, -1), np.ones(4, bool))
    np.testing.assert_allclose(bashforth * 24, [55, -59, 37, -9], rtol=1e-12)
    moulton = weights(np.arange(1.0, -3, -1), np.ones(4, bool))
    np.testing.assert_allclose(moulton * 24, [9, 19, -5, 1], rtol=1e-12)
    two = weights(np.array([0.0, -1.0, np.inf, np.nan]), np.arange(4) < 2)
    np.testing.assert_allclose(two, [1.5, -0.5, 0, 0], rtol=1e-12)


def test_weights_integrate_the_exponential(x64):
    """Through four nodes a cubic is exact: against the phi recursion, in 50 digits."""
    getcontext().prec = 50
    nodes = np.array([0.0, -0.7, -1.9, -2.5])
    weights = jax.jit(lambda rate: multistep.weights(jnp.asarray(nodes), np.ones(4, bool),
                                                   lambda u: jnp.exp(rate * (1 - u))))
    for rate in (-20.0, -3.0, -1e-4, 2.0, 10.0):
        r = Decimal(rate)
        moments = [(r.exp() - 1) / r]  # int e^(r (1 - u)) u^k du
        for k in range(1, 4):
            moments.append((k * moments[-1] - 1) / r)
        w = np.asarray(weights(rate))
        np.testing.assert_allclose([np.sum(w * nodes**k) for k in range(4)], np.array(moments, float), rtol=1e-10)


# ---- all solvers, to the data -------------------------------------------------------------------------------------

ALL = {"UniPC x0": UniPC(order=3), "UniPC eps": UniPC(order=2, variant="B1", predict="eps"), "DEIS": DEIS(),
       "SA": SASolver(predictor=3, corrector=3), "SA ODE": SASolver(tau=0.0), "LMS": LMS(),
       "PLMS": PNDM(start="heun"), "PNDM": PNDM(), "consistency": Consistency(),
       "consistency at 0": Consistency(at_t_min=False)}
GRIDS = {"VP": np.linspace(1, 0.02, 12), "EDM": np.geomspace(80, 0.02, 12), "Flow": np.linspace(1, 0.02, 12),
         "chain": grids.trailing(200, 12), "chain, float": np.linspace(200.0, 1.5, 12)}
# Their last step returns x_0 of the last evaluation itself. (LMS and PNDM end at the x_0 of a mean of eps, as their
# authors' code.)
ENDS_AT_X0 = ("UniPC x0", "DEIS", "SA", "SA ODE", "consistency", "consistency at 0")


# All from the flow's pure noise, and on one of the others, in turn. The slow ones: all on the chain's own times, and
# one of each kind on all.
CASES = [(solver, "Flow") for solver in ALL]
CASES += [(solver, ("chain", "VP", "chain, float", "EDM")[i % 4]) for i, solver in enumerate(ALL)]
SLOW_CASES = [(solver, "chain") for solver in ALL]
SLOW_CASES += [(solver, name) for name in ("VP", "EDM", "chain, float")
               for solver in ("UniPC x0", "DEIS", "SA", "LMS", "PNDM", "consistency")]
SLOW_CASES = [case for case in SLOW_CASES if case not in CASES]


def process_and_steps(name, dtype=float):
    process = CHAIN if name.startswith("chain") else PROCESSES[name][0]
    times = np.append(GRIDS[name], 0)
    return process, pairs(times.astype(np.int32 if name == "chain" else dtype))


@pytest.mark.parametrize("solver, name", CASES + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES])
def test_evaluations_rows_parts_and_the_last_step(x64, solver, name):
    """From pure noise (the flow's t = 1) to the data, and parts of that: finite, in as many calls as `evaluations` says
    and the method needs. A row depends on its own start and key alone, and a chain may be cut in two. With one image as
    the data every chain ends there, to rounding; any noise would stay."""
    (process, steps), label, solver = process_and_steps(name), solver, ALL[solver]
    diffusion, one, keys = counted(process), np.arange(8) % 2, keys_of(8)
    x = np.random.default_rng(1).normal(size=(8, *IMAGE.shape)) * process.prior_std(process.t_max)

    def chain(part, x=x, keys=keys, one=one, first=0, last=None, carry=None):
        return calls_of(solver, diffusion, part, x, keys, one, first, last,
                        start if carry is None else carry)

    start = jax.jit(solver.init)(x)
    for part in (steps, steps[:6], steps[4:], steps[-1:]):
        carry, out, calls = chain(part)
        more = 0
        if isinstance(solver, PNDM):  # but not from pure noise, nor to the data
            starting, each = {"heun": (1, 1), "runge_kutta": (3, 3)}[solver.start]
            more = each * sum(t_next > 0 and np.isfinite(process.log_snr(t)) for t, t_next in part[:starting])
        assert calls == solver.evaluations(part, carry) == len(part) + more
        assert np.isfinite(out).all()
        if part[-1, 1] == 0:
            np.testing.assert_allclose(out[one == 1], np.broadcast_to(IMAGE, (4, *IMAGE.shape)), rtol=0, atol=1e-9)
    whole = chain(steps)[1]
    others = np.array([3, 0, 2, 1, 7, 4, 6, 5])
    np.testing.assert_array_equal(chain(steps, x[others], keys[others], one[others])[1], whole[others])
    carry, half, _ = chain(steps, last=5)
    np.testing.assert_array_equal(chain(steps, half, first=5, carry=carry)[1], whole)
    if name == "VP" and label in ENDS_AT_X0:
        before = chain(steps[:-1])[1]
        x0 = jax.jit(lambda x, t: mixture(process).denoise(x, t).x0)(before, steps[-1, 0])
        np.testing.assert_allclose(whole[one == 0], x0[one == 0], rtol=1e-12)


# ---- laws ---------------------------------------------------------------------------------------------------------

SA = {"22": SASolver(), "33 half": SASolver(predictor=3, corrector=3, tau=0.6),
      "30": SASolver(predictor=3, corrector=0, tau=1.0), "within": SASolver(tau=1.0, noise_min=0.05, noise_max=1.0)}


@pytest.mark.slow
@pytest.mark.parametrize("solver, name", [*((solver, "VP") for solver in SA), ("22", "EDM"), ("33 half", "Flow"),
                                          ("30", "Flow"), ("within", "EDM")])
def test_sa_solver_samples_the_data(solver, name):
    """Mean and variance of 40,000 coordinates of the mixture, to 4 standard errors and 0.01 for the 60 steps."""
    process, count = PROCESSES[name][0], 40_000
    first = 0.995 if name == "Flow" else process.t_max
    steps = pairs(np.append(times_of(process, np.linspace(process.log_snr(first), 6.0, 60)), 0))
    spread = np.sqrt(process.alpha(first) ** 2 * VARIANCE + process.sigma(first) ** 2)
    x = process.alpha(first) * MEAN + spread * np.random.default_rng(3).normal(size=(800, 50))
    out = np.asarray(run(SA[solver], mixture(process), steps, x)[1], float).ravel()
    assert abs(out.mean() - MEAN) < 4 * np.sqrt(VARIANCE / count) + 0.01
    kurtosis = np.mean((out - out.mean()) ** 4)
    assert abs(out.var() - VARIANCE) < 4 * np.sqrt((kurtosis - VARIANCE**2) / count) + 0.01


def test_sa_solver_has_the_noise_of_tau(x64):
    """One step of the first order from x of a known x_0: mean and variance by the paper's Proposition 4.2."""
    process, t, s, count = VP(), 0.5, 0.3, 20_000

    def denoise(x, t, cond=None):
        return Prediction(jnp.zeros_like(x), x / process.sigma(t))

    @large
    def step(x, tau):
        solver = SASolver(predictor=1, corrector=0, tau=tau)
        return solver.step(solver.init(x), x, t, s, Diffusion(process, denoise), keys_of(400), None)[1]

    sigma_t, sigma_s = float(process.sigma(t)), float(process.sigma(s))
    h = float(process.log_snr(s) - process.log_snr(t)) / 2
    for tau in (0.0, 0.5, 1.0, 1.5):
        out = np.asarray(step(np.ones((400, 50)), tau))
        mean = np.exp(-tau**2 * h) * sigma_s / sigma_t
        variance = sigma_s**2 * (1 - np.exp(-2 * tau**2 * h))
        assert abs(out.mean() - mean) <= 4 * np.sqrt(variance / count) + 1e-12
        assert abs(out.var() - variance) <= 4 * variance * np.sqrt(2 / count) + 1e-12


@pytest.mark.parametrize("name, at_t_min", [*((name, True) for name in GRIDS), ("VP", False), ("EDM", False),
                                            ("chain", False)])
def test_consistency_sampling_of_a_normal_law(x64, name, at_t_min):
    """The consistency function of N(0, v) is x spread(end) / spread(t): samples are N(0, v(end)) after any steps."""
    (process, steps), v, count = process_and_steps(name), 0.3, 50_000
    end = process.t_min if at_t_min else 0

    def spread(t):
        return jnp.sqrt(process.alpha(t) ** 2 * v + process.sigma(t) ** 2)

    def denoise(x, t, cond=None):
        return Prediction(x * spread(jnp.asarray(end, t.dtype)) / spread(t), x)

    x, diffusion = np.random.default_rng(2).normal(size=(500, 100)) * spread(steps[0, 0]), Diffusion(process, denoise)
    for rows in (steps[:1], steps[:4], pairs(steps[[0, 3, -1], [0, 0, 1]])):
        out = np.asarray(run(Consistency(at_t_min=at_t_min), diffusion, rows, x)[1])
        last = rows[-1, 1] if rows[-1, 1] > 0 else np.asarray(end, steps.dtype)
        np.testing.assert_allclose(out.std(), spread(last), rtol=4 / np.sqrt(2 * count))


def test_history():
    x = jnp.ones((2, 3))
    kept = history.empty(x, 2)
    for i in range(3):
        kept = history.push(kept, (i + 1) * x, i)
    assert kept.count == 3 and kept.times.tolist() == [2, 1] and kept.values[:, 0, 0].tolist() == [3, 2]


# ---- the authors' code --------------------------------------------------------------------------------------------

@functools.cache
def golden():
    with np.load(pathlib.Path(__file__).parent.parent / "golden" / "k_multistep.npz") as file:
        return dict(file)


@functools.cache
def toy(process):
    """The denoiser of make_k_multistep.py."""
    def denoise(x, t, cond=None):
        sigma = process.sigma(t)
        x0 = jnp.tanh(0.8 * x / (1 + 0.1 * sigma)) + 0.1 * jnp.sin(3 * x) / (1 + sigma)
        return Prediction(x0, (x - x0) / sigma)
    return Diffusion(process, denoise)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["karras", "exponential", "vp"])
def test_lms_is_k_diffusions(x64, name, order):
    """sample_lms of crowsonkb/k-diffusion, in float64 on its own grids, to sigma = 0."""
    g = golden()
    sigmas = g[f"sigmas_{name}"]
    out = run(LMS(order=order), toy(VarianceExploding()), pairs(sigmas), sigmas[0] * g["x"])[1]
    np.testing.assert_allclose(out, g[f"lms_{name}_{order}"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_consistency_sampling_is_openais(x64, number):
    """stochastic_iterative_sampler of openai/consistency_models, whose noise is given to ours."""
    g = golden()
    x = 80.0 * g["x"]
    for row, z in zip(pairs(np.append(g[f"times_{number}"], 0)), g[f"noise_{number}"]):
        x = consistency_step(x, *row, z)
    np.testing.assert_allclose(x, g[f"consistency_{number}"], rtol=1e-9, atol=1e-9)


@jax.jit
def consistency_step(x, t, t_next, z):
    with mock.patch.object(numerics, "normal", lambda *_: z):
        return Consistency().step((), x, t, t_next, toy(VarianceExploding()), None, None)[1]
