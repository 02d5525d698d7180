"""Each layer against its formula, written out in NumPy."""
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks.layers import (
    ACTIVATIONS,
    Attention,
    BlockConfig,
    Downsample,
    Dropout,
    FourierEmbedding,
    ResBlock,
    Upsample,
    ddpm_init,
    downsample,
    fold,
    sinusoidal_embedding,
    unfold,
    upsample,
)

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def apply(layer: nn.Module, params: dict, *args) -> np.ndarray:
    return jax.jit(layer.apply)({"params": params}, *args)


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

@pytest.mark.parametrize("dim, freq_shift, cos_first", [(4, 1, False), (32, 1, False), (128, 1, False), (32, 0, True)])
def test_sinusoidal_embedding_is_the_formula(dim, freq_shift, cos_first):
    times = np.array([0.0, 0.5, 1.0, 17.0, 250.0, 999.0])
    frequencies = 10_000.0 ** (-np.arange(dim // 2) / (dim // 2 - freq_shift))
    angles = times[:, None] * frequencies
    parts = [np.sin(angles), np.cos(angles)]
    expected = np.concatenate(parts[::-1] if cos_first else parts, axis=1)
    embedding = jax.jit(lambda t: sinusoidal_embedding(t, dim, freq_shift=freq_shift, cos_first=cos_first))
    out = np.asarray(embedding(times.astype(np.float32)))
    assert out.shape == (6, dim) and out.dtype == np.float32
    # The angle is a float32 product: its error, and so the sine's, is some ulps of the angle.
    assert np.all(np.abs(out - expected) < 1e-6 + 1.2e-7 * times[:, None])


def test_sinusoidal_embedding_ends_at_max_period():
    out = jax.jit(lambda t: sinusoidal_embedding(t, 8, max_period=100.0))(np.array([100.0], np.float32))
    np.testing.assert_allclose(out[0, [3, 7]], [np.sin(1.0), np.cos(1.0)], atol=1e-6)


@pytest.mark.parametrize("cos_first", [False, True])
def test_fourier_embedding_is_the_formula_and_is_not_trained(cos_first):
    layer, sigma = FourierEmbedding(8, cos_first), np.array([0.01, 1.0, 50.0], np.float32)
    params = jax.jit(layer.init)(jax.random.key(0), sigma)
    w = np.asarray(params["params"]["frequencies"], np.float64)
    assert 8 < w.std() < 32  # 16, with 8 draws
    angles = 2 * np.pi * np.log(sigma.astype(np.float64))[:, None] * w
    parts = [np.sin(angles), np.cos(angles)]
    expected = np.concatenate(parts[::-1] if cos_first else parts, axis=1)
    # float32 angles of some hundreds
    total = lambda p: layer.apply(p, sigma).sum()  # noqa: E731
    out, gradient = jax.jit(lambda p: (layer.apply(p, sigma), jax.grad(total)(p)))(params)
    np.testing.assert_allclose(out, expected, atol=2e-7 * np.abs(angles).max() + 1e-6)
    assert not np.any(gradient["params"]["frequencies"])


# ---- resampling ---------------------------------------------------------------------------------------------------

def test_downsample_pads_after_the_last_row_and_column_only():
    x = normal(2, 6, 4, 5)
    params = {"conv": {"kernel": normal(3, 3, 5, 5), "bias": normal(5)}}
    expected = conv3x3(params["conv"], np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), stride=2)
    out = apply(Downsample(BlockConfig()), params, x)
    assert out.shape == (2, 3, 2, 5)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_downsample_can_pad_all_around():
    x = normal(2, 6, 4, 5)
    params = {"conv": {"kernel": normal(3, 3, 5, 5), "bias": normal(5)}}
    expected = conv3x3(params["conv"], np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), stride=2)
    np.testing.assert_allclose(apply(Downsample(BlockConfig(), True), params, x), expected, atol=1e-5)


def test_upsample_repeats_then_convolves():
    x = normal(2, 3, 2, 5)
    params = {"conv": {"kernel": normal(3, 3, 5, 5), "bias": normal(5)}}
    expected = conv3x3(params["conv"], np.pad(np.kron(x, np.ones((1, 2, 2, 1))), ((0, 0), (1, 1), (1, 1), (0, 0))), 1)
    out = apply(Upsample(BlockConfig()), params, x)
    assert out.shape == (2, 6, 4, 5)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
def test_sequences_are_shortened_and_lengthened_by_any_factor(factor):
    """By 2 factor - 1 taps, whose sums are written out."""
    x, taps = normal(2, 8, 3), 2 * factor - 1
    params = {"conv": {"kernel": normal(taps, 3, 3), "bias": normal(3)}}

    def correlated(x, stride, before, after):
        x = np.pad(x.astype(np.float64), ((0, 0), (before, after), (0, 0)))
        places = range(0, x.shape[1] - taps + 1, stride)
        return np.stack([np.einsum("bkc,kcd->bd", x[:, i:i + taps], params["conv"]["kernel"]) for i in places],
                        1) + params["conv"]["bias"]
    style, pad = BlockConfig(spatial=1), factor - 1
    for around in (False, True):
        out = apply(Downsample(style, around, factor), params, x)
        assert out.shape == (2, 8 // factor, 3)
        np.testing.assert_allclose(out, correlated(x, factor, pad * around, pad), atol=2e-5)
    out = apply(Upsample(style, factor), params, x)
    np.testing.assert_allclose(out, correlated(np.repeat(x, factor, 1), 1, pad, pad), atol=2e-5)
    np.testing.assert_allclose(downsample(x, factor), x.reshape(2, 8 // factor, factor, 3).mean(2), atol=1e-6)


def test_folded_patches_are_channels():
    x = normal(2, 6, 4, 3)
    folded = np.asarray(fold(x, 2))
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        first = 3 * (2 * row + column)
        np.testing.assert_array_equal(folded[..., first:first + 3], x[:, row::2, column::2])
    np.testing.assert_array_equal(unfold(folded, 2), x)
    sequence = normal(2, 6, 3)
    np.testing.assert_array_equal(fold(sequence, 3), sequence.reshape(2, 2, 9))
    np.testing.assert_array_equal(unfold(fold(sequence, 3), 3), sequence)
    volume = normal(1, 2, 4, 6, 2)
    np.testing.assert_array_equal(unfold(fold(volume, 2), 2), volume)


# ---- normalisation ------------------------------------------------------------------------------------------------

def test_group_norm_is_the_formula():
    x = 1e-3 * normal(2, 3, 2, 12) + 0.002  # so small that epsilon matters, and 1e-5 or 1e-6 tells
    params = {"scale": normal(12), "bias": normal(12)}
    out = apply(BlockConfig(groups=4).group_norm(None), params, x)
    np.testing.assert_allclose(out, reference_group_norm(params, x, 4), atol=2e-5)


def test_group_norm_takes_its_statistics_in_float32():
    """Of 100 + 8 n, where the mean of squares in bfloat16 would leave nothing of the variance."""
    x = jnp.asarray(100 + 8 * normal(2, 16, 16, 8), jnp.bfloat16)
    params = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
    out = apply(BlockConfig(jnp.bfloat16, 4).group_norm(None), params, x)
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

    out = apply(Attention(heads, BlockConfig(groups=2)), params, x)
    np.testing.assert_allclose(out, expected, atol=2e-5)


def test_attention_starts_as_the_identity():
    x = normal(1, 2, 2, 8)
    layer = Attention(2, BlockConfig(groups=2))
    params = jax.jit(layer.init)(jax.random.key(0), x)
    np.testing.assert_array_equal(jax.jit(layer.apply)(params, x), x)


def test_attention_without_normalisation_and_with_a_divisor():
    x = normal(2, 2, 3, 8)
    layer = Attention(2, BlockConfig(groups=2), groups=0, divisor=1.5)
    params = jax.jit(layer.init)(jax.random.key(0), x)
    assert "norm" not in params["params"]
    np.testing.assert_allclose(jax.jit(layer.apply)(params, x), x / 1.5, rtol=1e-6)


# ---- residual block -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("resample", [None, downsample, upsample])
def test_residual_block_is_the_formula(resample, scale_shift):
    style = BlockConfig(groups=2, activation="relu", scale_shift=scale_shift)
    layer, x, emb = ResBlock(6, style, resample, divisor=1.25), normal(2, 4, 2, 4), normal(2, 5)
    abstract = jax.eval_shape(layer.init, jax.random.key(0), x, emb, None)["params"]
    p = jax.tree.map(lambda a: normal(*a.shape), abstract)
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    resampled = {None: lambda x: x, upsample: lambda x: np.kron(x, np.ones((1, 2, 2, 1))),
                 downsample: lambda x: (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
                 }[resample]
    same = lambda p, x: conv3x3(p, np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 1)  # noqa: E731

    h = same(p["conv1"], resampled(relu(reference_group_norm(p["norm1"], x, 2))))
    shift = dense(p["emb"], relu(emb))[:, None, None]
    if scale_shift:
        h = reference_group_norm(p["norm2"], h, 2) * (1 + shift[..., :6]) + shift[..., 6:]
    else:
        h = reference_group_norm(p["norm2"], h + shift, 2)
    expected = (dense(p["shortcut"], resampled(x)) + same(p["conv2"], relu(h))) / 1.25
    out = apply(layer, p, x, emb, None)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=2e-5 * np.abs(expected).max())


def test_the_activations_are_their_formulas():
    x = np.linspace(-3, 3, 13)
    erf = np.vectorize(math.erf)
    expected = {"swish": x / (1 + np.exp(-x)), "relu": np.maximum(x, 0), "gelu": x * (1 + erf(x / 2**0.5)) / 2,
                "mish": x * np.tanh(np.log1p(np.exp(x)))}
    assert set(expected) == set(ACTIVATIONS)
    for name, values in expected.items():
        np.testing.assert_allclose(jax.jit(ACTIVATIONS[name])(x.astype(np.float32)), values, atol=1e-6)


# ---- dropout ------------------------------------------------------------------------------------------------------

def test_dropout_keeps_the_mean_and_drops_at_its_rate():
    keys = jax.random.split(jax.random.key(0), 10)
    out = np.asarray(jax.jit(Dropout(0.3, name="dropout").apply)({}, np.ones((10, 100, 100), np.float32), keys))
    assert set(np.unique(out)) == {np.float32(0.0), np.float32(1 / 0.7)}
    # 10^5 draws; 5 standard deviations
    assert abs((out == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 1e5)
    assert abs(out.mean() - 1) < 5 * np.sqrt(0.3 / 0.7 / 1e5)


def test_dropout_of_an_example_is_bit_for_bit_its_own():
    x, keys = normal(4, 3, 5), jax.random.split(jax.random.key(0), 4)
    drop = functools.partial(jax.jit(Dropout(0.5, name="dropout").apply), {})
    out = drop(x, keys)
    np.testing.assert_array_equal(drop(x[2:3], keys[2:3])[0], out[2])
    np.testing.assert_array_equal(drop(x[::-1], keys[::-1]), out[::-1])
    np.testing.assert_array_equal(drop(np.concatenate([0 * x[:2], x[2:]]), keys)[2:], out[2:])


def test_dropout_differs_by_layer():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, keys):
            return Dropout(0.5, name="a")(x, keys), Dropout(0.5, name="b")(x, keys)

    a, b = jax.jit(Two().apply)({}, np.ones((2, 1000), np.float32), jax.random.split(jax.random.key(0), 2))
    assert 0.4 < np.mean(np.asarray(a) == np.asarray(b)) < 0.6


def test_dropout_is_off_without_keys_or_rate():
    x = normal(2, 7)
    for rate, keys in ((0.5, None), (0.0, jax.random.split(jax.random.key(0), 2))):
        np.testing.assert_array_equal(Dropout(rate).apply({}, x, keys), x)


# ---- initialiser --------------------------------------------------------------------------------------------------

def test_an_initialiser_of_scale_zero_is_exactly_zero():
    assert not np.any(ddpm_init(0.0)(jax.random.key(0), (3, 3, 4, 4), jnp.float32))
