"""DPM-Solver, Euler, Heun and flow matching against diffusers' schedulers: float64 but where theirs rounds to float32.

Needs PyTorch and diffusers: `pip install -r requirements-parity.txt`, then `pytest -m parity`.
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.diffusers_chain import (
    LEVELS,
    PREDICTIONS,
    PROCESS,
    assert_same,
    diffusers,
    first_time,
    keys_and_start,
    network,
    our_chain,
    settings,
    some_grids,
    their_chain,
    to_torch,
    torch,
)

from diffusion.core import grids
from diffusion.core.continuous import Flow, VarianceExploding
from diffusion.core.parameterization import VELOCITY, Diffusion, on_process
from diffusion.samplers.base import sample
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.dpm_multistep import DPMSolverMultistep
from diffusion.samplers.dpm_solver import DPMSolver
from diffusion.samplers.heun import Heun

pytestmark = pytest.mark.parity


def run_once(solver, diffusion, steps, scale=1.0):
    """x at the end, of a chain that begins with `scale` times the start."""
    keys, start = keys_and_start()
    run = jax.jit(lambda steps, x, keys: sample(solver, diffusion, steps, x, keys)[1])
    return run(steps, scale * start, keys)


ODE, SDE = (0.0, "dpmsolver++"), (1.0, "sde-dpmsolver++")


MULTISTEP = [(1, "midpoint", ODE), (2, "midpoint", ODE), (2, "heun", ODE), (3, "midpoint", ODE), (1, "midpoint", SDE),
             (2, "midpoint", SDE), (2, "heun", SDE)]


@pytest.mark.parametrize("order, kind, of", MULTISTEP)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dpm_solver_multistep(x64, prediction, order, kind, of):
    """Theirs rounds x to float32 at each step.

    Its third order of the SDE has (1 - e^-2h - 2h)/(2h)^2 - 1/2 before the second difference, which goes to -1 for
    small steps where it must go to 0: the 1/2 should be added, as in k-diffusion, to which ours is held.
    """
    eta, algorithm = of
    run = our_chain(DPMSolverMultistep(order=order, eta=eta, kind=kind), prediction)
    case = MULTISTEP.index((order, kind, of)) + list(PREDICTIONS).index(prediction)
    for spacing, offset, steps in some_grids(case):
        scheduler = diffusers.DPMSolverMultistepScheduler(
            **settings(prediction, spacing, offset), solver_order=order, algorithm_type=algorithm, solver_type=kind,
            lower_order_final=False)
        theirs, times = their_chain(scheduler, steps, end_level=0.0)
        assert_same(run(grids.pairs(times)), theirs, tolerance=2e-6)


@jax.jit
def middles(times):
    """In the middle of the log-SNR of each two times."""
    log_snr = PROCESS.log_snr(times)
    return PROCESS.time_of_log_snr((log_snr[:-1] + log_snr[1:]) / 2)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("predict, algorithm", [("eps", "dpmsolver"), ("x0", "dpmsolver++")])
def test_dpm_solver_singlestep(x64, predict, algorithm, order):
    """Theirs evaluates in between at times of the grid: given those in the middle of log-SNR it is the paper's.

    Its third order makes the second of its three values by another formula than the paper's Algorithm 2, which ours and
    k-diffusion's follow (test_golden_k_diffusion.py).
    """
    run = our_chain(DPMSolver(order=order, predict=predict), "epsilon")
    for count in (6, 11):
        whole = np.linspace(PROCESS.t_max, 2, count).round()
        between = np.asarray(middles(whole))
        times = whole if order == 1 else np.append(np.stack([whole[:-1], between], 1).ravel(), whole[-1])
        scheduler = diffusers.DPMSolverSinglestepScheduler(
            num_train_timesteps=PROCESS.t_max, solver_order=order, algorithm_type=algorithm, lower_order_final=False,
            final_sigmas_type="sigma_min", trained_betas=PROCESS.betas.tolist())
        scheduler.set_timesteps(len(times) - 1)
        scheduler.sigmas = torch.from_numpy(np.array(jax.jit(PROCESS.noise_level)(times)))
        scheduler.timesteps = torch.from_numpy(times[:-1] - 1)
        scheduler.order_list = [1] * (len(times) - 1) if order == 1 else [1, 2] * (count - 1)
        x = to_torch(keys_and_start()[1])
        for t in scheduler.timesteps:
            out = to_torch(network(np, x.numpy().transpose(0, 2, 3, 1), float(t)))
            x = scheduler.step(out, t, x).prev_sample
        assert_same(run(np.stack([whole[:-1], whole[1:]], 1)), x.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("prediction, eta", [("epsilon", 0.0), ("v_prediction", 0.0), ("epsilon", 1.0),
                                             ("v_prediction", 1.0), ("sample", 0.0)])
def test_euler_and_euler_ancestral_are_ddim(x64, prediction, eta):
    """Theirs is x / alpha. It interpolates sigma / alpha at times that are not whole, ours the log-SNR: without them.

    Both cast x to float32 at each step."""
    run = our_chain(DDIM(eta=eta), prediction)
    make = diffusers.EulerAncestralDiscreteScheduler if eta else diffusers.EulerDiscreteScheduler
    for spacing, offset, steps in [("leading", 0, 20), ("leading", 1, 25), ("trailing", 0, 20)]:
        first = first_time(make(**settings(prediction, spacing, offset)), steps)
        theirs, times = their_chain(make(**settings(prediction, spacing, offset)), steps, end_level=0.0,
                                    scale=1 / PROCESS._alpha[first])
        assert_same(run(grids.pairs(times)), theirs, tolerance=2e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_heun(x64, prediction):
    """In sigma / alpha, so ours is EDM's process with the chain's denoiser on it; the last step is Euler's to x_0."""
    scheduler = diffusers.HeunDiscreteScheduler(**settings(prediction, "leading", 0))
    scheduler.set_timesteps(20)
    times = np.asarray(scheduler.timesteps)[np.append(0, np.arange(1, 39, 2))]
    levels = LEVELS[times.astype(int)]
    scheduler.sigmas = torch.from_numpy(np.append(np.concatenate([levels[:1], np.repeat(levels[1:], 2)]), 0.0))
    x = levels[0] * to_torch(keys_and_start()[1])
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        out = to_torch(network(np, seen.numpy().transpose(0, 2, 3, 1), float(t)))
        x = scheduler.step(out, t, x).prev_sample

    def denoise(x, t, cond=None):
        return PREDICTIONS[prediction].predict(PROCESS, network(jnp, x, PROCESS.c_noise(t)), x, t)
    target = VarianceExploding(sigma_min=1e-4, sigma_max=1e4)
    ours = run_once(Heun(), on_process(Diffusion(PROCESS, denoise), target),
                    np.stack([levels, np.append(levels[1:], 0)], 1), levels[0])
    assert_same(ours, x.numpy().transpose(0, 2, 3, 1), tolerance=2e-6)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(x64, shift, order):
    """FlowMatchEuler and FlowMatchHeun, whose sigma is the noise's share: ours in t = sigma, shift 1, on their grid."""
    make = diffusers.FlowMatchHeunDiscreteScheduler if order == 2 else diffusers.FlowMatchEulerDiscreteScheduler
    scheduler = make(num_train_timesteps=1000, shift=shift)
    scheduler.set_timesteps(12)
    sigmas = scheduler.sigmas.double()
    scheduler.sigmas = sigmas
    x = to_torch(keys_and_start()[1])
    for i, t in enumerate(scheduler.timesteps):
        out = to_torch(network(np, x.numpy().transpose(0, 2, 3, 1), 50 * float(sigmas[i])))
        x = scheduler.step(out, t, x).prev_sample.double()
    levels = sigmas.numpy() if order == 1 else np.append(sigmas.numpy()[:1], sigmas.numpy()[1::2])
    process = Flow()

    def denoise(x, t, cond=None):
        return VELOCITY.predict(process, network(jnp, x, 50 * t), x, t)
    ours = run_once(Heun(order=order), Diffusion(process, denoise), np.stack([levels[:-1], levels[1:]], 1))
    assert_same(ours, x.numpy().transpose(0, 2, 3, 1), tolerance=2e-6)
