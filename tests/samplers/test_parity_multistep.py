"""Our multistep solvers against diffusers' schedulers in float64.

Needs PyTorch and diffusers: `pip install -r requirements-parity.txt`, then `pytest -m parity`.
"""
import functools

import numpy as np
import pytest
from samplers.diffusers_chain import (
    GRIDS,
    LEVELS,
    PREDICTIONS,
    PROCESS,
    ROWS,
    T,
    assert_same,
    diffusers,
    first_time,
    our_chain,
    settings,
    some_grids,
    their_chain,
    torch,
)

from diffusion.core import grids
from diffusion.samplers.deis import DEIS
from diffusion.samplers.lms import LMS
from diffusion.samplers.pndm import PNDM
from diffusion.samplers.sa_solver import SASolver
from diffusion.samplers.unipc import UniPC

pytestmark = pytest.mark.parity

# Theirs lowers the order of the last steps. To sigma = 0 it must, at the last one (else it divides by an infinity);
# ours ends there with x_0 too, and orders up to 2 are the same. That is with x_0 and B2: with B1, B(h) = h is infinite
# and theirs is not a number, and so it is with eps. The rest ends at t = 1, without lowering.
# Each two settings meet, with and without the corrector; order, variant, predict, corrector, end.
UNIPC = [(1, "B1", "x0", True, 1), (1, "B2", "eps", True, 1), (1, "B1", "eps", False, 1), (1, "B2", "x0", False, 1),
         (2, "B1", "x0", False, 1), (2, "B2", "eps", False, 1), (2, "B1", "eps", True, 1), (2, "B2", "x0", True, 1),
         (3, "B1", "x0", True, 1), (3, "B2", "eps", True, 1), (3, "B1", "eps", False, 1), (3, "B2", "x0", False, 1),
         (1, "B2", "x0", False, 0), (2, "B2", "x0", True, 0)]


@pytest.mark.parametrize("order, variant, predict, corrector, end", UNIPC)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_unipc(x64, prediction, order, variant, predict, corrector, end):
    run = our_chain(UniPC(order=order, variant=variant, predict=predict, corrector=corrector), prediction)
    case = UNIPC.index((order, variant, predict, corrector, end)) + list(PREDICTIONS).index(prediction)
    for spacing, offset, steps in some_grids(case):
        scheduler = diffusers.UniPCMultistepScheduler(
            **settings(prediction, spacing, offset), solver_order=order, solver_type="bh" + variant[1],
            predict_x0=predict == "x0", lower_order_final=end == 0,
            disable_corrector=[] if corrector else list(range(ROWS)))
        theirs, times = their_chain(scheduler, steps, end_level=LEVELS[0] if end else 0.0)
        assert_same(run(grids.pairs(times, end)), theirs)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_deis(x64, prediction, order):
    """Theirs has no end at sigma = 0."""
    run = our_chain(DEIS(order=order), prediction)
    for spacing, offset, steps in GRIDS:
        scheduler = diffusers.DEISMultistepScheduler(**settings(prediction, spacing, offset), solver_order=order,
                                                     lower_order_final=False)
        theirs, times = their_chain(scheduler, steps, end_level=LEVELS[0])
        if times[-1] == 1:  # trailing: a step from t = 1 to 1, at which theirs divides by 0
            continue
        assert_same(run(grids.pairs(times, 1)), theirs)


SA = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 3), (2, 4), (4, 2)]


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("predictor, corrector", SA)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_sa_solver(x64, prediction, predictor, corrector, tau):
    """To t = 1: at sigma = 0 theirs is 0 times infinity."""
    run = our_chain(SASolver(predictor=predictor, corrector=corrector), prediction, tau=tau)
    case = SA.index((predictor, corrector)) + list(PREDICTIONS).index(prediction) + int(2 * tau)
    for spacing, offset, steps in some_grids(case, 1):
        scheduler = diffusers.SASolverScheduler(
            **settings(prediction, spacing, offset), predictor_order=predictor, corrector_order=corrector,
            lower_order_final=False, tau_func=lambda t: torch.tensor(tau, dtype=torch.float64))
        theirs, times = their_chain(scheduler, steps, end_level=LEVELS[0])
        assert_same(run(grids.pairs(times, 1)), theirs)


@pytest.mark.parametrize("noise_min, noise_max", [(0.5, 2.0), (0.0, 1.0)])
def test_sa_solver_with_noise_in_between(x64, noise_min, noise_max):
    run = our_chain(SASolver(), "v_prediction", noise_min=noise_min, noise_max=noise_max)
    for spacing, offset, steps in GRIDS:
        scheduler = diffusers.SASolverScheduler(
            **settings("v_prediction", spacing, offset), lower_order_final=False,
            tau_func=lambda t: torch.tensor(float(noise_min <= LEVELS[int(t)] <= noise_max), dtype=torch.float64))
        theirs, times = their_chain(scheduler, steps, end_level=LEVELS[0])
        assert_same(run(grids.pairs(times, 1)), theirs)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_lms(x64, prediction, order):
    """Theirs is x / alpha. Its linspace times are not whole, and there it interpolates sigma / alpha and not the
    log-SNR: without them."""
    run = our_chain(LMS(order=order), prediction)
    for spacing, offset, steps in [("leading", 0, 20), ("leading", 1, 25), ("trailing", 0, 16), ("trailing", 0, 50)]:
        first = first_time(diffusers.LMSDiscreteScheduler(**settings(prediction, spacing, offset)), steps)
        scheduler = diffusers.LMSDiscreteScheduler(**settings(prediction, spacing, offset))
        scheduler.step = functools.partial(scheduler.step, order=order)
        theirs, times = their_chain(scheduler, steps, end_level=0.0, scale=1 / PROCESS._alpha[first])
        assert_same(run(grids.pairs(times)), theirs)


def their_pndm(prediction, spacing, steps, start):
    scheduler = diffusers.PNDMScheduler(**settings(prediction, spacing, 0), skip_prk_steps=start == "heun",
                                        set_alpha_to_one=True)
    scheduler.alphas_cumprod = torch.from_numpy(PROCESS._alpha[1:] ** 2)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return their_chain(scheduler, steps)[0]


@pytest.mark.parametrize("start", ["heun", "runge_kutta"])
def test_pndm(x64, start):
    """With an even stride: at an odd one theirs evaluates at a time other than the one that it went to."""
    run = our_chain(PNDM(start=start), "epsilon")
    for spacing, steps in [("leading", 20), ("leading", 10), ("trailing", 25), ("leading", 50)]:
        times = getattr(grids, spacing)(T, steps)
        assert_same(run(grids.constant_stride(times, T)), their_pndm("epsilon", spacing, steps, start))


@pytest.mark.parametrize("start", ["heun", "runge_kutta"])
def test_pndm_of_v_in_diffusers_is_of_first_order(x64, start):
    """It takes the mean of v, not of eps as the paper's Eqs. 9-12 and ours, and then makes eps of that at the step's
    start alone. The difference is in proportion to the step, where ours has an error in proportion to its square."""
    run = our_chain(PNDM(start=start), "v_prediction")
    difference = [np.abs(run(grids.pairs(grids.leading(T, steps)))
                         - their_pndm("v_prediction", "leading", steps, start)).max() for steps in (25, 50)]
    assert 1e-3 < difference[1] and 1.4 < difference[0] / difference[1] < 3, difference
