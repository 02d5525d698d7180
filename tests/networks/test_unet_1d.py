"""The U-Net of sequences: that of images, where nothing changes along the second axis; patches, and sizes."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.random_params import random_params, unit

from diffusion import build
from diffusion import config as config_lib
from diffusion.build import advice
from diffusion.errors import ConfigError
from diffusion.networks.layers import fold, unfold
from diffusion.networks.unet import UNet
from diffusion.networks.unet_1d import UNet1d

LENGTH = 16
SETTINGS = dict(channels=8, multipliers=(1, 2), blocks=1, attention_resolutions=(8,), heads=2, groups=4, num_classes=3)
NETWORK = UNet1d(**SETTINGS, out_channels=2)
X, TIMES, COND = unit("x", (2, LENGTH, 2), 0), np.array([3, 500], np.float32), {"label": np.array([0, 2])}


def output(network, x, params=None):
    params = random_params(network, x.shape[1:], seed=0) if params is None else params
    return jax.jit(network.apply)({"params": params}, x, TIMES, COND)


@pytest.mark.parametrize("how", [
    dict(pad_around=True, center_input=True),
    dict(downsample=("resblock",), upsample=("resblock",), scale_shift=True, embedding="fourier")])
def test_it_is_the_unet_of_images_that_are_equal_along_a_row(how):
    """With each kernel in the middle column of a 3 x 3 one, the columns of such an image stay equal."""
    network = NETWORK.clone(**how)
    params = random_params(network, X.shape[1:], seed=0)

    def widened(kernel):  # [3, C, D] -> [3, 3, C, D]
        return jnp.pad(kernel[:, None], ((0, 0), (1, 1), (0, 0), (0, 0))) if kernel.ndim == 3 else kernel
    of_images = UNet(**SETTINGS | how, out_channels=2)
    images = np.repeat(X[:, :, None], 4, axis=2)
    expected = output(of_images, images, jax.tree.map(widened, params))
    assert np.std(expected) > 0.1
    for column in range(4):
        np.testing.assert_allclose(output(network, X, params), expected[:, :, column], atol=2e-5)


def test_a_patch_is_a_position_with_more_channels():
    patched = NETWORK.clone(patch=2, attention_resolutions=(4,))
    plain = patched.clone(patch=1, out_channels=4)
    np.testing.assert_array_equal(output(patched, X), unfold(output(plain, fold(X, 2)), 2))


def test_levels_are_shortened_by_their_factors():
    network = UNet1d(channels=4, multipliers=(1, 1, 1), blocks=1, groups=2, factors=(4, 2), attention_resolutions=(2,),
                     middle="none", embedding_channels=4)
    network.check((16,))
    shapes = jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(
        network.init, jax.random.key(0), jnp.zeros((1, 16, 1)), jnp.zeros(1))["params"])
    assert [shapes[name]["conv"]["kernel"][0] for name in ("down0_downsample", "down1_downsample", "up1_upsample",
                                                           "up2_upsample")] == [7, 3, 7, 3]
    assert [name for name in shapes if "attention" in name] == ["down2_attention0", "up2_attention0", "up2_attention1"]


def config_of(**changes):
    return config_lib.override(
        config_lib.base(data="file", kind="array", network="unet_1d", process="vp", solver="ddim", spacing="uniform",
                        estimator="ode"),
        {"data.shape": (LENGTH, 2), "network.channels": 8, "network.groups": 4, "network.multipliers": (1, 2),
         **{f"network.{key}": value for key, value in changes.items()}})


@pytest.mark.parametrize("changes, message", [
    (dict(patch=3), "network.patch = 3: must divide the sides of x, .16. samples"),
    (dict(patch=0), "network.patch = 0: must divide"),
    (dict(patch=16), "network.multipliers = .*: 2 levels make feature maps 32 times shorter, which 16 samples"),
    (dict(factors=(3,)), "feature maps 3 times shorter"),
    (dict(factors=(2, 2)), "network.factors = .*: is one number of 1 or more, or one for each change between 2 levels"),
    (dict(factors=(0,)), "network.factors = .*: is one number of 1 or more"),
    (dict(attention_resolutions=(7,)), r"attention_resolutions = .*their lengths are \[16, 8\]"),
    (dict(patch=2, attention_resolutions=(16,)), r"their lengths are \[8, 4\]"),
    (dict(name="unet"), "'unet': takes arrays of 2 axes and channels, .* have 1 .* networks take: .*mlp, unet_1d"),
])
def test_settings_that_do_not_fit(changes, message):
    assert build.network(config_of(patch=4, factors=(4,)).network, (LENGTH,), 2)
    with pytest.raises(ConfigError, match=message):
        build.check(config_of(**changes), "train")


@pytest.mark.parametrize("patch, told", [(4, False), (8, True)])
def test_noise_of_more_numbers_than_a_patch_has_channels_is_advised_against(patch, told):
    """Of 2 channels: 8 numbers fit into the network's 8 channels, 16 do not."""
    config = build.measured(config_of(patch=patch, multipliers=(1,)), assume=True)
    assert any("numbers for each patch" in note for note in advice.of_training(config)) == told


def test_images_are_refused():
    with pytest.raises(ConfigError, match="'unet_1d': takes arrays of 1 axis and channels, .* have 2 axes"):
        build.check(config_lib.base(network="unet_1d"), "train")
