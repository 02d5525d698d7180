"""Sampling along any schedule and scaling against NVlabs/edm's ablation_sampler over all its choices, with its noise.

tests/golden/edm_sampler.npz, made by make_edm_sampler.py, which has the denoiser too.
"""
import functools
import pathlib
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.exact import for_many_samples

from diffusion import build, generate
from diffusion import config as config_lib
from diffusion.core import grids, numerics
from diffusion.core.continuous import VE, Cosine, VarianceExploding
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


@functools.cache
def exact(process=MODEL):
    def predict(x, t, cond=None):
        level = expand(process.noise_level(t), x)
        x0 = denoise(jnp, x, level)
        return Prediction(x0, (x - x0) / level)
    return Diffusion(process, predict)


@functools.cache
def process_of(schedule, scaling):
    return ScheduleScaling(schedule=schedule, scaling=scaling, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)


@functools.cache
def times_of(schedule, scaling, discretization):
    process = process_of(schedule, scaling)
    return np.asarray(SPACINGS[discretization](process, STEPS, process.t_min))


@functools.partial(jax.jit, static_argnums=(0, 1))
def step(options, diffusion, fraction, x, t, t_next, z):
    with mock.patch.object(numerics, "normal", lambda *_: z):
        return Heun(fraction=fraction, **dict(options)).step((), x, t, t_next, diffusion, None, None)[1]


def chain(diffusion, fraction, x, times, **options):
    for t, t_next, z in zip(times, np.append(times[1:], 0.0), golden()["noise"]):
        x = step(tuple(options.items()), diffusion, fraction, x, t, t_next, z)
    return x


CHURNED = dict(churn=CHURN["S_churn"] / STEPS, churn_min=CHURN["S_min"], churn_max=CHURN["S_max"],
               churn_noise=CHURN["S_noise"])


@functools.cache
def on(schedule, scaling):
    return on_process(exact(), process_of(schedule, scaling))


@pytest.mark.parametrize("churn", [False, True], ids=["", "churn"])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: name_of(choice, False))
def test_every_choice(x64, choice, churn):
    """solver x discretisation x schedule x scaling, and Heun's alpha; in float64."""
    g, name = golden(), name_of(choice, churn)
    if name not in g:
        assert churn and choice["alpha"] != 1
        return
    space = choice["schedule"], choice["scaling"]
    times = times_of(*space, choice["discretization"])
    x = chain(on(*space), choice["alpha"], process_of(*space).sigma(times[0]) * g["x"], times, euler_to_zero=True,
              order=1 if choice["solver"] == "euler" else 2, **(CHURNED if churn else {}))
    np.testing.assert_allclose(x, g[name], rtol=1e-9, atol=1e-9 * np.abs(g[name]).max())


@pytest.mark.parametrize("churn", [False, True], ids=["", "churn"])
def test_edm_sampler(x64, churn):
    """The paper's own sampler, Algorithm 2, which takes no part in the ablation; its last step is to x_0."""
    process = VarianceExploding(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
    times = np.asarray(grids.karras(process, STEPS, SIGMA_MIN))
    x = chain(exact(), 1.0, SIGMA_MAX * golden()["x"], times, **(CHURNED if churn else {}))
    np.testing.assert_allclose(x, golden()["edm_sampler" + "_churn" * churn], rtol=1e-9, atol=1e-10)


def test_the_choices_differ():
    """Else a test of one would hold for another."""
    chains = np.stack([golden()[name_of(choice, False)].ravel() for choice in CHOICES])
    apart = np.abs(chains[:, None] - chains[None]).max(-1) + np.eye(len(chains))
    close = apart < 1e-9
    assert not close.any(), [(CHOICES[i], CHOICES[j]) for i, j in zip(*np.nonzero(close))][:3]


def settings(choice):
    return {"sample.solver": choice["solver"],
            **({"sample.heun_fraction": choice["alpha"]} if choice["solver"] == "heun" else {}),
            "sample.spacing": {"vp": "vp", "ve": "log_snr", "iddpm": "iddpm", "edm": "karras"}[
                choice["discretization"]],
            "sample.schedule": choice["schedule"], "sample.scaling": choice["scaling"], "sample.sigma_min": SIGMA_MIN,
            "sample.sigma_max": SIGMA_MAX, "sample.steps": STEPS, "sample.clip": False, "sample.euler_to_zero": True,
            "process.name": "edm", "prediction": "edm", "data.size": 8, "data.channels": 1, "network.channels": 32,
            "network.multipliers": (1,), "network.attention_resolutions": ()}


@pytest.mark.parametrize("choice", CHOICES[::10], ids=lambda choice: name_of(choice, False))
def test_by_config_alone(choice):
    """In float32, from the same noise."""
    config = config_lib.override(config_lib.base(), settings(choice))
    model = build.model(config)
    vars(model)["denoiser"] = lambda params: exact()  # in place of the network's
    steps, sampler = build.grid(config.sample, model.process), for_many_samples(build.sampler(config, model))
    target, rows = build.sampling_process(config.sample, model.process), golden()["x"]
    noise = np.zeros((4, 8, 8, 1), np.float32)
    noise[:, 0, :3, 0] = rows * float(target.sigma(steps[0, 0]))
    drawn = sampler({}, steps, 0, np.arange(4, dtype=np.int32), noise=noise)
    expected = golden()[name_of(choice, False)]
    np.testing.assert_allclose(drawn.x[:, 0, :3, 0], expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())
    assert drawn.evaluations == (STEPS if choice["solver"] == "euler" else 2 * STEPS - 1)
    assert isinstance(sampler, generate.Sampler)


@pytest.mark.parametrize("process", [VE(), Cosine(), ScheduleScaling(schedule="vp", sigma_max=100.0),
                                     VarianceExploding()], ids=["ve", "cosine", "along vp", "edm"])
def test_churn_brings_x_to_the_noise_of_the_time_that_it_names(x64, process):
    """Also where a process ends: at its last time there is no noise above, and no churn, but on EDM's."""
    z = np.ones((1, 2, 2, 1))
    for t in (0.5 * process.t_max, 0.999 * process.t_max, process.t_max):
        level = float(process.noise_level(t))
        x, raised = Heun(churn=0.4, churn_noise=1.0).add_noise(0 * z, jnp.asarray(t), Diffusion(process, None),
                                                               jax.random.split(jax.random.key(0), 1))
        added = np.asarray(x / process.alpha(raised)) / np.asarray(numerics.normal(
            jax.random.split(jax.random.key(0), 1), z.shape[1:], float))
        np.testing.assert_allclose(level**2 + added**2, float(process.noise_level(raised))**2, rtol=1e-9)
        assert raised <= process.t_max or isinstance(process, VarianceExploding)


def test_churn_is_shared_out_over_the_steps():
    """S_churn / N (Algorithm 2, line 4)."""
    keys = {"sample.churn": CHURN["S_churn"], "sample.churn_min": CHURN["S_min"], "sample.churn_max": CHURN["S_max"],
            "sample.churn_noise": CHURN["S_noise"]}
    config = config_lib.override(config_lib.base(), {"sample.solver": "heun", "sample.steps": STEPS, **keys})
    assert build.solver(config.sample) == Heun(**CHURNED)


@pytest.mark.parametrize("changes, words", [
    ({"sample.schedule": "cosine"}, ["sample.schedule", "linear, model, ve, vp"]),
    ({"sample.scaling": "vp", "sample.schedule": "model"}, ["sample.scaling"]),
    ({"process.name": "linear", "prediction": "eps"}, ["sample.schedule", "between_times"]),
    ({"process.name": "flow", "prediction": "velocity", "sample.sigma_max": -1.0}, ["sample.sigma_max", "80"]),
    ({"sample.sigma_min": 70.0}, ["sample.sigma_min", "below"]),
])
def test_what_cannot_be(changes, words):
    with pytest.raises(ConfigError) as error:
        config = config_lib.override(config_lib.base(), {**settings(CHOICES[-1]), **changes})
        build.sampler(config, build.model(config))
    assert all(word in str(error.value) for word in words), error.value
