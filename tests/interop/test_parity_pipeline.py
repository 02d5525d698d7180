"""Our DiffusionPipeline and diffusers' DDPMPipeline and DDIMPipeline, with the same weights and noise: the same images.

Needs PyTorch and diffusers: `pip install -r requirements-parity.txt`, then `pytest -m parity`.
"""
import pathlib
import sys
import warnings

import jax
import numpy as np
import pytest

from diffusion import DiffusionPipeline, build
from diffusion import config as config_lib
from diffusion.programs.convert import compare, main

TESTS = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "interop"), str(TESTS / "networks")]
from random_params import random_params  # noqa: E402
from unet2d_configs import settings  # noqa: E402

REASON = "the parity tests need PyTorch and diffusers: pip install -r requirements-parity.txt"
torch = pytest.importorskip("torch", reason=REASON)
diffusers = pytest.importorskip("diffusers", reason=REASON)
from diffusers_noise import injected  # noqa: E402

pytestmark = pytest.mark.parity
torch.set_num_threads(1)  # more only wait for each other

# config.json of google/ddpm-cifar10-32 as published, but for the head: it has no attention_head_dim, and the paper one.
DDPM_CIFAR10_32 = dict(
    act_fn="silu", attention_head_dim=None, block_out_channels=(128, 256, 256, 256), center_input_sample=False,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"), downsample_padding=0,
    flip_sin_to_cos=False, freq_shift=1, in_channels=3, layers_per_block=2, mid_block_scale_factor=1, norm_eps=1e-6,
    norm_num_groups=32, out_channels=3, sample_size=32, time_embedding_type="positional",
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"))
# What the tests of schedulers need: a network that depends on x and the time.
SMALL = dict(in_channels=3, out_channels=3, block_out_channels=(8,), norm_num_groups=4, sample_size=8,
             layers_per_block=1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None)
PUBLISHED_SCHEDULER = dict(beta_end=0.02, beta_schedule="linear", beta_start=0.0001, clip_sample=True,
                           num_train_timesteps=1000, trained_betas=None, variance_type="fixed_large")


# A random network's output is no noise estimate, and a deterministic chain that clips x0 amplifies rounding with it: at
# the weights' usual size diffusers in float32 differs from itself in float64 by 0.04 to 0.6 after DDIM steps, and 1e-7
# added to the start becomes 1e-2. With outputs of this share of that it is 2e-5, and with a trained network 4e-6
# (docs/results.md).
CALM = 0.03


def make(folder, unet: dict, scheduler, scale: float = CALM):
    """A pipeline of diffusers with random weights, saved, and ours of the same folder."""
    torch.manual_seed(0)
    kind = diffusers.DDIMPipeline if "DDIM" in type(scheduler).__name__ else diffusers.DDPMPipeline
    network = diffusers.UNet2DModel(**unet)
    network.conv_out.weight.data *= scale
    kind(unet=network, scheduler=scheduler).save_pretrained(folder)
    theirs = kind.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    return theirs, DiffusionPipeline.from_pretrained(folder)


def both(theirs, ours, batch: int, steps: int, silent_last=False, **call) -> tuple[np.ndarray, np.ndarray]:
    """(diffusers' images, ours), float [B, H, W, C] in [0, 1], of the same noise."""
    shape = (batch, ours.config.data.size, ours.config.data.size, ours.config.data.channels)
    with injected(0, shape, steps, silent_last) as drawn:
        expected = theirs(batch_size=batch, num_inference_steps=steps, output_type="np", **call).images
    assert len(drawn) >= 1
    return expected, ours(batch, steps, seed=0, output_type="np", progress_bar=False, **call).images


# ---- google/ddpm-cifar10-32 ---------------------------------------------------------------------------------------

def test_ddpm_cifar10_32_network(tmp_path):
    theirs, ours = make(tmp_path, DDPM_CIFAR10_32, diffusers.DDPMScheduler(**PUBLISHED_SCHEDULER), 1.0)
    network = build.network(ours.config.network, 32, 3)
    assert sum(x.size for x in jax.tree.leaves(ours.params)) == 35_746_307
    times = np.asarray([0, 999], np.float32)
    x = np.random.default_rng(0).normal(size=(len(times), 32, 32, 3)).astype(np.float32)
    out = np.asarray(jax.jit(network.apply)(ours.params, x, times))
    with torch.no_grad():
        expected = theirs.unet(torch.from_numpy(np.array(x.transpose(0, 3, 1, 2))), torch.from_numpy(times)).sample
    difference = np.abs(out - expected.numpy().transpose(0, 2, 3, 1)).max()
    print(f"network: max difference {difference:.2g}")
    assert difference < 2e-5


def test_chain_of_1000_steps(tmp_path):
    """With a small network: each step is of the published scheduler whatever the network, which the test above has."""
    pair = make(tmp_path, SMALL, diffusers.DDPMScheduler(**PUBLISHED_SCHEDULER), 1.0)
    expected, out = both(*pair, batch=2, steps=1000)
    to_bytes = lambda x: np.rint(x * 255).astype(np.uint8)  # noqa: E731
    print(f"1000 steps: max difference {np.abs(out - expected).max():.2g}, equal bytes "
          f"{(to_bytes(out) == to_bytes(expected)).mean():.5f}, spread {expected.std():.2f}")
    assert expected.std() > 0.1
    assert np.abs(out - expected).max() < 1e-3
    assert (to_bytes(out) == to_bytes(expected)).mean() >= 0.999


def test_ddim_of_50_steps_from_the_files_of_ddpm(tmp_path):
    theirs, ours = make(tmp_path, SMALL, diffusers.DDPMScheduler(**PUBLISHED_SCHEDULER))
    ddim = diffusers.DDIMPipeline(unet=theirs.unet, scheduler=theirs.scheduler)
    ddim.set_progress_bar_config(disable=True)
    with injected(0, (2, 8, 8, 3), 50):
        expected = ddim(batch_size=2, num_inference_steps=50, output_type="np").images
    out = ours(2, 50, seed=0, sampler="ddim", eta=0.0, output_type="np", progress_bar=False).images
    print(f"DDIM 50: max difference {np.abs(out - expected).max():.2g}, spread {expected.std():.2f}")
    assert expected.std() > 0.1
    assert np.abs(out - expected).max() < 1e-4


# ---- every setting of the schedulers ------------------------------------------------------------------------------

# Each setting at least once. What they do is in tests/theory/test_parity_schedulers.py; this is that they are read.
V = dict(prediction_type="v_prediction")
TABLE = dict(trained_betas=np.linspace(0.001, 0.1, 200).tolist(), num_train_timesteps=200)
THRESHOLD = dict(thresholding=True, sample_max_value=2.0, dynamic_thresholding_ratio=0.9)
ZERO_SNR = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
DDPM = {
    "defaults": {},
    "scaled linear, sample, large": dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                                         prediction_type="sample", variance_type="fixed_large"),
    "cosine, v, small log, clip range": dict(beta_schedule="squaredcos_cap_v2", variance_type="fixed_small_log",
                                             clip_sample_range=0.5, **V),
    "sigmoid, threshold, linspace": dict(beta_schedule="sigmoid", timestep_spacing="linspace", **THRESHOLD),
    "a table, v, large, trailing, no clip": dict(variance_type="fixed_large", timestep_spacing="trailing",
                                                 clip_sample=False, **TABLE, **V),
    "other betas, offset": dict(beta_start=0.001, beta_end=0.05, num_train_timesteps=300, steps_offset=1),
    "zero snr, v": dict(**ZERO_SNR, **V), "zero snr, sample": dict(prediction_type="sample", **ZERO_SNR),
}
DDIM = {  # the settings, and eta
    "defaults": ({}, 0.0),
    "scaled linear, sample, end": (dict(beta_schedule="scaled_linear", prediction_type="sample",
                                        set_alpha_to_one=False), 0.7),
    "cosine, v, no clip, linspace": (dict(beta_schedule="squaredcos_cap_v2", clip_sample=False,
                                          timestep_spacing="linspace", **V), 0.0),
    "a table, threshold, trailing": (dict(timestep_spacing="trailing", **TABLE, **THRESHOLD), 0.7),
    "end, offset, clip range": (dict(set_alpha_to_one=False, steps_offset=1, clip_sample_range=0.5), 0.0),
    "zero snr": (dict(**ZERO_SNR, **V), 0.0),
}


def scale(values: dict) -> float:
    return 1.0 if values.get("prediction_type") == "sample" else CALM  # an output that is the picture has to be seen


@pytest.mark.parametrize("name", DDPM)
def test_ddpm_scheduler(name, tmp_path):
    pair = make(tmp_path, SMALL, diffusers.DDPMScheduler(**DDPM[name]), scale(DDPM[name]))
    for steps in (30, 7):
        expected, out = both(*pair, batch=2, steps=steps, silent_last=True)
        assert expected.std() > 0.05
        assert np.abs(out - expected).max() < 1e-4


@pytest.mark.parametrize("name", DDIM)
def test_ddim_scheduler(name, tmp_path):
    values, eta = DDIM[name]
    pair = make(tmp_path, SMALL, diffusers.DDIMScheduler(**values), scale(values))
    for steps in (30, 7):
        expected, out = both(*pair, batch=2, steps=steps, eta=eta)
        assert expected.std() > 0.05
        assert np.abs(out - expected).max() < 1e-4


def test_learned_range(tmp_path):
    pair = make(tmp_path, SMALL | dict(out_channels=6), diffusers.DDPMScheduler(variance_type="learned_range"))
    expected, out = both(*pair, batch=2, steps=20)
    assert np.abs(out - expected).max() < 1e-4


def test_fixed_large_log_is_not_a_number_in_diffusers():
    """Why ours refuses it."""
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_large_log")
    assert torch.isnan(scheduler._get_variance(500) ** 0.5)


# ---- ours, to diffusers and back ----------------------------------------------------------------------------------

OURS = {
    "ddim": {"sample.solver": "ddim", "sample.steps": 10, "sample.spacing": "leading"},
    "cosine, v, labels": {"process.name": "cosine", "prediction": "v", "network.num_classes": 3},
    "labels that were dropped": {"network.num_classes": 3, "network.label_dropout": 0.1},
    "dpm_solver++m": {"sample.solver": "dpm_solver++m", "sample.spacing": "open_leading", "sample.steps": 5,
                      "sample.reach": float("inf")},
    "plms": {"sample.solver": "plms", "sample.spacing": "leading", "sample.steps": 5, "sample.clip": False},
    "a cosine that diffusers does not know": {"process.name": "cosine", "process.offset": 0.02,
                                              "sample.variance": "small"},
    "heads, scale and shift, blocks that resample, zero terminal SNR": {
        "network.heads": 2, "network.scale_shift": True, "network.downsample": ("resblock",),
        "network.upsample": ("resblock",), "network.attention_resolutions": (4,), "process.zero_terminal_snr": True,
        "prediction": "v", "sample.spacing": "trailing"},
}


@pytest.mark.parametrize("name", OURS)
def test_diffusers_loads_what_we_save(name, tmp_path):
    tiny = {"data.size": 8, "network.channels": 8, "network.multipliers": (1, 2), "network.blocks": 1,
            "network.attention_resolutions": (4,), "network.groups": 4, "process.steps": 20, "sample.steps": 20}
    config = config_lib.override(config_lib.base(), tiny | OURS[name])
    params = random_params(build.network(config.network, 8, 3), (8, 8, 3), seed=0)
    params["conv_out"]["kernel"] *= CALM
    pipe = DiffusionPipeline(config, {"params": params})
    pipe.save_pretrained(tmp_path / "saved")
    assert compare(DiffusionPipeline.from_pretrained(tmp_path / "saved"), str(tmp_path / "saved")) < 2e-5
    if config.network.num_classes:
        return  # diffusers' pipelines take no labels
    kind = {"ddim": diffusers.DDIMPipeline, "plms": diffusers.PNDMPipeline}.get(name, diffusers.DDPMPipeline)
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved")) is kind
    theirs = kind.from_pretrained(tmp_path / "saved")
    theirs.set_progress_bar_config(disable=True)
    call = dict(use_clipped_model_output=True) if "ddim" in name else {}
    with injected(0, (2, 8, 8, 3), config.sample.steps):
        expected = theirs(batch_size=2, num_inference_steps=config.sample.steps, output_type="np", **call).images
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = pipe(2, output_type="np", progress_bar=False).images
    assert np.abs(out - expected).max() < 1e-4


def test_convert_says_how_many_parameters_and_the_largest_difference(tmp_path, capsys):
    make(tmp_path / "a", SMALL, diffusers.DDPMScheduler())
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    count = sum(p.numel() for p in diffusers.UNet2DModel(**SMALL).parameters())
    assert f"{count:,} parameters" in out and "equal bit for bit" in out
    assert "largest difference of the network's output from diffusers'" in out


@pytest.mark.parametrize("safe", [True, False])
def test_weights_in_shards_and_in_bin_files(safe, tmp_path):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**settings("defaults of the class"))
    pipe = diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler())
    pipe.save_pretrained(tmp_path / "whole", safe_serialization=True)
    pipe.save_pretrained(tmp_path / "other", safe_serialization=safe)
    unet.save_pretrained(tmp_path / "other" / "unet", safe_serialization=safe, max_shard_size="200KB")
    for file in (tmp_path / "other" / "unet").glob("diffusion_pytorch_model.[sb]*"):
        if "-of-" not in file.name and "index" not in file.name:
            file.unlink()
    assert len(list((tmp_path / "other" / "unet").glob("*-of-*"))) > 2
    one, two = (DiffusionPipeline.from_pretrained(tmp_path / name) for name in ("whole", "other"))
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
