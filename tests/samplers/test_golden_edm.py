"""Sampling along any schedule and scaling against NVlabs/edm's ablation_sampler over all its choices, with its noise.

tests/golden/edm_sampler.npz, made by make_edm_sampler.py, which has the denoiser too.
"""
import functools
import pathlib
import sys
from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.exact import keys_of

from diffusion import build, generate
from diffusion import config as config_lib
from diffusion.core import grids, numerics
from diffusion.core.continuous import VarianceExploding
from diffusion.core.numerics import expand
from diffusion.core.parameterization import Diffusion, Prediction, on_process
from diffusion.core.schedule_scaling import ScheduleScaling
from diffusion.errors import ConfigError
from diffusion.samplers.heun import Heun

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from make_edm_sampler import CHOICES, CHURN, SIGMA_MAX, SIGMA_MIN, STEPS, denoise, name_of  # noqa: E402

MODEL = VarianceExploding(sigma_min=1e-4, sigma_max=1e4)
SPACINGS = {"vp": grids.vp_levels, "ve": grids.uniform_log_snr, "iddpm": grids.iddpm_levels, "edm": grids.karras}


@functools.cache
def golden():
    with np.load(GOLDEN / "edm_sampler.npz") as file:
        return dict(file)


def exact(process=MODEL):
    def predict(x, t, cond=None):
        level = expand(process.noise_level(t), x)
        x0 = denoise(jnp, x, level)
        return Prediction(x0, (x - x0) / level)
    return Diffusion(process, predict)


@pytest.mark.parametrize("churn", [False, True], ids=["", "churn"])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: name_of(choice, False))
def test_every_choice(x64, choice, churn):
    """solver x discretisation x schedule x scaling, and Heun's alpha; in float64."""
    g, name = golden(), name_of(choice, churn)
    if name not in g:
        assert churn and choice["alpha"] != 1
        return
    process = ScheduleScaling(schedule=choice["schedule"], scaling=choice["scaling"], sigma_min=SIGMA_MIN,
                              sigma_max=SIGMA_MAX)
    times = SPACINGS[choice["discretization"]](process, STEPS, process.t_min)
    solver = Heun(order=1 if choice["solver"] == "euler" else 2, fraction=choice["alpha"], euler_to_zero=True,
                  **(dict(churn=CHURN["S_churn"] / STEPS, churn_min=CHURN["S_min"], churn_max=CHURN["S_max"],
                          churn_noise=CHURN["S_noise"]) if churn else {}))
    diffusion = on_process(exact(), process)

    @jax.jit
    def step(x, t, t_next, z):
        with mock.patch.object(numerics, "normal", lambda *_: z):
            return solver.step((), x, t, t_next, diffusion, keys_of(4), None)[1]
    x = process.sigma(times[0]) * g["x"]
    for t, t_next, z in zip(times, np.append(times[1:], 0.0), g["noise"]):
        x = step(x, t, t_next, z)
    np.testing.assert_allclose(x, g[name], rtol=1e-9, atol=1e-9 * np.abs(g[name]).max())


@pytest.mark.parametrize("churn", [False, True], ids=["", "churn"])
def test_edm_sampler(x64, churn):
    """The paper's own sampler, Algorithm 2, which takes no part in the ablation; its last step is to x_0."""
    process = VarianceExploding(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
    solver = Heun(**(dict(churn=CHURN["S_churn"] / STEPS, churn_min=CHURN["S_min"], churn_max=CHURN["S_max"],
                          churn_noise=CHURN["S_noise"]) if churn else {}))
    x, times = SIGMA_MAX * golden()["x"], grids.karras(process, STEPS, SIGMA_MIN)
    for t, t_next, z in zip(times, np.append(times[1:], 0.0), golden()["noise"]):
        with mock.patch.object(numerics, "normal", lambda *_: z):
            x = solver.step((), x, jnp.asarray(t), jnp.asarray(t_next), exact(), keys_of(4), None)[1]
    np.testing.assert_allclose(x, golden()["edm_sampler" + "_churn" * churn], rtol=1e-9, atol=1e-10)


def test_the_choices_differ():
    """Else a test of one would hold for another."""
    chains = np.stack([golden()[name_of(choice, False)].ravel() for choice in CHOICES])
    apart = np.abs(chains[:, None] - chains[None]).max(-1) + np.eye(len(chains))
    close = apart < 1e-9
    assert not close.any(), [(CHOICES[i], CHOICES[j]) for i, j in zip(*np.nonzero(close))][:3]


def settings(choice):
    return {"sample.solver": choice["solver"], "sample.heun_fraction": choice["alpha"],
            "sample.spacing": {"vp": "vp", "ve": "log_snr", "iddpm": "iddpm", "edm": "karras"}[
                choice["discretization"]],
            "sample.schedule": choice["schedule"], "sample.scaling": choice["scaling"], "sample.sigma_min": SIGMA_MIN,
            "sample.sigma_max": SIGMA_MAX, "sample.steps": STEPS, "sample.clip": False, "sample.euler_to_zero": True,
            "process.name": "edm", "prediction": "edm", "data.size": 8, "data.channels": 1, "network.channels": 32,
            "network.multipliers": (1,), "network.attention_resolutions": ()}


@pytest.mark.parametrize("choice", CHOICES[::5], ids=lambda choice: name_of(choice, False))
def test_by_config_alone(choice):
    """In float32, from the same noise."""
    config = config_lib.override(config_lib.base(), settings(choice))
    model = replace(build.model(config), denoiser=lambda params: exact())
    steps, sampler = build.grid(config.sample, model.process), build.sampler(config, model)
    target, rows = build.along(config.sample, model.process), golden()["x"]
    noise = np.zeros((4, 8, 8, 1), np.float32)
    noise[:, 0, :3, 0] = rows * float(target.sigma(steps[0, 0]))
    drawn = sampler({}, steps, 0, np.arange(4, dtype=np.int32), noise=noise)
    expected = golden()[name_of(choice, False)]
    np.testing.assert_allclose(drawn.x[:, 0, :3, 0], expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())
    assert drawn.evaluations == (STEPS if choice["solver"] == "euler" else 2 * STEPS - 1)
    assert isinstance(sampler, generate.Sampler)


@pytest.mark.parametrize("changes, words", [
    ({"sample.schedule": "cosine"}, ["sample.schedule", "linear, model, ve, vp"]),
    ({"sample.scaling": "vp", "sample.schedule": "model"}, ["sample.scaling"]),
    ({"process.name": "linear", "prediction": "eps"}, ["sample.schedule", "between_times"]),
    ({"process.name": "flow", "prediction": "velocity", "sample.sigma_max": -1.0}, ["sample.sigma_max", "80"]),
    ({"sample.sigma_min": 70.0}, ["sample.sigma_min", "below"]),
])
def test_what_cannot_be(changes, words):
    config = config_lib.override(config_lib.base(), {**settings(CHOICES[-1]), **changes})
    with pytest.raises(ConfigError) as error:
        build.sampler(config, build.model(config))
    assert all(word in str(error.value) for word in words), error.value
