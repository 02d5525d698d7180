"""Layers shared by the U-Nets. Initialisers are those of Ho et al. (2020), as in their released code."""
import math
import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.typing import Array, Keys


def ddpm_init(scale: float = 1.0) -> nn.initializers.Initializer:
    """Uniform variance scaling by the mean of fan-in and fan-out; `scale=0` is exactly zero."""
    if scale == 0.0:
        return nn.initializers.zeros_init()
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


def sinusoidal_embedding(c_noise: Array, dim: int, max_period: float = 10_000.0) -> Array:
    """[B] -> [B, dim]: sines then cosines of `c_noise` at dim/2 geometric frequencies from 1 to 1/max_period.

    The spacing is log(max_period) / (dim/2 - 1), as Ho et al. took it from tensor2tensor (Vaswani et al. 2017 divide
    by dim/2).
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(max_period) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angles = c_noise.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Dropout(nn.Module):
    """Dropout whose mask for example i depends on keys[i] and this layer's path alone.

    nn.Dropout draws one mask for the batch, so that the loss curve would depend on how the batch is cut into
    micro-batches; this one does not (docs/design.md, randomness).
    """
    rate: float

    @nn.compact
    def __call__(self, x: Array, keys: Keys | None) -> Array:
        if keys is None or self.rate == 0.0:
            return x
        layer = zlib.crc32("/".join(self.path).encode())
        keep = 1.0 - self.rate
        mask = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, layer), keep, x.shape[1:]))(keys)
        return jnp.where(mask, x / keep, jnp.zeros_like(x))


def group_norm(groups: int, dtype: Any, name: str) -> nn.GroupNorm:
    """Group normalisation with epsilon 1e-6; Flax takes its statistics in float32 whatever the dtype."""
    return nn.GroupNorm(num_groups=groups, epsilon=1e-6, dtype=dtype, name=name)


class ResBlock(nn.Module):
    """norm-swish-conv, + time, norm-swish-dropout-conv(zero), + shortcut (Ho et al. 2020, Appendix B)."""
    channels: int
    groups: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, emb: Array, keys: Keys | None) -> Array:
        conv = lambda name, scale: nn.Conv(  # noqa: E731
            self.channels, (3, 3), dtype=self.dtype, kernel_init=ddpm_init(scale), name=name)
        h = nn.swish(group_norm(self.groups, self.dtype, "norm1")(x))
        h = conv("conv1", 1.0)(h)
        shift = nn.Dense(self.channels, dtype=self.dtype, kernel_init=ddpm_init(), name="emb")(nn.swish(emb))
        h += shift[:, None, None]
        h = nn.swish(group_norm(self.groups, self.dtype, "norm2")(h))
        h = Dropout(self.dropout, name="dropout")(h, keys)
        h = conv("conv2", 0.0)(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, kernel_init=ddpm_init(), name="shortcut")(x)
        return x + h


class Attention(nn.Module):
    """Self-attention over the H*W positions with a residual connection and a zero-initialised output."""
    heads: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, height, width, c = x.shape
        dense = lambda name, scale: nn.Dense(  # noqa: E731
            c, dtype=self.dtype, kernel_init=ddpm_init(scale), name=name)
        h = group_norm(self.groups, self.dtype, "norm")(x).reshape(b, height * width, c)
        q, k, v = (dense(name, 1.0)(h).reshape(b, height * width, self.heads, c // self.heads) for name in "qkv")
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
        weights = jax.nn.softmax(logits / math.sqrt(c // self.heads), axis=-1).astype(v.dtype)
        h = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, height, width, c)
        return x + dense("out", 0.0)(h)


class Downsample(nn.Module):
    """[B,H,W,C] -> [B,H/2,W/2,C] by a strided 3x3 convolution, padded after the last row and column only."""
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # TensorFlow's SAME for stride 2 and even sizes; written out because published weights depend on it.
        return nn.Conv(x.shape[-1], (3, 3), strides=2, padding=((0, 1), (0, 1)), dtype=self.dtype,
                       kernel_init=ddpm_init(), name="conv")(x)


class Upsample(nn.Module):
    """[B,H,W,C] -> [B,2H,2W,C] by nearest neighbours and a 3x3 convolution."""
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype, kernel_init=ddpm_init(), name="conv")(x)
