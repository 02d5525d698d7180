"""Our U-Net and diffusers' `UNet2DModel`, an independent implementation of the same one, with the same random weights.

Needs PyTorch and diffusers: `pip install -r requirements-parity.txt`, then `pytest -m parity`.
"""
import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.interop import unet2d
from diffusion.networks.layers import sinusoidal_embedding
from diffusion.networks.unet import UNet

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from diffusers_map import diffusers_config  # noqa: E402
from random_params import random_params, unit  # noqa: E402

REASON = "the parity tests need PyTorch and diffusers: pip install -r requirements-parity.txt"
torch = pytest.importorskip("torch", reason=REASON)
diffusers = pytest.importorskip("diffusers", reason=REASON)

pytestmark = pytest.mark.parity
torch.set_num_threads(1)  # more only wait for each other

TIMES = (0, 1, 250, 999)
# Image shape and network. No two have the same depth, so that no index of a level is right by chance.
NETWORKS = {
    "as cifar10, narrower": ((32, 32, 3), UNet(channels=16, groups=8)),
    "digits, 4 heads": ((8, 8, 1), UNet(channels=32, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), heads=4,
                                        groups=8, out_channels=1)),
    "attention at the top, wider then narrower, labels": (
        (16, 16, 3), UNet(channels=16, multipliers=(1, 2, 1), blocks=3, attention_resolutions=(16,), heads=2, groups=4,
                          num_classes=10, out_channels=6)),
    "one level, no attention but the middle's": (
        (8, 8, 2), UNet(channels=24, multipliers=(1,), blocks=2, attention_resolutions=(), groups=3, out_channels=2)),
}
# config.json of the Hugging Face model google/ddpm-cifar10-32, the paper's CIFAR-10 network as ported to diffusers.
DDPM_CIFAR10_32 = dict(
    act_fn="silu", attention_head_dim=None, block_out_channels=(128, 256, 256, 256), center_input_sample=False,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"), downsample_padding=0,
    flip_sin_to_cos=False, freq_shift=1, in_channels=3, layers_per_block=2, mid_block_scale_factor=1, norm_eps=1e-6,
    norm_num_groups=32, out_channels=3, sample_size=32, time_embedding_type="positional",
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"))


@functools.cache
def program(network: UNet, dtype):
    """Compiled once for all tests."""
    return jax.jit(network.clone(dtype=dtype).apply)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Both networks with the same weights, and one input at each of TIMES."""
    ours: UNet
    params: dict
    theirs: object
    x: np.ndarray              # [4,H,W,C]
    labels: np.ndarray | None  # [4]

    def our_output(self, dtype) -> np.ndarray:
        cast = lambda tree: jax.tree.map(lambda v: np.asarray(v, dtype), tree)  # noqa: E731
        return np.asarray(program(self.ours, dtype)(
            {"params": cast(self.params)}, cast(self.x), np.asarray(TIMES, dtype),
            {} if self.labels is None else {"label": self.labels}))

    def their_output(self, dtype) -> np.ndarray:
        labels = None if self.labels is None else torch.from_numpy(self.labels)
        x = torch.from_numpy(np.ascontiguousarray(self.x.transpose(0, 3, 1, 2))).to(dtype)
        with torch.no_grad():
            out = self.theirs.to(dtype)(x, torch.tensor(TIMES), class_labels=labels).sample
        return out.numpy().transpose(0, 2, 3, 1)


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request):
    image_shape, network = NETWORKS[request.param]
    theirs = diffusers.UNet2DModel(**diffusers_config(network, image_shape)).eval()
    params = random_params(network, image_shape, seed=0)
    # Strict: a name or a shape that only one of the two has is an error.
    state = {k: torch.from_numpy(v) for k, v in unet2d.write_params(params).items()}
    theirs.load_state_dict(state, strict=True)
    return Pair(ours=network, params=params, theirs=theirs, x=unit("x", (len(TIMES), *image_shape), seed=1),
                labels=np.asarray([0, 3, 9, 5], np.int32) if network.num_classes else None)


def test_outputs_agree_in_float32(pair):
    ours, theirs = pair.our_output(jnp.float32), pair.their_output(torch.float32)
    assert 0.2 < theirs.std() < 5, "the weights make the signal vanish or blow up: the comparison would mean little"
    assert np.abs(ours - theirs).max() < 1e-5


def test_outputs_agree_in_float64_to_the_rounding_of_the_output(pair, x64):
    """The structure is the same, and what the float32 test sees is rounding.

    At t = 0 and 1, since both take the sinusoidal embedding in float32, where its error grows with t (4e-5 at 999).
    """
    ours, theirs = pair.our_output(jnp.float64)[:2], pair.their_output(torch.float64)[:2]
    assert np.abs(ours - theirs).max() < 5e-7


def test_labels_and_times_matter(pair):
    """Otherwise the tests above could not see a wrong embedding."""
    x = np.repeat(pair.x[:1], len(TIMES), axis=0)
    out = dataclasses.replace(pair, x=x).our_output(jnp.float32)
    assert all(np.abs(out[i] - out[j]).max() > 1e-2 for i in range(len(TIMES)) for j in range(i))


def test_sinusoidal_embedding_agrees():
    times = np.asarray([0, 1, 2, 17, 250, 998, 999])
    theirs = diffusers.models.embeddings.get_timestep_embedding(
        torch.from_numpy(times), 128, flip_sin_to_cos=False, downscale_freq_shift=1)
    np.testing.assert_allclose(sinusoidal_embedding(times.astype(np.float32), 128), theirs.numpy(), rtol=0, atol=1e-4)


def test_our_config_of_the_cifar10_network_is_the_published_one():
    config = diffusers_config(UNet(), (32, 32, 3))
    plain = lambda value: list(value) if isinstance(value, tuple) else value  # noqa: E731
    assert {key: config[key] for key in DDPM_CIFAR10_32} == {k: plain(v) for k, v in DDPM_CIFAR10_32.items()}


def test_the_cifar10_network_has_the_same_parameters():
    """By name and shape; its output is in tests/interop/test_parity_pipeline.py."""
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel(**DDPM_CIFAR10_32).state_dict()
    abstract = jax.eval_shape(UNet().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros((1,)))["params"]
    ours = unet2d.write_params(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract))
    assert {name: x.shape for name, x in ours.items()} == {name: tuple(x.shape) for name, x in theirs.items()}
    assert sum(x.size for x in ours.values()) == 35_746_307
