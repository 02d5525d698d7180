"""Networks of clips: the factorised one against video-diffusion-pytorch, and frames as channels."""
import functools
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.golden_video_unet import ALONE, NETWORK, SEED, SHAPE, TIMES, clips
from networks.random_params import random_params, unit

from diffusion import config as config_lib
from diffusion.build import networks
from diffusion.errors import ConfigError
from diffusion.networks.unet import UNet
from diffusion.networks.unet_frames import FramesUNet
from diffusion.networks.video_unet import VideoUNet, buckets

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "video_unet.npz")
FRAMES = FramesUNet(channels=8, multipliers=(1, 2), blocks=1, groups=4, attention_resolutions=(4,), out_channels=2)


@functools.cache
def params():
    return {"params": random_params(NETWORK, SHAPE, SEED)}


@functools.cache
def output(network=NETWORK):
    return jax.jit(network.apply)(params(), jnp.asarray(clips()), jnp.asarray(TIMES, jnp.float32), {})


def count(network, channels):
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 4, 16, 16, channels)), jnp.zeros(1))
    return sum(x.size for x in jax.tree.leaves(shapes))


def test_it_is_the_published_module():
    """Theirs in float64, ours in float32: rounding, of numbers up to 5."""
    np.testing.assert_allclose(output(), GOLDEN["output"], rtol=0, atol=1e-5)


def test_it_is_the_published_module_in_float64(x64):
    """But the angles of the times and of the rotary positions, which are float32 in one or the other."""
    np.testing.assert_allclose(output(NETWORK.clone(dtype=jnp.float64)), GOLDEN["output"], rtol=0, atol=2e-6)


def test_single_frames_attend_to_themselves():
    """Each clip of a training is alone by its own key, as are two clips with the published mask."""
    network = NETWORK.clone(single_frames=0.5)
    run = jax.jit(network.apply)
    found = np.stack([run(params(), jnp.asarray(clips()), jnp.asarray(TIMES, jnp.float32), {},
                          jax.random.split(jax.random.key(seed), 2)) for seed in range(8)])
    alone = np.abs(found - GOLDEN["alone"]).max((2, 3, 4, 5)) < 2e-5
    whole = np.abs(found - GOLDEN["output"]).max((2, 3, 4, 5)) < 2e-5
    assert ((alone[:, 0] ^ whole[:, 0]) & (alone[:, 0] | whole[:, 0])).all() and whole[:, 1].any()
    assert alone[:, 0].any() and whole[:, 0].any() and ALONE == (True, False)
    np.testing.assert_array_equal(output(network), output())  # not without keys: samples are clips


def test_frames_that_are_alone_do_not_see_each_other():
    network, keys = NETWORK.clone(single_frames=1 - 1e-7), jax.random.split(jax.random.key(0), 2)
    changed = clips()
    changed[:, 5] += 1
    run, times = jax.jit(network.apply), jnp.asarray(TIMES, jnp.float32)
    one, other = (run(params(), jnp.asarray(x), times, {}, keys) for x in (clips(), changed))
    moved = np.abs(one - other).max((0, 2, 3, 4))
    assert moved[5] > 0.1 and np.delete(moved, 5).max() == 0
    assert np.abs(output() - run(params(), jnp.asarray(changed), times, {})).max((0, 2, 3, 4)).min() > 1e-4


@pytest.mark.parametrize("keys, channels, expected", [({}, 3, 35_706_259),
                                                      ({"multipliers": (1, 2, 4)}, 1, 10_583_185),
                                                      ({"multipliers": (1, 2, 4), "channels": 32}, 1, 3_158_737)])
def test_parameters_are_as_many_as_published(keys, channels, expected):
    """But for the 16 frequencies of the rotary positions, which are constants, and which PyTorch counts."""
    assert count(VideoUNet(**keys, out_channels=channels), channels) + 16 == expected


@pytest.mark.parametrize("attention", ["full", "none"])
def test_other_attention_over_pixels(attention):
    network = NETWORK.clone(spatial_attention=attention)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.zeros(1))["params"]
    names = {"/".join(path) for path in flax.traverse_util.flatten_dict(shapes)}
    spatial = {name for name in names if "_spatial/" in name and not name.startswith("middle")}
    assert not any(name.endswith("bias") for name in spatial) and bool(spatial) == (attention == "full")
    assert all(f"{part}_temporal/q/kernel" in names for part in ("in", "down0", "down1", "middle", "up0", "up1"))


def test_distances_of_frames():
    """Exact below 8, the last bucket from 32 on; later frames in the other half."""
    found = buckets(60)
    assert found[0, :9].tolist() == [0, 17, 18, 19, 20, 21, 22, 23, 24] and found[:9, 0].tolist() == [*range(9)]
    assert found[40, 0] == 15 and found[0, 40] == 31 and found[0, 12] == 18 + 8 and (np.diff(found[0]) >= 0).all()


def test_any_number_of_frames():
    assert jax.eval_shape(NETWORK.apply, params(), jnp.zeros((2, 1, 8, 4, 3)), jnp.ones(2), {}).shape == (2, 1, 8, 4, 3)
    assert jax.eval_shape(NETWORK.apply, params(), jnp.zeros((2, 50, 8, 4, 3)), jnp.ones(2), {}).shape[1] == 50


def test_frames_are_channels():
    """The same parameters as the U-Net of images of T C channels, and the same output, frame by frame."""
    shape = (3, 8, 8, 2)
    images = UNet(**{name: getattr(FRAMES, name) for name in ("channels", "multipliers", "blocks", "groups",
                                                             "attention_resolutions")}, out_channels=3 * 2)
    made = {"params": random_params(FRAMES, shape, SEED)}
    for_images = {"params": random_params(images, (8, 8, 6), SEED)}
    jax.tree.map(np.testing.assert_array_equal, made, for_images)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    found = FRAMES.apply(made, jnp.asarray(x), jnp.ones(2), {})
    flat = np.concatenate([x[:, t] for t in range(3)], axis=-1)
    expected = images.apply(for_images, jnp.asarray(flat), jnp.ones(2), {})
    np.testing.assert_allclose(np.concatenate([found[:, t] for t in range(3)], axis=-1), expected, atol=1e-6)


@pytest.mark.parametrize("network", [FRAMES.clone(past=(2, 8, 8, 2)), VideoUNet(
    channels=8, multipliers=(1,), heads=1, head_channels=4, out_channels=2, past=(2, 8, 8, 2))])
def test_frames_before_the_clip(network):
    """Each is seen where its mask is 1; what is hidden may hold anything."""
    shape, rng = (3, 8, 8, 2), np.random.default_rng(0)
    assert {name: one.null for name, one in network.cond.items()} == {"frames": None, "frames_mask": 0.0}
    cond = {"frames": rng.integers(0, 256, (2, 2, 8, 8, 2), np.uint8), "frames_mask": np.ones((2, 2), np.float32)}
    x, run = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32), jax.jit(network.apply)
    made = {"params": params_of(network, shape, cond)}
    plain = run(made, x, jnp.ones(2), cond)
    assert plain.shape == (2, *shape) and np.std(plain) > 0.05
    other = cond | {"frames": cond["frames"].copy()}
    other["frames"][:, 1] = 255 - other["frames"][:, 1]
    assert np.abs(run(made, x, jnp.ones(2), other) - plain).max() > 1e-3
    hidden = {"frames_mask": np.array([[1, 0], [1, 0]], np.float32)}
    one, two = (run(made, x, jnp.ones(2), c | hidden) for c in (cond, other))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - plain).max() > 1e-3


def params_of(network, shape, cond):
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1),
                            {name: value[:1] for name, value in cond.items()})["params"]
    return jax.tree_util.tree_map_with_path(lambda path, leaf: unit(jax.tree_util.keystr(path), leaf.shape, 0) * 0.3,
                                            shapes)


@pytest.mark.parametrize("name, values, words", [
    ("video_unet", {"multipliers": (1, 2, 4, 8, 16)}, "12 pixels"), ("video_unet", {"channels": 2}, "at least 4"),
    ("video_unet", {"head_channels": 5}, "must be even"), ("video_unet", {"single_frames": 1.0}, "below 1"),
    ("video_unet", {"heads": 0}, "1 or more"), ("unet_frames", {"multipliers": (1, 1, 1, 1)}, "12 pixels"),
    ("unet_frames", {"attention_resolutions": (5,)}, "is not the size of any level")])
def test_wrong_keys(name, values, words):
    config = config_lib.override(config_lib.base(network=name), {"network.multipliers": (1, 2)} | {
        f"network.{key}": value for key, value in values.items()})
    with pytest.raises(ConfigError, match=words):
        networks.network(config.network, (4, 16, 12), 1)


def test_other_networks_are_told_no_frames():
    with pytest.raises(ConfigError, match="takes no frames before a clip .data.past.: use unet_frames or video_unet"):
        networks.network(config_lib.base(network="mlp").network, (4, 16, 16), 1, (2, 16, 16, 1))


def test_clips_are_not_images():
    for name, size in (("video_unet", (16, 16)), ("unet", (4, 16, 16)), ("unet_frames", (16, 16))):
        with pytest.raises(ConfigError, match="takes arrays of"):
            networks.network(config_lib.base(network=name).network, size, 1)
