"""The U-Net as a whole: against stored outputs of diffusers, at its start, its dropout, its types and its gradients."""
import pathlib
import sys

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks.layers import Dropout
from diffusion.networks.unet import UNet

TESTS = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(TESTS / "networks"))
import golden_unet  # noqa: E402
from random_params import random_params, unit  # noqa: E402

SHAPE = (8, 8, 1)
SMALL = UNet(channels=16, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), heads=2, groups=4, out_channels=1)


DROPPING = SMALL.clone(dropout=0.3)
small, dropping = jax.jit(SMALL.apply), jax.jit(DROPPING.apply)  # once, so that each compiles once for all tests


def case(network: UNet, batch: int = 4):
    """(parameters, x [batch,8,8,1], c_noise [batch]), all random."""
    return ({"params": random_params(network, SHAPE, seed=0)}, unit("x", (batch, *SHAPE), 1),
            np.linspace(0, 999, batch, dtype=np.float32))


# ---- against diffusers --------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def golden():
    with np.load(TESTS / "golden" / "unet.npz") as file:
        output = file["output"]
    params = {"params": random_params(golden_unet.NETWORK, golden_unet.IMAGE_SHAPE, golden_unet.SEED)}
    return params, (golden_unet.images(), np.asarray(golden_unet.TIMES, np.float32),
                    {"label": np.asarray(golden_unet.LABELS, np.int32)}), output


def test_output_is_that_of_diffusers(golden):
    params, inputs, output = golden
    np.testing.assert_allclose(jax.jit(golden_unet.NETWORK.apply)(params, *inputs), output, rtol=0, atol=6e-6)


def test_output_is_that_of_diffusers_in_float64_to_the_rounding_of_the_output(golden, x64):
    """Only where t is small: both take the sinusoidal embedding in float32, whose error grows with t."""
    params, (x, t, cond), output = golden
    params = jax.tree.map(lambda v: v.astype(np.float64), params)
    two = {"label": cond["label"][:2]}
    ours = jax.jit(golden_unet.NETWORK.clone(dtype=jnp.float64).apply)(params, x[:2], t[:2], two)
    np.testing.assert_allclose(ours, output[:2], rtol=0, atol=4e-7)


# ---- size and start -----------------------------------------------------------------------------------------------

def test_cifar10_network_has_the_papers_parameter_count():
    network = UNet(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention_resolutions=(16,), dropout=0.1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros((1,)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 35_746_307


@pytest.fixture(scope="module")
def initial():
    # rbg: draws of many shapes compile several times faster than with threefry.
    return jax.jit(SMALL.init)(jax.random.key(0, impl="rbg"), *case(SMALL)[1:])


def test_starts_as_the_zero_function(initial):
    assert not np.any(small(initial, *case(SMALL)[1:]))


def test_zero_at_the_start_are_the_second_convolutions_the_attention_outputs_and_the_last_convolution(initial):
    kernels = {path: leaf for path, leaf in flax.traverse_util.flatten_dict(initial["params"]).items()
               if path[-1] == "kernel"}
    zero = {path for path in kernels if path[-2] in ("conv2", "out", "conv_out")}
    assert len(zero) == 8 + 4 + 1  # residual blocks, attentions, the last one
    for path, kernel in kernels.items():
        assert np.any(kernel) == (path not in zero), path


def test_the_other_kernels_start_uniform_with_variance_one_over_the_mean_of_fan_in_and_fan_out(initial):
    for path, kernel in flax.traverse_util.flatten_dict(initial["params"]).items():
        if path[-1] == "kernel" and np.any(kernel) and kernel.size > 2000:
            mean_fan = np.prod(kernel.shape[:-2]) * (kernel.shape[-2] + kernel.shape[-1]) / 2
            np.testing.assert_allclose(np.var(kernel) * mean_fan, 1.0, atol=0.1, err_msg=str(path))
            np.testing.assert_allclose(np.abs(kernel).max(), np.sqrt(3 / mean_fan), rtol=1e-2, err_msg=str(path))


# ---- dropout ------------------------------------------------------------------------------------------------------

def test_without_keys_dropout_is_off():
    params, x, t = case(SMALL)
    np.testing.assert_array_equal(dropping(params, x, t), small(params, x, t))


def test_with_keys_dropout_is_on_and_a_function_of_them():
    params, x, t = case(SMALL)
    keys = jax.random.split(jax.random.key(1), 4)
    out = dropping(params, x, t, {}, keys)
    np.testing.assert_array_equal(out, dropping(params, x, t, {}, keys))
    assert np.abs(out - dropping(params, x, t)).max() > 0.01
    assert np.abs(out - dropping(params, x, t, None, jax.random.split(jax.random.key(2), 4))).max() > 0.01


def test_the_dropout_of_an_example_does_not_depend_on_the_batch_around_it():
    params, x, t = case(SMALL)
    keys = jax.random.split(jax.random.key(1), 4)
    out = dropping(params, x, t, {}, keys)
    alone = jnp.concatenate([dropping(params, x[i:i + 1], t[i:i + 1], {}, keys[i:i + 1]) for i in range(4)])
    np.testing.assert_allclose(alone, out, atol=1e-5)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(dropping(params, x[order], t[order], {}, keys[order]), out[order], atol=1e-5)
    other = np.concatenate([x[:1], -x[1:]])
    np.testing.assert_allclose(dropping(params, other, t, {}, keys)[0], out[0], atol=1e-5)


def test_every_layer_and_every_example_has_its_own_mask():
    params, x, t = case(SMALL)

    @jax.jit
    def masks(keys):
        """[layers, 4, 4096]: the mask of each layer, as if all had this shape."""
        out = []

        def record(call, args, kwargs, context):
            if not isinstance(context.module, Dropout):
                return call(*args, **kwargs)
            out.append(call(jnp.ones((4, 4096)), keys) > 0)
            return args[0]

        with nn.intercept_methods(record):
            DROPPING.apply(params, x, t, {}, keys)
        return jnp.stack(out)

    drawn = np.asarray(masks(jax.random.split(jax.random.key(1), 4)))
    assert drawn.shape == (1 + 1 + 2 + 2 + 2, 4, 4096)  # down, down, middle, up, up
    drawn = drawn.reshape(32, 4096)
    agree = np.array([(drawn[i] == drawn[j]).mean() for i in range(32) for j in range(i)])
    # Independent masks agree with probability 0.7^2 + 0.3^2 = 0.58, here within 5 standard deviations of 4096 draws.
    assert np.abs(agree - 0.58).max() < 5 * np.sqrt(0.58 * 0.42 / 4096)


# ---- types --------------------------------------------------------------------------------------------------------

def test_bfloat16_keeps_parameters_and_output_in_float32_and_comes_close():
    params, x, t = case(SMALL)
    half = SMALL.clone(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(half.init, jax.random.key(0), x, t)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    out, reference = jax.jit(half.apply)(params, x, t), small(params, x, t)
    assert out.dtype == reference.dtype == jnp.float32
    error = float(jnp.sqrt(jnp.mean((out - reference)**2) / jnp.mean(reference**2)))
    # bfloat16 rounds to 2^-9 = 0.002 relative: below, the computation was not in bfloat16; far above, it lost accuracy.
    assert 0.001 < error < 0.03


# ---- conditions ---------------------------------------------------------------------------------------------------

def test_each_label_changes_the_output():
    network = SMALL.clone(num_classes=5)
    params, x, _ = case(network, batch=1)
    out = jax.jit(network.apply)(params, np.repeat(x, 5, axis=0), np.full(5, 100.0, np.float32),
                                 {"label": np.arange(5)})
    assert all(np.abs(out[i] - out[j]).max() > 0.01 for i in range(5) for j in range(i))


def test_without_classes_labels_are_ignored():
    params, x, t = case(SMALL)
    labels = np.asarray([0, 1, 2, 3], np.int32)
    np.testing.assert_array_equal(small(params, x, t, {"label": labels}), small(params, x, t))


def test_examples_do_not_mix():
    params, x, t = case(SMALL)
    changed = np.concatenate([x[:3], -x[3:]])
    np.testing.assert_array_equal(small(params, changed, t)[:3], small(params, x, t)[:3])


# ---- gradients ----------------------------------------------------------------------------------------------------

def test_gradients_reach_every_parameter():
    network = SMALL.clone(num_classes=4)
    params, x, t = case(network)
    labels = np.asarray([0, 1, 2, 3], np.int32)

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.mean((network.apply(params, x, t, {"label": labels}) - unit("target", x.shape, 2))**2)

    for path, leaf in flax.traverse_util.flatten_dict(jax.device_get(gradient(params)["params"])).items():
        largest = np.abs(leaf).max()
        if path[-2:] == ("k", "bias"):  # it adds one number to all logits of a query, which softmax does not see
            assert largest < 1e-6, path
        else:
            assert largest > 1e-6, path
            assert np.all(np.any(leaf, axis=-1)), f"{path}: nothing reaches a part of it"


@pytest.mark.parametrize("change, error, message", [
    (dict(groups=5), ValueError, r"Number of groups \(5\) does not divide the number of channels \(16\)"),
    (dict(heads=5), TypeError, "cannot reshape"),
])
def test_sizes_that_do_not_divide_fail_when_shapes_are_worked_out(change, error, message):
    """`build` says it in the config's terms first; here it must only not pass in silence."""
    with pytest.raises(error, match=message):
        jax.eval_shape(SMALL.clone(**change).init, jax.random.key(0), *case(SMALL)[1:])


@pytest.mark.slow
def test_remat_changes_no_gradient():
    """What is computed again is the same: in float32 up to the order of fused sums."""
    small = UNet(channels=8, multipliers=(1,), blocks=1, attention_resolutions=(8,), groups=4, dropout=0.2)
    x, t = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32), np.ones(2, np.float32)
    params = jax.tree.map(lambda p: p + np.float32(0.05), random_params(small, x.shape[1:], seed=0))
    keys = jax.random.split(jax.random.key(1), 2)

    def grad(network):
        return jax.jit(jax.grad(lambda p: jnp.mean(network.apply({"params": p}, x, t, {}, keys) ** 2)))(params)

    plain = jax.device_get(grad(small))
    top = max(np.abs(g).max() for g in jax.tree.leaves(plain))
    for remat in ("light", "full"):
        again = jax.device_get(grad(small.clone(remat=remat)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * top), plain, again)


def test_every_block_drops_out(monkeypatch):
    """Going down, in the middle, going up, and where the resolution changes."""
    net = UNet(channels=8, multipliers=(1, 2), blocks=1, attention_resolutions=(), groups=4, dropout=0.5,
               downsample=("resblock",), upsample=("resblock",), out_channels=1)
    seen, bernoulli = [], jax.random.bernoulli
    monkeypatch.setattr(jax.random, "bernoulli", lambda *args: (seen.append(args), bernoulli(*args))[1])
    x, keys = jnp.zeros((2, 8, 8, 1)), jax.random.split(jax.random.key(0), 2)
    params = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(2))
    assert not seen  # without keys
    jax.eval_shape(net.apply, params, x, jnp.zeros(2), {}, keys)
    assert len(seen) == sum("conv2" in module for module in params["params"].values()) == 2 + 1 + 2 + 4 + 1
