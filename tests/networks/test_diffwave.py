"""DiffWave against published code, and what its docstring says of it."""
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.golden_diffwave import NETWORK, SEED, SHAPE, TIMES, clips
from networks.random_params import random_params

from diffusion import build
from diffusion import config as config_lib
from diffusion.errors import ConfigError
from diffusion.networks.diffwave import DiffWave

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "diffwave.npz")


def output(dtype="float32"):
    cast = lambda x: jnp.asarray(x, dtype)  # noqa: E731
    params = jax.tree.map(cast, random_params(NETWORK, SHAPE, SEED))
    return jax.jit(NETWORK.clone(dtype=dtype).apply)({"params": params}, cast(clips()), jnp.asarray(TIMES, dtype))


def test_it_is_the_published_one():
    """Theirs in float64, ours in float32."""
    np.testing.assert_allclose(output(), GOLDEN["output"], rtol=0, atol=8e-7)


def test_it_is_the_published_one_in_float64(x64):
    """To the last digit at time 0. Their frequencies are float32: at time 199 an angle is known to 1e-5."""
    found = output("float64")
    np.testing.assert_allclose(found[0], GOLDEN["output"][0], rtol=0, atol=2e-15)
    np.testing.assert_allclose(found, GOLDEN["output"], rtol=0, atol=6e-7)


def shapes(network, length=64):
    cond = {"label": jnp.zeros(1, jnp.int32)} if network.num_classes else {}
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, length, 1)), jnp.zeros(1), cond)["params"]


@pytest.mark.parametrize("changes, count", [
    ({}, 24_071_681), (dict(weight_norm=False), 24_034_305), (dict(channels=128, depth=30, dilation_cycle=10), None)])
def test_the_network_for_sc09_has_as_many_parameters_as_the_published_one(changes, count):
    """24.1M; without the lengths of weight normalisation 24.0M. The small one: 6.3M by its layers."""
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes(DiffWave(**changes))))
    assert found == count if count else round(found / 1e5) == 63
    assert changes or found == GOLDEN["parameters"]


def test_it_begins_as_pytorchs_layers_do_and_with_an_output_of_zero():
    network = DiffWave(channels=32, depth=2, dilation_cycle=2)
    x, t = jnp.asarray(clips()), jnp.asarray(TIMES, jnp.float32)
    params = jax.jit(network.init)(jax.random.key(0), x, t)["params"]
    for name, fan_in in (("dilated", 96), ("residual", 32), ("skip", 32), ("time", 512)):
        for leaf in (params["block1"][name]["kernel"], params["block1"][name]["bias"]):
            assert 0.8 < np.abs(leaf).max() * np.sqrt(fan_in) <= 1
        np.testing.assert_allclose(np.std(params["block1"][name]["kernel"]), 1 / np.sqrt(3 * fan_in), rtol=0.05)
    params["conv_out"] = {"kernel": jnp.ones((32, 1)), "bias": jnp.zeros(1)}
    whole = jax.tree_util.tree_map_with_path(lambda path, leaf: None if path[-1].key == "scale" else leaf, params)
    same = network.clone(weight_norm=False).apply({"params": whole}, x, t)
    np.testing.assert_allclose(network.apply({"params": params}, x, t), same, atol=1e-6)


def test_a_block_sees_its_dilation_to_each_side():
    """The receptive field of dilations 1, 2, 4, 1 is 8 samples to each side."""
    network = NETWORK.clone(depth=4)
    params = {"params": random_params(network, SHAPE, SEED)}
    gradient = jax.jit(jax.grad(lambda x: network.apply(params, x, jnp.ones(1))[0, 20, 0]))(jnp.zeros((1, *SHAPE)))
    np.testing.assert_array_equal(np.flatnonzero(gradient), np.arange(12, 29))


@pytest.mark.parametrize("changes, message", [
    (dict(depth=0), "network.depth = 0: must be 1 or more"),
    (dict(channels=1), "network.channels = 1: must be at least 2"),
    (dict(dilation_cycle=0), "network.dilation_cycle = 0: must be 1 or more"),
    (dict(dilation_cycle=7, depth=7), "largest dilation, here 64, is less than the 64 samples"),
    (dict(name="dit"), "'dit': takes arrays of 2 axes and channels, .* networks take: .*diffwave"),
])
def test_settings_that_do_not_fit(changes, message):
    c = config_lib.base(network="diffwave").network
    c.dilation_cycle = 6
    build.network(c, (64,), 1)
    with pytest.raises(ConfigError, match=message):
        if "name" in changes:
            c = config_lib.base(network=changes["name"]).network
        else:
            c.update(changes)
        build.network(c, (64,), 1)
