"""Time grids of respaced samplers. Theirs count from 0 to T - 1, ours from 1 to T, and the last step ends at 0."""
import numpy as np
import pytest

from diffusion.core import grids

SPACINGS = [grids.linspace, grids.leading, grids.trailing]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("t_max", [1, 2, 3, 10, 37, 64, 100])
def test_every_grid_falls_strictly(spacing, t_max):
    for steps in range(1, t_max + 1):
        times = spacing(t_max, steps)
        assert times.shape == (steps,) and times.dtype == np.int32
        assert times[-1] >= 1 and times[0] <= t_max and np.all(np.diff(times) < 0)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_grid_of_1000_falls_strictly(spacing):
    for steps in range(1, 1001):
        times = spacing(1000, steps)
        assert len(times) == steps and times[-1] >= 1 and times[0] <= 1000 and np.all(np.diff(times) < 0)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("t_max", [1, 2, 10, 1000])
def test_with_all_steps_every_grid_is_the_whole_chain(spacing, t_max):
    np.testing.assert_array_equal(spacing(t_max, t_max), np.arange(t_max, 0, -1))


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 50, 333, 999])
def test_where_each_grid_starts_and_ends(steps):
    assert grids.trailing(1000, steps)[0] == grids.linspace(1000, steps)[0] == 1000
    assert grids.leading(1000, steps)[-1] == 1
    if steps > 1:
        assert grids.linspace(1000, steps)[-1] == 1


@pytest.mark.parametrize("spacing, theirs", [
    # Lin et al. (2024), Table 2, and the documentation of diffusers' `timestep_spacing`: T = 1000, 10 steps.
    (grids.leading, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
    (grids.linspace, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
    (grids.trailing, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99])])
def test_ten_steps_of_1000_are_the_published_ones(spacing, theirs):
    np.testing.assert_array_equal(spacing(1000, 10), [t + 1 for t in theirs])


@pytest.mark.parametrize("spacing, theirs", [
    (grids.leading, [852, 710, 568, 426, 284, 142, 0]),
    (grids.linspace, [999, 832, 666, 500, 333, 166, 0]),   # 832.5, 499.5, 166.5 to even, of their index
    (grids.trailing, [999, 856, 713, 570, 428, 285, 142])])
def test_seven_steps_of_1000_round_as_the_published_ones(spacing, theirs):
    np.testing.assert_array_equal(spacing(1000, 7), [t + 1 for t in theirs])


def test_the_middle_of_an_odd_linspace_is_rounded_as_the_published_one():
    """Index 499.5 of 0..999 becomes 500, which is t = 501: at any odd number of steps, unless floats fall short."""
    np.testing.assert_array_equal(grids.linspace(1000, 5), [1000, 750, 501, 251, 1])
    assert grids.linspace(1000, 25)[12] == 501


def test_a_tie_of_trailing_is_rounded_as_the_published_one():
    """1000 - 48ths of 1000 are halves at some i; diffusers' arange rounds them as its floats fall, not all to even."""
    np.testing.assert_array_equal(grids.trailing(1000, 48), np.round(np.arange(1000, 0, -1000 / 48)))
    assert not np.array_equal(grids.trailing(1000, 48), np.round(1000 - np.arange(48) * (1000 / 48)))


def test_trailing_ends_at_a_noisy_time_where_arange_gives_one_number_too_many():
    assert len(np.arange(1000, 0, -1000 / 61)) == 62
    times = grids.trailing(1000, 61)
    assert len(times) == 61 and times[-1] == 16


def test_one_step():
    np.testing.assert_array_equal(grids.linspace(1000, 1), [1000])
    np.testing.assert_array_equal(grids.trailing(1000, 1), [1000])
    np.testing.assert_array_equal(grids.leading(1000, 1), [1])


def test_pairs_end_where_the_next_begins():
    np.testing.assert_array_equal(grids.pairs(np.array([9, 5, 2])), [[9, 5], [5, 2], [2, 0]])
    np.testing.assert_array_equal(grids.pairs(np.array([9, 5, 2]), 1), [[9, 5], [5, 2], [2, 1]])
    assert grids.pairs(np.array([9])).dtype == np.int32


def test_a_constant_stride_is_that_of_diffusers():
    """Theirs: previous = timestep - T // S, and below 0 the final alpha. For T = 10, S = 4: 9, 6, 3, 0 to 7, 4, 1,
    -2."""
    times = grids.linspace(10, 4)
    np.testing.assert_array_equal(times, [10, 7, 4, 1])
    np.testing.assert_array_equal(grids.constant_stride(times, 10), [[10, 8], [7, 5], [4, 2], [1, 0]])
    np.testing.assert_array_equal(grids.constant_stride(times, 10, 1)[-1], [1, 1])


@pytest.mark.parametrize("steps", [1, 2, 10, 50, 333])
def test_a_constant_stride_of_leading_times_is_a_chain(steps):
    times = grids.leading(1000, steps)
    np.testing.assert_array_equal(grids.constant_stride(times, 1000), grids.pairs(times))
