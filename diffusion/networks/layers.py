"""Layers shared by the U-Nets, for waveforms [B, L, C], images [B, H, W, C] and arrays of any other rank.

Initialisers are those of Ho et al. (2020), as in their released code.
"""
import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from diffusion.errors import require
from diffusion.networks import winograd
from diffusion.networks.attention import attend
from diffusion.networks.norms import GroupNorm
from diffusion.typing import Array, Keys

REMATS = {"none", "light", "full"}
ACTIVATIONS = {"swish": nn.swish, "relu": nn.relu, "gelu": lambda x: nn.gelu(x, approximate=False), "mish": jax.nn.mish}


def ddpm_init(scale: float = 1.0) -> nn.initializers.Initializer:
    """Uniform variance scaling by the mean of fan-in and fan-out; `scale=0` is exactly zero."""
    if scale == 0.0:
        return nn.initializers.zeros_init()
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


class Conv(nn.Conv):
    """A convolution, in the form that is fast on the device, whose result `rematerialised` may keep."""
    conv_general_dilated: Any = winograd.conv_general_dilated

    def __call__(self, x: Array) -> Array:
        return checkpoint_name(super().__call__(x), "layer")


class Dense(nn.Dense):
    """A dense layer whose result `rematerialised` may keep.

    It is a product of two matrices, as is then the gradient of its kernel: for more axes of x, XLA would transpose
    copies of x and of its gradient on a CPU.
    """
    def __call__(self, x: Array) -> Array:
        y = super().__call__(x.reshape(-1, x.shape[-1]))
        return checkpoint_name(y.reshape(*x.shape[:-1], -1), "layer")


def rematerialised(block: type[nn.Module], remat: str) -> type[nn.Module]:
    """The block with its activations stored for the gradient (`remat` none), recomputed except for the results of
    convolutions, dense layers and cuDNN's attention (light), or all recomputed (full). Values, gradients and parameters
    are the same."""
    if remat == "none":
        return block
    return nn.remat(block, policy=None if remat == "full" else _is_layer)


def _is_layer(primitive: Any, *_, **settings) -> bool:
    return primitive.name.startswith("dot_product_attention") or (
        primitive.name == "name" and settings["name"] == "layer")


def sinusoidal_embedding(c_noise: Array, dim: int, *, freq_shift: float = 1.0, cos_first: bool = False,
                         max_period: float = 10_000.0) -> Array:
    """[B] -> [B, dim]: sines then cosines of `c_noise` at dim // 2 geometric frequencies from 1 to about 1/max_period,
    and a final zero if `dim` is odd.

    The spacing is log(max_period) / (dim/2 - freq_shift). Ho et al. took shift 1 from tensor2tensor, with which the
    last frequency is 1/max_period; Vaswani et al. (2017) and Nichol & Dhariwal (2021) use 0, the latter with cosines
    first.
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(max_period) / (half - freq_shift) * jnp.arange(half, dtype=jnp.float32))
    angles = c_noise.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = (jnp.cos(angles), jnp.sin(angles)) if cos_first else (jnp.sin(angles), jnp.cos(angles))
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, dim % 2)))


def check_channels(channels: int) -> None:
    """Raises FieldError for a width that the embeddings cannot have."""
    require(channels >= 2, "channels", channels, "must be at least 2: embeddings are half sines and half cosines.")


class FourierEmbedding(nn.Module):
    """[B] -> [B, 2 dim]: sines then cosines of 2 pi w log(c_noise), w ~ N(0, 16^2) drawn once and never trained.

    Song et al. (2021), "Score-Based Generative Modeling through SDEs", Appendix C.2; c_noise is the noise level sigma.
    Without `logarithm` c_noise is itself the logarithm, up to a factor and a constant.
    """
    dim: int
    cos_first: bool = False
    logarithm: bool = True

    @nn.compact
    def __call__(self, c_noise: Array) -> Array:
        frequencies = self.param("frequencies", nn.initializers.normal(16.0), (self.dim,))
        values = jnp.log(c_noise) if self.logarithm else c_noise
        angles = 2 * math.pi * values[:, None] * jax.lax.stop_gradient(frequencies)[None, :]
        parts = (jnp.cos(angles), jnp.sin(angles)) if self.cos_first else (jnp.sin(angles), jnp.cos(angles))
        return jnp.concatenate(parts, axis=-1)


class Dropout(nn.Module):
    """Dropout whose mask for example i depends only on keys[i] and this layer's path.

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


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Settings shared by all blocks of one network."""
    dtype: Any = jnp.float32      # of the computation
    groups: int = 32              # of the group normalisation, at most
    group_channels: int = 1       # the fewest channels of a group; narrow arrays have fewer groups
    epsilon: float = 1e-6         # of the group normalisation
    activation: str = "swish"     # one of ACTIVATIONS
    dropout: float = 0.0          # probability of dropping
    scale_shift: bool = False     # the embedding scales and shifts (Nichol & Dhariwal 2021) or only shifts
    spatial: int = 2              # axes of x before the channels

    def group_norm(self, name: str, groups: int | None = None) -> GroupNorm:
        """A group normalisation; its statistics are computed in float32 whatever the dtype."""
        return GroupNorm(num_groups=groups or self.groups, epsilon=self.epsilon, dtype=self.dtype, name=name)

    def groups_of(self, channels: int) -> int:
        """The groups of an array with so many channels."""
        return min(self.groups, channels // self.group_channels)

    def conv(self, channels: int, name: str, scale: float = 1.0, size: int = 3, **kwargs) -> Conv:
        """A convolution whose kernel has `size` taps along each spatial axis."""
        return Conv(channels, (size,) * self.spatial, dtype=self.dtype, kernel_init=ddpm_init(scale), name=name,
                    **kwargs)

    def dense(self, channels: int, name: str, scale: float = 1.0) -> Dense:
        return Dense(channels, dtype=self.dtype, kernel_init=ddpm_init(scale), name=name)

    def act(self, x: Array) -> Array:
        return ACTIVATIONS[self.activation](x)


def upsample(x: Array, factor: int = 2) -> Array:
    """Each spatial axis made `factor` times as long by nearest neighbours: [B,H,W,C] -> [B,2H,2W,C]."""
    for axis in range(1, x.ndim - 1):
        x = jnp.repeat(x, factor, axis=axis)
    return x


def downsample(x: Array, factor: int = 2) -> Array:
    """Means of `factor` neighbours along each spatial axis: [B,H,W,C] -> [B,H/2,W/2,C]."""
    window = (factor,) * (x.ndim - 2)
    return nn.avg_pool(x, window, window)


def fold(x: Array, patch: int) -> Array:
    """Patches of x become its channels: [B, H, W, C] -> [B, H/patch, W/patch, patch^2 C], by row, column, channel."""
    if patch == 1:
        return x
    b, *sides, c = x.shape
    n, short = len(sides), [side // patch for side in sides]
    x = x.reshape(b, *(length for side in short for length in (side, patch)), c)
    return x.transpose(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1).reshape(b, *short, -1)


def unfold(x: Array, patch: int) -> Array:
    """The inverse of `fold`: [B, H, W, patch^2 C] -> [B, patch H, patch W, C]."""
    if patch == 1:
        return x
    b, *sides, _ = x.shape
    n = len(sides)
    x = x.reshape(b, *sides, *[patch] * n, -1)
    x = x.transpose(0, *(axis for i in range(1, n + 1) for axis in (i, n + i)), 2 * n + 1)
    return x.reshape(b, *(patch * side for side in sides), -1)


class ResBlock(nn.Module):
    """norm-act-conv, + embedding, norm-act-dropout-conv(zero), + shortcut (Ho et al. 2020, Appendix B).

    `resample` (`downsample`, `upsample`) changes the resolution of both branches before the first convolution (the
    BigGAN block of Song et al. 2021 and Dhariwal & Nichol 2021). The sum is divided by `divisor`. The shortcut is a 1x1
    convolution where the number of channels changes or, if `project`, always.
    """
    channels: int
    style: BlockConfig
    resample: Callable[[Array], Array] | None = None
    divisor: float = 1.0
    project: bool = False

    @nn.compact
    def __call__(self, x: Array, emb: Array, keys: Keys | None) -> Array:
        style = self.style
        h = style.group_norm("norm1", style.groups_of(x.shape[-1]))(x, style.act)
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = style.conv(self.channels, "conv1")(h)
        emb = style.dense(self.channels * (1 + style.scale_shift), "emb")(style.act(emb))
        told = {"scale_shift" if style.scale_shift else "shift": emb}
        h = style.group_norm("norm2", style.groups_of(self.channels))(h, style.act, **told)
        h = Dropout(style.dropout, name="dropout")(h, keys)
        h = style.conv(self.channels, "conv2", scale=0.0)(h)
        if x.shape[-1] != self.channels or self.project:
            x = style.dense(self.channels, "shortcut")(x)
        return (x + h) / self.divisor


class Attention(nn.Module):
    """Self-attention over all positions, such as H*W, with a residual connection and a zero-initialised output.

    groups: of the normalisation; None: the style's, 0: no normalisation. The sum is divided by `divisor`. Each head has
    `head_channels` channels; 0: the heads share all channels equally. scale: of the initial q, k and v.
    """
    heads: int
    style: BlockConfig
    head_channels: int = 0
    groups: int | None = None
    divisor: float = 1.0
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, *sides, c = x.shape
        positions = math.prod(sides)
        groups = self.style.groups_of(c) if self.groups is None else self.groups
        h = x if groups == 0 else self.style.group_norm("norm", groups)(x)
        h = h.reshape(b, positions, c)
        inner = self.heads * self.head_channels or c
        size = inner // self.heads
        q, k, v = (self.style.dense(inner, name, self.scale)(h).reshape(b, positions, self.heads, size)
                   for name in "qkv")
        h = attend(q, k, v).reshape(b, *sides, inner)
        return (x + self.style.dense(c, "out", scale=0.0)(h)) / self.divisor


class Downsample(nn.Module):
    """Each spatial axis made `factor` times shorter by a strided convolution of 2 factor - 1 taps: [B,H,W,C] ->
    [B,H/2,W/2,C] by 3x3.

    Padded after the last row and column only, as TensorFlow's SAME does for even sizes (Ho et al. 2020), or all around
    (PyTorch's padding of 1: Nichol & Dhariwal 2021). Published weights depend on it.
    """
    style: BlockConfig
    pad_around: bool = False
    factor: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        pad = self.factor - 1
        padding = ((pad if self.pad_around else 0, pad),) * self.style.spatial
        return self.style.conv(x.shape[-1], "conv", size=2 * self.factor - 1, strides=self.factor, padding=padding)(x)


class Upsample(nn.Module):
    """Each spatial axis made `factor` times longer by nearest neighbours and a convolution of 2 factor - 1 taps:
    [B,H,W,C] -> [B,2H,2W,C] by 3x3."""
    style: BlockConfig
    factor: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.style.conv(x.shape[-1], "conv", size=2 * self.factor - 1)(upsample(x, self.factor))
