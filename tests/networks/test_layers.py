"""Each layer against its formula, written out in NumPy."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks.layers import (Attention, Downsample, Dropout, Upsample, ddpm_init, group_norm,
                                       sinusoidal_embedding)

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def dense(p: dict, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"].astype(np.float64) + p["bias"].astype(np.float64)


def conv3x3(p: dict, x: np.ndarray, stride: int) -> np.ndarray:
    """A convolution without padding, float64: [B,H,W,C] -> [B,(H-3)//stride+1,...,C_out]."""
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), axis=(1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows[:, ::stride, ::stride], p["kernel"].astype(np.float64)) + p["bias"]


def reference_group_norm(p: dict, x: np.ndarray, groups: int) -> np.ndarray:
    """Mean and variance over each example's group of neighbouring channels and all positions; epsilon 1e-6."""
    b, height, width, c = x.shape
    g = x.astype(np.float64).reshape(b, height * width, groups, c // groups)
    g = (g - g.mean((1, 3), keepdims=True)) / np.sqrt(g.var((1, 3), keepdims=True) + 1e-6)
    return g.reshape(x.shape) * p["scale"] + p["bias"]


# ---- time embedding -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dim", [4, 32, 128])
def test_sinusoidal_embedding_is_the_formula(dim):
    times = np.array([0.0, 0.5, 1.0, 17.0, 250.0, 999.0])
    frequencies = 10_000.0 ** (-np.arange(dim // 2) / (dim // 2 - 1))
    angles = times[:, None] * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    out = np.asarray(sinusoidal_embedding(times.astype(np.float32), dim))
    assert out.shape == (6, dim) and out.dtype == np.float32
    # The angle is a float32 product: its error, and so the sine's, is some ulps of the angle.
    assert np.all(np.abs(out - expected) < 1e-6 + 1.2e-7 * times[:, None])


def test_sinusoidal_embedding_ends_at_max_period():
    out = sinusoidal_embedding(np.array([100.0], np.float32), 8, max_period=100.0)
    np.testing.assert_allclose(out[0, [3, 7]], [np.sin(1.0), np.cos(1.0)], atol=1e-6)


# ---- resampling ---------------------------------------------------------------------------------------------------

def test_downsample_pads_after_the_last_row_and_column_only():
    x = normal(2, 6, 4, 5)
    params = {"conv": {"kernel": normal(3, 3, 5, 5), "bias": normal(5)}}
    expected = conv3x3(params["conv"], np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), stride=2)
    out = Downsample(jnp.float32).apply({"params": params}, x)
    assert out.shape == (2, 3, 2, 5)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_upsample_repeats_then_convolves():
    x = normal(2, 3, 2, 5)
    params = {"conv": {"kernel": normal(3, 3, 5, 5), "bias": normal(5)}}
    expected = conv3x3(params["conv"], np.pad(np.kron(x, np.ones((1, 2, 2, 1))), ((0, 0), (1, 1), (1, 1), (0, 0))), 1)
    out = Upsample(jnp.float32).apply({"params": params}, x)
    assert out.shape == (2, 6, 4, 5)
    np.testing.assert_allclose(out, expected, atol=1e-5)


# ---- normalisation ------------------------------------------------------------------------------------------------

def test_group_norm_is_the_formula():
    x = 1e-3 * normal(2, 3, 2, 12) + 0.002  # so small that epsilon matters, and 1e-5 or 1e-6 tells
    params = {"scale": normal(12), "bias": normal(12)}
    out = group_norm(4, jnp.float32, None).apply({"params": params}, x)
    np.testing.assert_allclose(out, reference_group_norm(params, x, 4), atol=2e-5)


def test_group_norm_takes_its_statistics_in_float32():
    """Of 100 + 8 n, where the mean of squares in bfloat16 would leave nothing of the variance."""
    x = jnp.asarray(100 + 8 * normal(2, 16, 16, 8), jnp.bfloat16)
    params = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
    out = group_norm(4, jnp.bfloat16, None).apply({"params": params}, x)
    assert out.dtype == jnp.bfloat16
    expected = reference_group_norm(params, np.asarray(x, np.float64), 4)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=2**-7, atol=0.01)


# ---- attention ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_the_formula(heads):
    b, height, width, c = 2, 2, 3, 8
    x = normal(b, height, width, c)
    params = {name: {"kernel": normal(c, c) / np.float32(np.sqrt(c)), "bias": normal(c)}
              for name in ("q", "k", "v", "out")}
    params["norm"] = {"scale": normal(c), "bias": normal(c)}

    h = reference_group_norm(params["norm"], x, 2).reshape(b, height * width, c)
    q, k, v = (dense(params[name], h) for name in "qkv")
    mixed = np.zeros_like(v)
    size = c // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(b):
            for query in range(height * width):
                weights = np.exp(k[i, :, part] @ q[i, query, part] / np.sqrt(size))
                mixed[i, query, part] = weights / weights.sum() @ v[i, :, part]
    expected = x + dense(params["out"], mixed).reshape(x.shape)

    out = Attention(heads, 2, jnp.float32).apply({"params": params}, x)
    np.testing.assert_allclose(out, expected, atol=2e-5)


def test_attention_starts_as_the_identity():
    x = normal(1, 2, 2, 8)
    layer = Attention(2, 2, jnp.float32)
    np.testing.assert_array_equal(layer.apply(layer.init(jax.random.key(0), x), x), x)


# ---- dropout ------------------------------------------------------------------------------------------------------

def test_dropout_keeps_the_mean_and_drops_at_its_rate():
    keys = jax.random.split(jax.random.key(0), 10)
    out = np.asarray(Dropout(0.3, name="dropout").apply({}, jnp.ones((10, 100, 100)), keys))
    assert set(np.unique(out)) == {np.float32(0.0), np.float32(1 / 0.7)}
    # 10^5 draws; 5 standard deviations
    assert abs((out == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 1e5)
    assert abs(out.mean() - 1) < 5 * np.sqrt(0.3 / 0.7 / 1e5)


def test_dropout_of_an_example_is_bit_for_bit_its_own():
    x, keys = jnp.asarray(normal(4, 3, 5)), jax.random.split(jax.random.key(0), 4)
    layer = Dropout(0.5, name="dropout")
    out = layer.apply({}, x, keys)
    np.testing.assert_array_equal(layer.apply({}, x[2:3], keys[2:3])[0], out[2])
    np.testing.assert_array_equal(layer.apply({}, x[::-1], keys[::-1]), out[::-1])
    np.testing.assert_array_equal(layer.apply({}, x.at[:2].set(0), keys)[2:], out[2:])


def test_dropout_differs_by_layer():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, keys):
            return Dropout(0.5, name="a")(x, keys), Dropout(0.5, name="b")(x, keys)

    a, b = Two().apply({}, jnp.ones((2, 1000)), jax.random.split(jax.random.key(0), 2))
    assert 0.4 < np.mean(np.asarray(a) == np.asarray(b)) < 0.6


@pytest.mark.parametrize("rate, keys", [(0.5, None), (0.0, jax.random.split(jax.random.key(0), 2))])
def test_dropout_is_off_without_keys_or_rate(rate, keys):
    x = normal(2, 7)
    np.testing.assert_array_equal(Dropout(rate).apply({}, x, keys), x)


# ---- initialiser --------------------------------------------------------------------------------------------------

def test_an_initialiser_of_scale_zero_is_exactly_zero():
    assert not np.any(ddpm_init(0.0)(jax.random.key(0), (3, 3, 4, 4), jnp.float32))
