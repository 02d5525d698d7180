"""Heun, DPM-Solver and its multistep form, the SDE predictors and correctors, and the adaptive ODE."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.exact import CHAIN, MEAN, PROCESSES, VARIANCE, exact, keys_of, mixture, pairs, run

from diffusion.core import grids, numerics, schedules
from diffusion.core.continuous import VE, VP, Flow, SubVP, VarianceExploding
from diffusion.core.numerics import expand
from diffusion.core.parameterization import Diffusion, Prediction
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.adaptive import AdaptiveODE
from diffusion.samplers.base import draw_prior, sample
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


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("solver", ORDERS)
def test_order_of_convergence(x64, solver, name):
    """The error falls by 2^order when the steps are halved. 3M, as published, halves the third difference: order 2."""
    (solver, order, even), (process, first, last) = ORDERS[solver], PROCESSES[name]
    x, reference = exact(name)
    program = jax.jit(lambda steps, last: sample(solver, mixture(process), steps, x, keys_of(7), last=last)[1])
    error = []
    for count in (32, 64, 128):
        times = np.linspace(first, last, count + 1)
        if even:
            times = process.time(jnp.linspace(process.log_snr(first), process.log_snr(last), count + 1))
        steps = pairs(times)
        error.append(float(jnp.abs(program(np.resize(steps, (128, 2)), len(steps)) - reference).max()))
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


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("solver", ALL)
def test_evaluations_and_rows(solver, name):
    """From the prior to the data: finite, in as many calls of the denoiser as `evaluations` says, each row its own."""
    (process, steps), calls = process_and_steps(name), []
    if name == "Flow" and solver in ("euler-maruyama", "PC annealed"):
        steps = steps[1:]  # at t = 1 the SDE's drift is infinite
    solver = ALL[solver]
    diffusion = mixture(process, lambda: jax.debug.callback(lambda: calls.append(1)))
    x = draw_prior(process, steps[0, 0], keys_of(4), (2, 2, 1))
    carry, out = run(solver, diffusion, steps, x, keys_of(4))
    jax.block_until_ready(out)
    jax.effects_barrier()
    assert np.all(np.isfinite(out))
    # DPM-Solver's step from pure noise, the flow's t = 1, is DDIM's and takes one.
    spared = solver.order - 1 if isinstance(solver, DPMSolver) and name == "Flow" else 0
    assert len(calls) == solver.evaluations(steps, carry) - spared
    if isinstance(solver, Heun) and solver.order == 2:
        assert len(calls) == 2 * len(steps) - 1
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(run(solver, mixture(process), steps, x[order], keys_of(4)[order])[1],
                                  run(solver, mixture(process), steps, x, keys_of(4))[1][order])


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("solver", ALL)
def test_the_last_step_leaves_no_noise(x64, solver, name):
    """Data that are one point: exactly that point comes out, whatever noise was added before (FID 11.8 for 2.38)."""
    process, steps = process_and_steps(name)
    steps = steps[1:] if name == "Flow" and solver in ("euler-maruyama", "PC annealed") else steps

    def denoise(x, t, cond=None):
        x0 = jnp.full_like(x, 0.3)
        return Prediction(x0, (x - expand(process.alpha(t), x) * x0) / expand(process.sigma(t), x))

    x = draw_prior(process, steps[0, 0], keys_of(3), (2,)).astype(float)
    out = run(ALL[solver], Diffusion(process, denoise), steps, x)[1]
    np.testing.assert_allclose(out, 0.3, atol=1e-9)


SDE = {"euler-maruyama": EulerMaruyama(), "reverse diffusion": ReverseDiffusion(),
       "2M SDE": DPMSolverMultistep(eta=1.0),
       "3M SDE": DPMSolverMultistep(order=3, eta=1.0), "churn": Heun(churn=0.1),
       "langevin": PredictorCorrector(predictor=ReverseDiffusion(), snr=0.05),
       "annealed": PredictorCorrector(predictor=EulerMaruyama(), snr=0.05, annealed=True)}
FINE = {"VP": (VP(), 1e-3), "sub-VP": (SubVP(), 1e-3), "VE": (VE(sigma_max=20.0), 1e-3),
        "EDM": (VarianceExploding(sigma_max=20.0), 0.01), "Flow": (Flow(), 1e-3)}


@pytest.mark.parametrize("name", FINE)
@pytest.mark.parametrize("solver", SDE)
def test_samples_have_the_datas_moments(solver, name):
    """Mean and variance of a mixture, within 4 standard errors and what 400 steps leave."""
    process, t_min = FINE[name]
    keys = keys_of(20_000, 5)
    times = np.geomspace(process.t_max, t_min, 400)
    if name == "Flow":  # from t = 1 the SDE's drift is infinite: from just below
        times = 1 - np.geomspace(0.01, 1 - t_min, 400)
    x = draw_prior(process, times[0], keys, (1,))
    if isinstance(SDE[solver], PredictorCorrector):  # the size of a Langevin step is by the norm of many coordinates
        keys, x = keys[:400], draw_prior(process, times[0], keys[:400], (50,))
    out = np.asarray(run(SDE[solver], mixture(process), grids.pairs(times), x, keys)[1], float).ravel()
    assert abs(out.mean() - MEAN) < 4 * (VARIANCE / len(out)) ** 0.5 + 0.02
    assert abs(out.var() / VARIANCE - 1) < 4 * (2 / len(out)) ** 0.5 + 0.04


@pytest.mark.parametrize("sigma", [1.0, 40.0])
def test_churn_is_algorithm_2(x64, sigma):
    """Lines 4-6: the level is raised within [S_min, S_max] alone, and the noise has S_noise."""
    process, z = VarianceExploding(), numerics.normal(keys_of(2), (3,), float)
    solver = Heun(churn=0.3, churn_min=0.5, churn_max=10.0, churn_noise=1.007)
    x, t = solver.add_noise(jnp.ones((2, 3)), jnp.asarray(sigma), Diffusion(process, None), keys_of(2))
    raised = 1.3 * sigma if sigma == 1.0 else sigma
    np.testing.assert_allclose(t, raised, rtol=1e-12)
    np.testing.assert_allclose(x, 1 + (raised**2 - sigma**2) ** 0.5 * 1.007 * z, rtol=1e-9)
    assert Heun(churn=5.0).add_noise(x, jnp.asarray(1.0), Diffusion(process, None), keys_of(2))[1] == 2**0.5


def test_euler_in_sigma_is_ddim(x64):
    """x + (sigma' - sigma) eps is DDIM's step where alpha = 1."""
    process = VarianceExploding()
    steps, x = grids.pairs(grids.karras(process, 10, 0.002)), 80 * numerics.normal(keys_of(5), (2,), float)
    one, other = (run(solver, mixture(process), steps, x)[1] for solver in (Heun(order=1), DDIM()))
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_reverse_diffusion_is_the_papers_discretisation(x64):
    """x_i = (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z (Song et al. 2021, Eq. 47)."""
    process, x, keys = DiscreteProcess(betas=schedules.linear(50)), jnp.ones((2, 3)), keys_of(2)
    diffusion, beta = mixture(process), process.betas[19]
    out = ReverseDiffusion().step((), x, 20, 19, diffusion, keys, None)[1]
    score = -diffusion.denoise(x, 20).eps / process.sigma(20)
    z = numerics.normal(keys, (3,), float)
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
    out = jax.jit(lambda x: solver.step((), x, t, t, mixture(process), keys, None)[1])(jnp.asarray(x, jnp.float32))
    expected = alpha**2 * VARIANCE + sigma**2
    assert abs(float(out.mean()) - alpha * MEAN) < 0.03
    assert abs(float(out.var()) / expected - 1) < 0.05


@pytest.mark.parametrize("name", PROCESSES)
def test_the_adaptive_ode_meets_its_tolerance(x64, name):
    pytest.importorskip("diffrax", reason="the adaptive ODE needs diffrax: pip install 'diffusion[ode]'")
    process, first, last = PROCESSES[name]
    x, reference = exact(name)
    errors, calls = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        solver = AdaptiveODE(tolerance=tolerance)
        carry, out = run(solver, mixture(process), np.array([[first, last]]), x)
        errors.append(float(jnp.abs(out - reference).max()))
        calls.append(solver.evaluations(np.array([[first, last]]), carry))
        assert errors[-1] < 30 * tolerance
    assert calls[0] < calls[1] < calls[2]
    alone = run(solver, mixture(process), np.array([[first, last]]), x[3:4])[1]
    np.testing.assert_allclose(alone[0], out[3], atol=1e-12)  # its steps do not depend on the others
