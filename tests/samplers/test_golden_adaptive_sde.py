"""The adaptive SDE solver against its authors', chains with their noise in float64.

tests/golden/adaptive_sde.npz, made by make_adaptive_sde.py, which has the settings too.
"""
import functools
import pathlib
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import large
from samplers.exact import MEAN, VARIANCE, keys_of, mixture, prior, run

from diffusion.core import numerics
from diffusion.core.continuous import VE, VP, SubVP
from diffusion.core.numerics import expand
from diffusion.core.parameterization import EPS, Diffusion, Prediction
from diffusion.samplers.adaptive_sde import AdaptiveSDE
from diffusion.samplers.base import sample

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from make_adaptive_sde import SETTINGS  # noqa: E402
from make_score_sde_pc import eps_hat  # noqa: E402

PROCESSES = {"vp": VP(), "subvp": SubVP(), "ve": VE(sigma_min=0.01, sigma_max=50.0)}


@functools.cache
def golden():
    with np.load(GOLDEN / "adaptive_sde.npz") as file:
        return dict(file)


def diffusion(process):
    def denoise(x, t, cond=None):
        return EPS.predict(process, eps_hat(jnp, x, expand(process.alpha(t), x), expand(process.sigma(t), x)), x, t)
    return Diffusion(process, denoise)


@functools.partial(jax.jit, static_argnums=0)
def step(process, relative, absolute, x, noise):
    solver = AdaptiveSDE(relative=relative, absolute=absolute)
    with (mock.patch.object(numerics, "fold_in", lambda keys, index: index),
          mock.patch.object(numerics, "normal", lambda index, *_: noise[index])):
        return solver.step(solver.init(x), x, 1.0, 1e-3, diffusion(process), None, None)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", PROCESSES)
def test_chains_are_the_authors(x64, name, setting):
    """Step by step, accepted or not: 47 to 261 tries."""
    x, noise, expected = (golden()[f"{name}_{setting}_{key}"] for key in ("x", "noise", "out"))
    padded = np.concatenate([noise, np.full((300 - len(noise), *noise.shape[1:]), np.nan)])  # one shape, one program
    calls, out = step(PROCESSES[name], *SETTINGS[setting], x, padded)
    assert int(calls.max()) == 2 * len(noise)
    np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_it_samples_the_data_and_the_last_step_removes_all_noise(name):
    """With one image as the data the chain ends there, to rounding; any noise would stay."""
    process, one = PROCESSES[name], np.arange(200) % 20 == 0
    of_mixture = mixture(process).denoise
    image = np.linspace(-1, 1, 64, dtype=np.float32)[None]

    def denoise(x, t, cond):
        found, last = of_mixture(x, t), expand(cond, x)
        alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
        return Prediction(jnp.where(last, image, found.x0), jnp.where(last, (x - alpha * image) / sigma, found.eps))

    steps = np.array([[1, process.t_min or 1e-3], [process.t_min or 1e-3, 0]], np.float32)
    solver, keys = AdaptiveSDE(relative=0.01), keys_of(200, 2)
    x = np.asarray(prior(process, (64,), 1.0, keys_of(200, 1)), np.float32)
    program = large(lambda x, keys, cond: sample(solver, Diffusion(process, denoise), steps, x, keys, cond))
    carry, out = program(x, keys, one)
    law = np.asarray(out, float)[~one]
    assert abs(law.mean() - MEAN) < 0.02  # 12,160 draws: a standard error of 0.008
    assert abs(law.var() / VARIANCE - 1) < 0.03
    np.testing.assert_array_equal(out[one], np.broadcast_to(image, (10, 64)))
    assert solver.evaluations(steps, carry) == float(np.mean(carry)) > 20
    alone = np.arange(200) == 3
    others = program(np.where(alone[:, None], x, -0.5 * x), keys, one)[1]
    np.testing.assert_allclose(others[3], out[3], atol=1e-4)  # its steps do not depend on the others


def test_too_many_steps_are_no_number():
    process, steps = VP(), np.array([[1, 0.5]], np.float32)
    assert np.isnan(run(AdaptiveSDE(max_steps=3), mixture(process), steps, np.ones((2, 4), np.float32))[1]).all()
