"""Time grids in continuous time."""
import jax
import numpy as np
import pytest

from diffusion.core import grids, schedules
from diffusion.core.continuous import VE, VP, Cosine, Flow, SubVP, VarianceExploding
from diffusion.core.processes import DiscreteProcess

PROCESSES = {"vp": VP(), "sub_vp": SubVP(), "ve": VE(), "edm": VarianceExploding(), "cosine": Cosine(shift=0.5),
             "discrete": DiscreteProcess(betas=schedules.linear(1000))}
GRIDS = {"uniform_time": grids.uniform_time, "quadratic": grids.quadratic, "log_snr": grids.uniform_log_snr,
         "karras": grids.karras}
T_MIN = {"edm": 0.002, "discrete": 1.0}


STEPS = 7  # of all grids here, since each number of them compiles anew


def levels(process, times):
    with jax.enable_x64(True):
        return np.asarray(process.noise_level(np.asarray(times, float)))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_a_grid_falls_from_the_noise_to_the_least_time(name, grid):
    process, t_min = PROCESSES[name], T_MIN.get(name, 1e-3)
    for steps in (1, STEPS):
        times = GRIDS[grid](process, steps, t_min)
        assert times.dtype == np.float64 and len(times) == steps and np.all(np.diff(times) < 0)
        np.testing.assert_allclose(times[0], process.t_max, rtol=1e-9)
    np.testing.assert_allclose(times[-1], t_min, rtol=1e-7)
    rows = grids.pairs(times)
    assert rows.dtype == np.float32 and rows[-1, 1] == 0 and np.all(rows[:-1, 1] == rows[1:, 0])


def test_karras_is_eq_5():
    n, rho, high, low = STEPS, 7, 80.0, 0.002
    expected = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    np.testing.assert_allclose(grids.karras(VarianceExploding(), n, 0.002), expected, rtol=1e-12)
    of_vp = grids.karras(VP(), STEPS, 1e-3)
    found = levels(VP(), of_vp) ** (1 / 7)
    np.testing.assert_allclose(np.diff(found), np.diff(found)[0], rtol=1e-7)


@pytest.mark.parametrize("name", PROCESSES)
def test_uniform_log_snr_has_equal_steps(name):
    process = PROCESSES[name]
    steps = np.diff(np.log(levels(process, grids.uniform_log_snr(process, STEPS, T_MIN.get(name, 1e-3)))))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_given_noise_levels_are_met():
    given = [14.6, 6.5, 2.0, 0.7, 0.2, 0.1, 0.03]
    for process in (VP(), VarianceExploding(), Flow(), PROCESSES["discrete"]):
        np.testing.assert_allclose(levels(process, grids.of_noise_levels(process, given)), given, rtol=1e-9)


def test_where_nothing_of_the_data_is_left_there_is_no_noise_level():
    for grid in (grids.karras, grids.uniform_log_snr):
        with pytest.raises(ValueError, match="infinite"):
            grid(Flow(), 5, 1e-3)
