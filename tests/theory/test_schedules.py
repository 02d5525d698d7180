"""The beta tables against the papers' formulas."""
import math

import numpy as np
import pytest

from diffusion.core import schedules


def test_linear_is_evenly_spaced_between_the_papers_end_points():
    betas = schedules.linear(1000)
    assert betas.shape == (1000,) and betas.dtype == np.float64
    assert betas[0] == 1e-4 and betas[-1] == 0.02
    np.testing.assert_allclose(np.diff(betas), (0.02 - 1e-4) / 999, rtol=1e-10)


def test_linear_end_points_do_not_depend_on_the_number_of_steps():
    betas = schedules.linear(7, beta_start=0.01, beta_end=0.3)
    assert (len(betas), betas[0], betas[-1]) == (7, 0.01, 0.3)


def test_linear_at_1000_steps_leaves_the_prior_loss_that_the_paper_states():
    """Ho et al. (2020), Section 4: L_T = KL(q(x_T | x_0) || N(0, I)) is about 1e-5 bits per dimension."""
    alpha_bar = np.prod(1 - schedules.linear(1000))
    x0_squared = 1 / 3  # of values uniform in [-1, 1]
    kl = 0.5 * (alpha_bar * x0_squared - alpha_bar - math.log1p(-alpha_bar)) / math.log(2)
    assert round(kl, 5) == 1e-5


@pytest.mark.parametrize("steps", [10, 1000, 4000])
@pytest.mark.parametrize("offset", [0.0, 0.008, 0.1])
def test_cosine_is_eq_17(steps, offset):
    """alpha_bar_t = f(t)/f(0), so beta_t = (f(t-1) - f(t))/f(t-1), where cos^2 a - cos^2 b = sin(b - a) sin(b + a)."""
    angle = (np.arange(steps + 1, dtype=np.longdouble) / steps + offset) / (1 + offset) * np.longdouble(math.pi) / 2
    before, after = angle[:-1], angle[1:]
    expected = np.sin(after - before) * np.sin(after + before) / np.cos(before) ** 2
    betas = schedules.cosine(steps, offset=offset)
    assert betas.shape == (steps,) and betas.dtype == np.float64
    # Four roundings of the angle, 1e-16 each, which cos^2 near its zero at pi/2 magnifies by 2/(pi/2 - angle), twice.
    assert np.all(np.abs(betas - np.minimum(expected, 0.999))[:-1] <= 2e-15 / (math.pi / 2 - after[:-1]))
    assert betas[-1] == 0.999
    f = np.cos(angle.astype(float)) ** 2
    np.testing.assert_allclose(np.cumprod(1 - betas)[:-1], (f[1:] / f[0])[:-1], rtol=1e-9)


def test_cosine_clips_the_last_beta_alone():
    """Without clipping alpha_bar_T would be 0 (Nichol & Dhariwal 2021, Section 3.2)."""
    betas = schedules.cosine(1000)
    assert betas[-1] == 0.999 and betas[-2] == pytest.approx(0.75, abs=1e-5)
    assert np.all(np.diff(betas) > 0)
    assert schedules.cosine(1000, max_beta=0.5).max() == 0.5


def test_scaled_linear_has_evenly_spaced_roots():
    betas = schedules.scaled_linear(1000, beta_start=0.00085, beta_end=0.012)
    assert betas.dtype == np.float64 and len(betas) == 1000
    np.testing.assert_allclose(betas[[0, -1]], [0.00085, 0.012], rtol=1e-14)
    np.testing.assert_allclose(np.diff(np.sqrt(betas), 2), 0, atol=1e-15)


def test_sigmoid_is_the_logistic_curve():
    betas = schedules.sigmoid(1001, beta_start=1e-4, beta_end=0.02)
    share = (betas - 1e-4) / (0.02 - 1e-4)
    np.testing.assert_allclose(np.log(share / (1 - share)), np.linspace(-6, 6, 1001), atol=1e-11)


def test_constant_and_warmup_are_those_of_ho_et_al():
    """diffusion_utils_2.py of their code: beta_end everywhere, but for a rise over the first int(share T) steps."""
    np.testing.assert_array_equal(schedules.constant(5, beta_end=0.02), [0.02] * 5)
    for share, rising in ((0.1, 10), (0.5, 52)):
        betas = schedules.warmup(105, beta_start=1e-4, beta_end=0.02, warmup_share=share)
        np.testing.assert_array_equal(betas[:rising], np.linspace(1e-4, 0.02, rising))
        np.testing.assert_array_equal(betas[rising:], 0.02)
    assert betas.dtype == np.float64 and len(betas) == 105


def test_jsd_removes_an_equal_share_of_the_signal_at_each_step():
    """1/T, 1/(T - 1) .. 1, so that alpha_bar_t = 1 - t / T."""
    betas = schedules.jsd(40)
    np.testing.assert_allclose(np.cumprod(1 - betas), 1 - np.arange(1, 41) / 40, atol=1e-15)
    assert betas[0] == 1 / 40 and betas[-1] == 1


@pytest.mark.parametrize("betas", [schedules.linear(1000), schedules.cosine(1000),
                                   schedules.scaled_linear(1000, beta_start=0.00085, beta_end=0.012)])
def test_zero_terminal_snr_shifts_and_scales_alpha(betas):
    """Lin et al. (2024), Section 3.1: alpha_T = 0, alpha_1 as it was, and alpha in between by one linear map."""
    old = np.sqrt(np.cumprod(1 - betas))
    new = np.sqrt(np.cumprod(1 - schedules.with_zero_terminal_snr(betas)))
    assert new[-1] == 0
    np.testing.assert_allclose(new[0], old[0], rtol=1e-14)
    np.testing.assert_allclose((new[1:] - new[0]) / (old[1:] - old[0]), new[0] / (old[0] - old[-1]), rtol=1e-9)


def test_zero_terminal_snr_of_one_step_is_refused():
    with pytest.raises(ValueError, match="steps = 1: .* at least 2 steps"):
        schedules.with_zero_terminal_snr(np.array([0.1]))
