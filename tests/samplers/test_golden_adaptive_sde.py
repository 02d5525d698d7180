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
from samplers.exact import MEAN, VARIANCE, keys_of, mixture

from diffusion.core import numerics
from diffusion.core.continuous import VE, VP, SubVP
from diffusion.core.numerics import expand
from diffusion.core.parameterization import EPS, Diffusion, Prediction
from diffusion.samplers.adaptive_sde import AdaptiveSDE
from diffusion.samplers.base import draw_prior, sample

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from make_adaptive_sde import SETTINGS  # noqa: E402
from make_score_sde_pc import eps_hat  # noqa: E402

PROCESSES = {"vp": VP(), "subvp": SubVP(), "ve": VE()}


@functools.cache
def golden():
    with np.load(GOLDEN / "adaptive_sde.npz") as file:
        return dict(file)


def diffusion(process):
    def denoise(x, t, cond=None):
        return EPS.predict(process, eps_hat(jnp, x, expand(process.alpha(t), x), expand(process.sigma(t), x)), x, t)
    return Diffusion(process, denoise)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", PROCESSES)
def test_chains_are_the_authors(x64, name, setting):
    """Step by step, accepted or not: 47 to 261 tries."""
    (relative, absolute), case = SETTINGS[setting], f"{name}_{setting}"
    x, noise, expected = (jnp.asarray(golden()[f"{case}_{key}"]) for key in ("x", "noise", "out"))
    solver = AdaptiveSDE(relative=relative, absolute=absolute)
    with (mock.patch.object(numerics, "fold_in", lambda keys, index: index),
          mock.patch.object(numerics, "normal", lambda index, *_: noise[index])):
        calls, out = jax.jit(lambda x: solver.step(solver.init(x), x, 1.0, 1e-3, diffusion(PROCESSES[name]), None,
                                                   None))(x)
    assert int(calls.max()) == 2 * len(noise)
    np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("name", PROCESSES)
def test_it_samples_the_data(name):
    process, shape = PROCESSES[name], (64,)
    x = draw_prior(process, 1.0, keys_of(200, 1), shape)
    steps = np.array([[1, process.t_min or 1e-3], [process.t_min or 1e-3, 0]], np.float32)
    solver = AdaptiveSDE(relative=0.01)
    carry, out = jax.jit(lambda x, keys: sample(solver, mixture(process), steps, x, keys))(x, keys_of(200, 2))
    assert abs(float(out.mean()) - MEAN) < 0.02  # 12,800 draws: a standard error of 0.008
    assert abs(float(out.var()) / VARIANCE - 1) < 0.03
    assert solver.evaluations(steps, carry) == float(np.mean(carry)) > 20
    alone = jax.jit(lambda x, keys: sample(solver, mixture(process), steps, x, keys))(x[3:4], keys_of(200, 2)[3:4])[1]
    np.testing.assert_allclose(alone[0], out[3], atol=1e-4)  # its steps do not depend on the others


@pytest.mark.parametrize("name", PROCESSES)
def test_the_last_step_removes_all_noise(x64, name):
    """With one image as the data the chain ends there, to rounding; any noise would stay."""
    process, image = PROCESSES[name], jnp.linspace(-1, 1, 5)

    def denoise(x, t, cond=None):
        x0 = jnp.broadcast_to(image, x.shape)
        return Prediction(x0, (x - expand(process.alpha(t), x) * x0) / expand(process.sigma(t), x))

    x, steps = draw_prior(process, 1.0, keys_of(3), (5,)), np.array([[1, 1e-3], [1e-3, 0]])
    out = sample(AdaptiveSDE(relative=0.2), Diffusion(process, denoise), steps, x, keys_of(3))[1]
    np.testing.assert_allclose(out, jnp.broadcast_to(image, x.shape), rtol=0, atol=1e-9)


def test_too_many_steps_are_no_number():
    process = VP()
    x, steps = draw_prior(process, 1.0, keys_of(2), (4,)), np.array([[1, 0.5]], np.float32)
    assert np.isnan(sample(AdaptiveSDE(max_steps=3), mixture(process), steps, x, keys_of(2))[1]).all()
