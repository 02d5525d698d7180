"""Settings and state dicts of diffusers' UNet2DModel without PyTorch: there and back, and what is refused by name."""
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import build
from diffusion import config as config_lib
from diffusion.errors import CheckpointError
from diffusion.interop import unet2d
from diffusion.networks.unet import UNet

TESTS = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "interop"), str(TESTS / "networks")]
from random_params import unit  # noqa: E402
from unet2d_configs import CONFIGS, DDPM, settings  # noqa: E402


def network_of(sections: dict) -> UNet:
    out = sections["data"]["channels"] * (1 + sections["learned_range"])
    return UNet(**{key: value for key, value in sections["network"].items() if key != "name"}, out_channels=out)


def abstract_params(network: UNet, channels: int = 3) -> dict:
    cond = {"label": jnp.zeros((1,), jnp.int32)} if network.num_classes else {}
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 16, 16, channels)), jnp.ones((1,)),
                          cond)["params"]


def state_of(name: str) -> tuple[dict, dict, dict]:
    """(sections, abstract parameters, a random state dict of the right names and shapes)."""
    sections = unet2d.read_settings(settings(name), "config.json")
    abstract = abstract_params(network_of(sections), sections["data"]["channels"])
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract)
    return sections, abstract, {key: unit(key, value.shape, 0) for key, value in unet2d.write_params(zeros).items()}


# ---- there and back -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", CONFIGS)
def test_settings_go_there_and_back_and_can_be_built(name):
    sections = unet2d.read_settings(settings(name), "config.json")
    back = unet2d.write_settings(sections["network"], **sections["data"], learned_range=sections["learned_range"])
    assert unet2d.read_settings(back, "config.json") == sections
    config = config_lib.adopted(sections, "config.json")
    build.network(config.network, config.data.size, 3)  # passes all checks


@pytest.mark.parametrize("name", ["defaults of the class", "as guided-diffusion", "fourier", "labels"])
def test_parameters_go_there_and_back_bit_for_bit(name):
    _, abstract, state = state_of(name)
    params = unet2d.read_params(abstract, state, "state")
    assert jax.tree.map(lambda a, b: a.shape == b.shape, params, abstract)
    back = unet2d.write_params(params)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[key], state[key]) for key in state)


def test_names_of_attention_before_diffusers_0_17_are_read():
    _, abstract, state = state_of("as google/ddpm-*")
    new = unet2d.read_params(abstract, state, "state")
    for ours, theirs in unet2d.OLD_ATTENTION.items():
        state = {re.sub(rf"(attentions\.\d+)\.{re.escape(theirs)}\.", rf"\1.{ours}.", key): value
                 for key, value in state.items()}
    assert any(".query." in key for key in state) and not any("to_" in key for key in state)
    jax.tree.map(np.testing.assert_array_equal, unet2d.read_params(abstract, state, "state"), new)


def test_attention_as_a_convolution_of_one_point_is_read():
    _, abstract, state = state_of("as google/ddpm-*")
    new = unet2d.read_params(abstract, state, "state")
    state = {key: value[:, :, None] if ".to_" in key and value.ndim == 2 else value for key, value in state.items()}
    jax.tree.map(np.testing.assert_array_equal, unet2d.read_params(abstract, state, "state"), new)


# ---- what is refused ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("change, message", [
    (dict(_class_name="UNet2DConditionModel"), "describes a UNet2DConditionModel; only a UNet2DModel"),
    (dict(down_block_types=("DownBlock2D", "AttnSkipDownBlock2D")),
     "down_block_types has AttnSkipDownBlock2D, which is not"),
    (dict(up_block_types=("SkipUpBlock2D", "UpBlock2D")), "up_block_types has SkipUpBlock2D"),
    (dict(sample_size=10**9), "sample_size = 1000000000 is not supported. It can be the height = width .* 1 .. 4096"),
    (dict(sample_size=None), "sample_size = None is not supported"),
    (dict(sample_size=(16, 32, 3)), r"sample_size = \(16, 32, 3\) is not supported"),
    (dict(block_out_channels=(16, 32, 48)), "differ in length"),
    (dict(out_channels=4), "out_channels = 4 is not supported. It can be in_channels = 3, or twice that"),
    (dict(mid_block_type="UNetMidBlock2DCrossAttn"), "mid_block_type = 'UNetMidBlock2DCrossAttn' is not supported"),
    (dict(class_embed_type="timestep"), "class_embed_type = 'timestep' is not supported"),
    (dict(downsample_padding=2), "downsample_padding = 2 is not supported"),
    (dict(norm_num_groups=None), "norm_num_groups = None is not supported"),
    (dict(time_embedding_type="learned"), "time_embedding_type = 'learned' needs num_train_timesteps"),
    (dict(time_embedding_type="sinus"), "time_embedding_type = 'sinus' is not supported. It can be one of: pos"),
    (dict(class_embed_type="identity"), "class_embed_type = 'identity' is not supported. It can be null only"),
    (dict(downsample_type="kernel"), "downsample_type = 'kernel' is not supported. It can be one of: conv, resnet"),
    (dict(resnet_time_scale_shift="spatial"), "resnet_time_scale_shift = 'spatial' is not supported"),
    (dict(act_fn="tanh"), "act_fn = 'tanh' is not supported. It can be one of: silu"),
])
def test_a_setting_that_we_lack_is_named(change, message):
    with pytest.raises(CheckpointError, match="config.json.*" + message):
        unet2d.read_settings(settings("defaults of the class") | change, "config.json")


@pytest.mark.parametrize("change, message", [
    (dict(heads=2, attention_resolutions=(16, 8)), r"heads = 2 fixes their number.*\[16, 32\] channels"),
    (dict(multipliers=(2, 2)), "multipliers.0. must be 1, not 2"),
    (dict(middle_groups=0), "middle_groups = 0"),
    (dict(attention_resolutions=(16, 8, 4), multipliers=(1, 1, 2), downsample=("resblock", "conv", "conv")), "alike"),
    (dict(name="dit"), "config.network.name = 'dit'"),
])
def test_a_network_that_diffusers_lacks_is_named(change, message):
    network = unet2d.read_settings(settings("defaults of the class") | dict(attention_head_dim=None), "")["network"]
    with pytest.raises(CheckpointError, match=message):
        unet2d.write_settings(network | change, size=16, channels=3, learned_range=False)


def test_missing_left_over_and_misshapen_tensors_are_counted_and_named():
    _, abstract, state = state_of("as google/ddpm-*")
    count = len(state)
    for name in ("conv_in.weight", "conv_out.bias"):
        del state[name]
    state |= {"extra.weight": np.zeros(3), "conv_in.bias": np.zeros(5)}
    with pytest.raises(CheckpointError) as caught:
        unet2d.read_params(abstract, state, "some/folder")
    assert re.search(rf"some/folder.*2 of {count} tensors are missing: conv_in.weight, conv_out.bias; "
                     rf"1 of {count - 1} tensors have no place in the network: extra.weight; "
                     rf"1 of {count} tensors have another shape: conv_in.bias \[5\]",
                     str(caught.value))


def test_weights_of_another_network_are_refused():
    _, abstract, _ = state_of("as google/ddpm-*")
    with pytest.raises(CheckpointError, match="128 of 272 tensors have no place.*, ...; "
                                              "5 of 144 tensors have another shape: conv_in.weight"):
        unet2d.read_params(abstract, state_of("many blocks")[2] | {"conv_in.weight": np.zeros((1, 2))}, "x")


def test_the_cifar10_config_is_the_published_network():
    """config.json of google/ddpm-cifar10-32, with one head."""
    published = DDPM | dict(
        act_fn="silu", block_out_channels=(128, 256, 256, 256), center_input_sample=False, in_channels=3,
        out_channels=3, down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        layers_per_block=2, mid_block_scale_factor=1, norm_num_groups=32, sample_size=32,
        time_embedding_type="positional", up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"))
    assert network_of(unet2d.read_settings(published, "")) == UNet()


@pytest.mark.parametrize("path, name", [
    (("down0_block1", "conv1", "kernel"), "down_blocks.0.resnets.1.conv1.weight"),
    (("down1_downsample", "conv", "bias"), "down_blocks.1.downsamplers.0.conv.bias"),
    (("middle_attention", "q", "kernel"), "mid_block.attentions.0.to_q.weight"),
    (("up2_upsample", "conv", "kernel"), "up_blocks.0.upsamplers.0.conv.weight"),
    (("up0_block2", "norm1", "scale"), "up_blocks.2.resnets.2.norm1.weight"),
    (("emb1", "bias"), "time_embedding.linear_1.bias")])
def test_names_are_diffusers(path, name):
    """Of three levels. That all names go there and back would hold for any names."""
    assert unet2d.state_name(path, 3) == name
