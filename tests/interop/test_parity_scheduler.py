"""Every scheduler of diffusers that is mapped: its own chain and ours, with the same network and noise, are equal.

Needs PyTorch and diffusers: `pip install -r requirements-parity.txt`, then `pytest -m parity`.
"""
import dataclasses
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import build
from diffusion import config as config_lib
from diffusion.core import numerics, parameterization
from diffusion.core.streams import example_keys
from diffusion.errors import CheckpointError
from diffusion.interop import scheduler

REASON = "the parity tests need PyTorch and diffusers: pip install -r requirements-parity.txt"
torch = pytest.importorskip("torch", reason=REASON)
diffusers = pytest.importorskip("diffusers", reason=REASON)

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]
torch.set_num_threads(1)  # more only wait for each other

SHAPE, INDICES = (2, 4, 4, 3), np.arange(2, dtype=np.int32)
NETWORK = {"data": dict(size=4, channels=3), "network": dict(
    channels=8, multipliers=(1,), blocks=1, groups=4, attention_resolutions=(), middle="none")}  # in name alone
MIX = np.random.default_rng(0).normal(size=(3, 3)) / 2
START = np.random.default_rng(1).normal(size=SHAPE)

TABLE = dict(num_train_timesteps=200, trained_betas=np.linspace(5e-4, 0.1, 200).tolist())
LEADING, TRAILING, V = dict(timestep_spacing="leading"), dict(timestep_spacing="trailing"), "v_prediction"
LIMIT, THRESHOLD = dict(thresholding=True), dict(thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=.9)
MIN = dict(final_sigmas_type="sigma_min", lower_order_final=False)
KARRAS = dict(use_karras_sigmas=True)
# Each option at least once.
CASES = [
    ("DDPM", dict(variance_type="fixed_large", **LIMIT)), ("DDIM", dict(set_alpha_to_one=False, steps_offset=1)),
    ("DPMSolverMultistep", dict(beta_schedule="scaled_linear")), ("DPMSolverMultistep", dict(
        steps_offset=1, prediction_type=V, **TABLE, **LEADING, **LIMIT)),
    ("DPMSolverMultistep", dict(solver_order=1, euler_at_final=True, **TABLE, **TRAILING, **THRESHOLD)),
    ("DPMSolverMultistep", dict(solver_order=3, prediction_type="sample", algorithm_type="deis", **TABLE, **MIN)),
    ("DPMSolverMultistep", dict(algorithm_type="sde-dpmsolver++", beta_schedule="squaredcos_cap_v2", **LEADING)),
    ("DPMSolverMultistep", dict(algorithm_type="sde-dpmsolver++", solver_order=1, **TABLE, **MIN)),
    ("DPMSolverMultistep", dict(solver_type="heun", **TABLE)),
    ("UniPCMultistep", {}), ("UniPCMultistep", dict(prediction_type=V, **TABLE, **LEADING, **THRESHOLD)),
    ("UniPCMultistep", dict(solver_order=3, solver_type="bh1", **TABLE, **MIN)),
    ("DEISMultistep", dict(lower_order_final=False, **TABLE, **LIMIT)),
    ("DEISMultistep", dict(lower_order_final=False, solver_order=3, prediction_type=V, **TABLE, **LEADING)),
    ("DEISMultistep", dict(solver_order=1, **TABLE, **TRAILING)),
    ("PNDM", TABLE), ("PNDM", dict(skip_prk_steps=True, steps_offset=1, **TABLE)),
    ("PNDM", dict(skip_prk_steps=True, set_alpha_to_one=True)),
    ("EulerDiscrete", dict(prediction_type=V, **TABLE, **LEADING)), ("EulerDiscrete", TABLE | TRAILING),
    ("EulerDiscrete", TABLE | KARRAS),
    ("EulerDiscrete", dict(sigma_min=0.1, sigma_max=20.0, prediction_type="sample", **TABLE, **KARRAS)),
    ("EulerAncestralDiscrete", dict(steps_offset=1, prediction_type=V, **TABLE, **LEADING)),
    ("EulerAncestralDiscrete", TABLE | TRAILING),
    ("LMSDiscrete", dict(prediction_type="sample", **TABLE, **LEADING)), ("LMSDiscrete", TABLE | KARRAS),
    ("KDPM2Discrete", TABLE | LEADING), ("KDPM2Discrete", dict(prediction_type=V, **TABLE, **TRAILING)),
    ("HeunDiscrete", TABLE | KARRAS), ("HeunDiscrete", dict(clip_sample=True, prediction_type=V, **TABLE, **KARRAS)),
    ("EDMEuler", {}), ("EDMEuler", dict(sigma_schedule="exponential", sigma_data=1.0, sigma_min=0.01, sigma_max=50.0)),
    ("FlowMatchEulerDiscrete", {}),
]


def network(xp, x, label):
    label = xp.asarray(label, x.dtype)
    return 1.1 * xp.tanh(x @ MIX + xp.cos(label.reshape(-1, 1, 1, 1) / 40))


def to_torch(x):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def to_numpy(x):
    return x.numpy().transpose(0, 2, 3, 1)


def our_chain(config, steps):
    """(x at the end, the scale of the signal at the start, or 1 where theirs goes by x, too)."""
    config.sample.steps = steps
    model = build.model(config)
    denoiser = parameterization.make_denoiser(
        lambda params: model.process, build.prediction(config),
        lambda params, x, c_noise, *rest: network(jnp, x, c_noise))
    grid = build.grid(config.sample, model.process)
    model = dataclasses.replace(model)
    vars(model)["denoiser"] = denoiser  # in place of the network's
    run = build.sampler(config, model)
    x = run({"params": {}}, grid, 0, INDICES, noise=START).x
    along = config.sample.schedule == "model" and config.process.name != "flow"
    return x, float(model.process.alpha(grid[0, 0])) if along else 1.0


def their_chain(theirs, steps, scale):
    """From the start, which is `scale` times as large where theirs goes by x / alpha."""
    theirs.set_timesteps(steps)
    keys = numerics.fold_in(example_keys(jax.random.key(np.uint32(0)), "sample", 0, INDICES), 1)
    draws = (numerics.normal(numerics.fold_in(keys, i), SHAPE[1:], float) for i in range(steps))
    x = to_torch(START) * (scale if hasattr(theirs, "init_noise_sigma") and float(theirs.init_noise_sigma) != 1 else 1)
    with mock.patch(f"{type(theirs).__module__}.randn_tensor", lambda *_, **__: to_torch(next(draws)), create=True):
        for t in theirs.timesteps:
            seen = theirs.scale_model_input(x, t) if hasattr(theirs, "scale_model_input") else x
            x = theirs.step(to_torch(network(np, to_numpy(seen), float(t))), t, x).prev_sample
    return to_numpy(x)


def saved(theirs, folder):
    theirs.save_pretrained(folder)
    return json.loads((folder / "scheduler_config.json").read_text())


@pytest.mark.parametrize("name, settings", CASES)
def test_chains_are_equal(x64, tmp_path, name, settings):
    theirs = getattr(diffusers, f"{name}Scheduler")(**settings)
    config = config_lib.adopted(scheduler.read_settings(saved(theirs, tmp_path), "s") | NETWORK, "s")
    for steps in (20, 9):
        x, alpha = our_chain(config, steps)
        expected = their_chain(theirs, steps, 1 / alpha)
        difference = np.abs(x - expected).max() / np.abs(expected).max()
        print(f"{name} {steps}: {difference:.1g}")
        assert expected.std() > 0.01 and difference < 3e-5  # theirs has its noise levels in float32, and Heun's slopes


@pytest.mark.parametrize("name, settings", [
    ("DPMSolverMultistep", dict(solver_order=3)), ("DPMSolverMultistep", KARRAS), ("UniPCMultistep", KARRAS),
    ("DPMSolverMultistep", dict(algorithm_type="dpmsolver", final_sigmas_type="sigma_min")), ("DEISMultistep", {}),
    ("UniPCMultistep", dict(solver_type="bh1")), ("UniPCMultistep", dict(predict_x0=False)),
    ("PNDM", dict(timestep_spacing="linspace")), ("PNDM", dict(prediction_type=V)), ("EulerDiscrete", {}),
    ("EulerDiscrete", dict(rescale_betas_zero_snr=True, **TRAILING)), ("HeunDiscrete", LEADING), ("KDPM2Discrete", {}),
    ("DPMSolverSinglestep", {}), ("ScoreSdeVe", {}), ("CMStochasticIterative", {}), ("KDPM2AncestralDiscrete", {}),
    ("FlowMatchHeunDiscrete", {}), ("SASolver", {}), ("EDMDPMSolverMultistep", {}), ("EDMEuler", dict(
        prediction_type=V)), ("FlowMatchEulerDiscrete", dict(shift=3.0)), ("LCM", {}),
    ("IPNDM", {})])
def test_what_is_not_equal_is_refused_by_name(tmp_path, name, settings):
    theirs = getattr(diffusers, f"{name}Scheduler")(**settings)
    with pytest.raises(CheckpointError, match=name if not settings else "|".join([name, *settings])):
        scheduler.read_settings(saved(theirs, tmp_path), "file")


def test_what_each_class_has_is_known():
    """No setting that diffusers has is taken for a left-over one."""
    import inspect
    for name, ours in scheduler.SCHEDULERS.items():
        theirs = set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self", "kwargs"}
        assert theirs <= ours.fields.keys(), (name, theirs - ours.fields.keys())
