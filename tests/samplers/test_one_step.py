"""Heun, DPM-Solver and its multistep form, the SDE predictors and correctors, and the adaptive ODE."""
import functools

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
    prior,
    run,
    times_of,
)

from diffusion.core import grids, numerics, schedules
from diffusion.core.continuous import VE, VP, Flow, SubVP, VarianceExploding
from diffusion.core.parameterization import Diffusion
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.adaptive import AdaptiveODE
from diffusion.samplers.base import sample
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.dpm_multistep import DPMSolverMultistep
from diffusion.samplers.dpm_solver import DPMSolver
from diffusion.samplers.heun import Heun
from diffusion.samplers.sde import EulerMaruyama, PredictorCorrector, ReverseDiffusion

# name -> (solver, order in theory, steps even in log-SNR or else in t)
ORDERS = {"euler": (Heun(order=1), 1, False), "heun": (Heun(), 2, False), "midpoint": (Heun(fraction=0.5), 2, False),
          "ralston": (Heun(fraction=2 / 3), 2, False)}
ORDERS |= {f"DPM-Solver-{k} {predict}": (DPMSolver(order=k, predict=predict), k, True)
           for k in (1, 2, 3) for predict in ("eps", "x0")}
ORDERS |= {f"DPM-Solver++({k}M) {kind}": (DPMSolverMultistep(order=k, kind=kind), min(k, 2), True)
           for k, kind in [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "heun")]}


# All on one process, whose time is sigma, and one of each kind on the others.
CASES = [(solver, "EDM") for solver in ORDERS]
CASES += [(solver, name) for name in ("VP", "Flow")
          for solver in ("heun", "DPM-Solver-2 x0", "DPM-Solver-3 eps", "DPM-Solver++(2M) midpoint",
                         "DPM-Solver++(3M) heun")]


@functools.cache
def grid(name, even, count):
    process, first, last = PROCESSES[name]
    if not even:
        return pairs(np.linspace(first, last, count + 1))
    return pairs(times_of(process, np.linspace(process.log_snr(first), process.log_snr(last), count + 1)))


@pytest.mark.parametrize("solver, name", [
    pytest.param(*case, marks=[] if case[1] == "EDM" else [pytest.mark.slow]) for case in CASES])
def test_order_of_convergence(x64, solver, name):
    """The error falls by 2^order when the steps are halved. 3M, as published, halves the third difference: order 2."""
    solver, order, even = ORDERS[solver]
    x, reference = exact(name)
    error = [np.abs(run(solver, mixture(PROCESSES[name][0]), grid(name, even, count), x)[1] - reference).max()
             for count in (32, 64, 128)]
    slope = np.log2(error[-2] / error[-1])
    assert order - 0.3 < slope < order + 1.2, (slope, error)


ALL = {"euler": Heun(order=1), "heun": Heun(), "churn": Heun(churn=0.2),
       "dpm 2": DPMSolver(), "dpm 3": DPMSolver(order=3),
       "dpm++ 2": DPMSolver(predict="x0"), "dpm++ 3": DPMSolver(predict="x0", order=3), "2M": DPMSolverMultistep(),
       "3M": DPMSolverMultistep(order=3), "2M SDE": DPMSolverMultistep(eta=1.0),
       "3M SDE": DPMSolverMultistep(order=3, eta=1.0), "euler-maruyama": EulerMaruyama(),
       "reverse diffusion": ReverseDiffusion(), "PC": PredictorCorrector(predictor=ReverseDiffusion(), corrections=2),
       "PC annealed": PredictorCorrector(predictor=EulerMaruyama(), annealed=True)}
GRIDS = {"VP": np.linspace(1, 0.02, 12), "EDM": np.geomspace(80, 0.02, 12), "Flow": np.linspace(1, 0.02, 12),
         "chain": grids.trailing(200, 12)}


def process_and_steps(name):
    process = CHAIN if name == "chain" else PROCESSES[name][0]
    return process, grids.pairs(GRIDS[name])


# All from the flow's pure noise, and one of each kind on one of the others, in turn; the slow ones on all.
KINDS = ("heun", "churn", "dpm 3", "dpm++ 2", "3M SDE", "euler-maruyama", "reverse diffusion", "PC", "PC annealed")
CASES = [(solver, "Flow") for solver in ALL]
CASES += [(solver, ("VP", "EDM", "chain")[i % 3]) for i, solver in enumerate(KINDS)]
SLOW_CASES = [(solver, name) for name in ("VP", "EDM", "chain") for solver in KINDS if (solver, name) not in CASES]


@pytest.mark.parametrize("solver, name", CASES + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES])
def test_evaluations_rows_and_the_last_step(x64, solver, name):
    """From the prior to the data: finite, in as many calls of the denoiser as `evaluations` says, each row its own.
    Data that are one image: exactly that comes out, whatever noise was added before (FID 11.8 for 2.38)."""
    process, steps = process_and_steps(name)
    if name == "Flow" and solver in ("euler-maruyama", "PC annealed"):
        steps = steps[1:]  # at t = 1 the SDE's drift is infinite
    solver, diffusion, one = ALL[solver], counted(process), np.arange(8) % 2
    x, keys = prior(process, IMAGE.shape, steps[0, 0], keys_of(8)), keys_of(8)
    carry, out, calls = calls_of(solver, diffusion, steps, x, keys, one)
    assert np.all(np.isfinite(out))
    assert calls == solver.evaluations(steps, carry)
    if isinstance(solver, Heun) and solver.order == 2:
        assert calls == 2 * len(steps) - 1
    np.testing.assert_allclose(out[one == 1], np.broadcast_to(IMAGE, (4, *IMAGE.shape)), atol=1e-9)
    order = np.array([2, 0, 3, 1, 7, 4, 6, 5])
    np.testing.assert_array_equal(run(solver, diffusion, steps, x[order], keys[order], one[order])[1], out[order])


SDE = {"euler-maruyama": EulerMaruyama(), "reverse diffusion": ReverseDiffusion(),
       "2M SDE": DPMSolverMultistep(eta=1.0),
       "3M SDE": DPMSolverMultistep(order=3, eta=1.0), "churn": Heun(churn=0.1),
       "langevin": PredictorCorrector(predictor=ReverseDiffusion(), snr=0.05),
       "annealed": PredictorCorrector(predictor=EulerMaruyama(), snr=0.05, annealed=True)}
FINE = {"VP": (VP(), 1e-3), "sub-VP": (SubVP(), 1e-3), "VE": (VE(sigma_max=20.0), 1e-3),
        "EDM": (VarianceExploding(sigma_max=20.0), 0.01), "Flow": (Flow(), 1e-3)}


# The two whose steps are of the process itself on all; the others on two that differ in what they ask of it.
CASES = [(solver, name) for solver in ("euler-maruyama", "reverse diffusion") for name in FINE]
CASES += [("2M SDE", "VP"), ("2M SDE", "Flow"), ("3M SDE", "sub-VP"), ("3M SDE", "EDM"), ("churn", "EDM"),
          ("churn", "Flow"), ("langevin", "VP"), ("langevin", "VE"), ("annealed", "sub-VP"), ("annealed", "VE")]


@pytest.mark.slow
@pytest.mark.parametrize("solver, name", CASES)
def test_samples_have_the_datas_moments(solver, name):
    """Mean and variance of a mixture, within 4 standard errors and what the steps leave."""
    process, t_min = FINE[name]
    times = np.geomspace(process.t_max, t_min, 400 if name == "VE" else 200)
    if name == "Flow":  # from t = 1 the SDE's drift is infinite: from just below
        times = 1 - np.geomspace(0.01, 1 - t_min, 200)
    # 20,000 coordinates; many of each example, since the size of a Langevin step is by their norm.
    x = prior(process, (50,), times[0], keys_of(400, 5))
    out = np.asarray(run(SDE[solver], mixture(process), grids.pairs(times), x, keys_of(400, 5))[1], float).ravel()
    assert abs(out.mean() - MEAN) < 4 * (VARIANCE / len(out)) ** 0.5 + 0.02
    assert abs(out.var() / VARIANCE - 1) < 4 * (2 / len(out)) ** 0.5 + 0.04


def test_churn_is_algorithm_2(x64):
    """Lines 4-6: the level is raised within [S_min, S_max] alone, and the noise has S_noise."""
    diffusion = Diffusion(VarianceExploding(), None)
    solver = Heun(churn=0.3, churn_min=0.5, churn_max=10.0, churn_noise=1.007)
    noised = jax.jit(lambda t: (*solver.add_noise(jnp.ones((2, 3)), t, diffusion, keys_of(2)),
                              numerics.normal(keys_of(2), (3,), float)))
    for sigma, raised in ((1.0, 1.3), (40.0, 40.0)):
        x, t, z = noised(sigma)
        np.testing.assert_allclose(t, raised, rtol=1e-12)
        np.testing.assert_allclose(x, 1 + (raised**2 - sigma**2) ** 0.5 * 1.007 * z, rtol=1e-9)
    highest = jax.jit(lambda x, t: Heun(churn=5.0).add_noise(x, t, diffusion, keys_of(2))[1])
    assert highest(x, 1.0) == 2**0.5


def test_euler_in_sigma_is_ddim(x64):
    """x + (sigma' - sigma) eps is DDIM's step where alpha = 1."""
    process = VarianceExploding()
    steps, x = grids.pairs(grids.karras(process, 10, 0.002)), 80 * np.random.default_rng(0).normal(size=(5, 2))
    one, other = (run(solver, mixture(process), steps, x)[1] for solver in (Heun(order=1), DDIM()))
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_reverse_diffusion_is_the_papers_discretisation(x64):
    """x_i = (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z (Song et al. 2021, Eq. 47)."""
    process, x = DiscreteProcess(betas=schedules.linear(50)), np.ones((2, 3))
    diffusion, beta = mixture(process), process.betas[19]

    @jax.jit
    def step(x, t, t_next, keys):
        score = -diffusion.denoise(x, t).eps / process.sigma(t)
        return (ReverseDiffusion().step((), x, t, t_next, diffusion, keys, None)[1], score,
                numerics.normal(keys, (3,), float))

    out, score, z = step(x, 20, 19, keys_of(2))
    np.testing.assert_allclose(out, (2 - (1 - beta) ** 0.5) * x + beta * score + beta**0.5 * z, rtol=1e-10)


def test_langevin_steps_stay_on_the_law():
    """Many corrections at one time, from samples of q(x_t): its moments stay."""
    process, t = VP(), 0.5
    keys = keys_of(30, 3)  # a step's size goes with the norm of its noise: a bias of 1 over the dimensions
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    mode = np.random.default_rng(0).choice(2, size=(30, 1024), p=[0.3, 0.7])
    x0 = np.array([-0.9, 0.6])[mode] + np.array([0.5, 0.4])[mode] * np.random.default_rng(1).normal(size=mode.shape)
    x = alpha * x0 + sigma * np.random.default_rng(2).normal(size=mode.shape)

    class Stay:
        def init(self, x):
            return ()

        def step(self, carry, x, t, t_next, diffusion, keys, cond):
            return carry, x

    solver = PredictorCorrector(predictor=Stay(), snr=0.1, corrections=200)
    out = np.asarray(large(lambda x: solver.step((), x, t, t, mixture(process), keys, None)[1])(x.astype(np.float32)))
    expected = alpha**2 * VARIANCE + sigma**2
    assert abs(float(out.mean()) - alpha * MEAN) < 0.03
    assert abs(float(out.var()) / expected - 1) < 0.05


@pytest.mark.parametrize("name", PROCESSES)
def test_the_adaptive_ode_meets_its_tolerance(x64, name):
    pytest.importorskip("diffrax", reason="the adaptive ODE needs diffrax: pip install 'diffusion[ode]'")
    process, first, last = PROCESSES[name]
    (x, reference), steps = exact(name), np.array([[first, last]])
    program = jax.jit(lambda x, tolerance: sample(AdaptiveODE(tolerance=tolerance), mixture(process), steps, x,
                                                  keys_of(len(x))))
    errors, calls = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        carry, out = program(x, tolerance)
        errors.append(float(np.abs(out - reference).max()))
        calls.append(AdaptiveODE().evaluations(steps, carry))
        assert errors[-1] < 30 * tolerance
    assert calls[0] < calls[1] < calls[2]
    others = program(np.where(np.arange(7)[:, None] == 3, x, -0.5 * x), tolerance)[1]
    np.testing.assert_allclose(others[3], out[3], atol=1e-12)  # its steps do not depend on the others
