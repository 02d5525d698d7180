"""The factorised space-time U-Net of Video Diffusion Models (Ho et al. 2022), as video-diffusion-pytorch has it."""
import math
import zlib
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.conditions import Declared, labels
from diffusion.errors import require
from diffusion.networks.attention import attend
from diffusion.networks.layers import (
    Conv,
    Dense,
    check_channels,
    ddpm_init,
    rematerialised,
    sinusoidal_embedding,
)
from diffusion.networks.unet_frames import first_frames, told_frames
from diffusion.typing import NO_COND, Array, Cond, Keys

# As networks/unet.SHARDING: queries, keys and values are cut by outputs, hence by heads.
SHARDING = (
    (r"/(conv1|emb|emb1|q|k|v)/kernel$", ("fsdp", "tensor")),
    (r"/(conv2|emb2|out)/kernel$", ("tensor", "fsdp")),
)
BUCKETS = 32           # of distances between frames, in the relative position bias
LARGEST_DISTANCE = 32  # of two frames; all larger ones are in one bucket


class VideoUNet(nn.Module):
    """The factorised space-time U-Net of Video Diffusion Models (Ho et al. 2022, Section 3).

    F(x, c_noise, cond): [B,T,H,W,C_in] -> [B,T,H,W,out_channels], float32 at least. Convolutions see one frame (1x3x3,
    the first 1x7x7), and each level has attention over the pixels of a frame, then over the frames at a pixel, with
    rotary (Su et al. 2021) and relative positions (Raffel et al. 2020, T5). Any number of frames is taken; those
    before the clip, if it is told any, are frames without noise. The structure is that of lucidrains'
    video-diffusion-pytorch 0.7.0, with 35,706,259 parameters by default for 3 channels; there, unlike the paper,
    attention over pixels is linear outside the middle. All attention has `heads` heads of `head_channels` channels. The
    last convolution and the output of each attention start at zero.
    """
    channels: int = 64                          # channels of the first level
    multipliers: tuple[float, ...] = (1, 2, 4, 8)  # channels of each level / `channels`
    heads: int = 8                              # attention heads, of head_channels each
    head_channels: int = 32
    spatial_attention: Literal["linear", "full", "none"] = "linear"  # over the pixels of a frame, outside the middle:
                                                # linear in their number (video-diffusion-pytorch), full (Ho et al.)
    single_frames: float = 0.0                  # probability with which a clip in training counts as single frames: no
                                                # frame attends to another (Ho et al. 2022, joint training on images)
    num_classes: int = 0                        # 0: unconditional; else cond["label"] is int32 [B] below it
    out_channels: int = 3
    past: tuple[int, ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"  # computation precision; parameters are float32
    remat: Literal["none", "light", "full"] = "none"
    sharding = SHARDING
    undecayed = (r"/(labels|relative)/embedding$",)  # parameters that weight decay leaves alone, besides vectors
    spatial = 3

    @property
    def cond(self) -> Declared:
        """The label, if there are classes, and the frames before the clip."""
        return {**labels(self.num_classes), **first_frames(self.past)}

    def check(self, size: tuple[int, int, int]) -> None:
        """Raises FieldError for fields that do not fit clips of these frames, height and width, or each other."""
        check_channels(self.channels)
        require(self.channels >= 4, "channels", self.channels, "must be at least 4: the time is sines and cosines of "
                "two frequencies or more.")
        levels = len(self.multipliers)
        require(levels >= 1, "multipliers", self.multipliers, "needs a number for each level, at least one.")
        require(all(m > 0 and abs(self.channels * m - round(self.channels * m)) < 1e-6 for m in self.multipliers),
                "multipliers", self.multipliers, f"times network.channels = {self.channels} must be whole numbers.")
        for side in size[1:]:
            require(side % 2**(levels - 1) == 0, "multipliers", self.multipliers, f"{levels} levels halve a frame "
                    f"{levels - 1} times, which {side} pixels (config.data.size) do not allow. Use fewer levels or "
                    "another size.")
        require(self.heads >= 1, "heads", self.heads, "must be 1 or more.")
        require(self.head_channels >= 2 and self.head_channels % 2 == 0, "head_channels", self.head_channels,
                "must be even: rotary positions turn pairs of channels.")
        require(0 <= self.single_frames < 1, "single_frames", self.single_frames, "is a probability below 1.")

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Cond = NO_COND, keys: Keys | None = None) -> Array:
        widths = [self.channels, *(round(self.channels * m) for m in self.multipliers)]
        levels, dtype, frames = len(widths) - 1, self.dtype, x.shape[1]
        block, linear, spatial, temporal = (rematerialised(one, self.remat) for one in (
            ResBlock, LinearSpatialAttention, SpatialAttention, TemporalAttention))
        over_pixels = {"linear": linear, "full": spatial, "none": None}[self.spatial_attention]
        if self.past:  # in front of the others, with a channel that tells them apart
            x = jnp.concatenate([told_frames(cond).astype(x.dtype), jnp.pad(x, [(0, 0)] * 4 + [(0, 1)])], axis=1)
        bias = self.bias(x.shape[1], keys)

        def resblock(h, width, name, emb):
            return block(width, dtype, name=name)(h, emb)

        def attention(h, name, over_pixels=over_pixels):
            if over_pixels is not None:
                h = over_pixels(self.heads, self.head_channels, dtype, name=f"{name}_spatial")(h)
            return temporal(self.heads, self.head_channels, dtype, name=f"{name}_temporal")(h, bias)

        emb = self.embed(c_noise, cond)
        h = by_frame(conv(widths[0], 7, dtype, "conv_in"), x.astype(dtype))
        h = first = attention(h, "in", over_pixels=None)
        skips = []
        for level in range(levels):
            for i in range(2):
                h = resblock(h, widths[level + 1], f"down{level}_block{i}", emb)
            h = attention(h, f"down{level}")
            skips.append(h)
            if level < levels - 1:
                h = by_frame(conv(h.shape[-1], 4, dtype, f"down{level}_downsample", strides=2, padding=1), h)

        h = resblock(h, widths[-1], "middle_block0", emb)
        h = attention(h, "middle", over_pixels=spatial)
        h = resblock(h, widths[-1], "middle_block1", emb)

        for level in reversed(range(levels)):
            h = jnp.concatenate([h, skips.pop()], axis=-1)
            for i in range(2):
                h = resblock(h, widths[level], f"up{level}_block{i}", emb)
            h = attention(h, f"up{level}")
            if level > 0:
                # Each output pixel is 2 x 2 products: the transposed form of the convolution that halves.
                double = nn.ConvTranspose(h.shape[-1], (4, 4), (2, 2), padding=((2, 2), (2, 2)), dtype=dtype,
                                          kernel_init=ddpm_init(), name=f"up{level}_upsample")
                h = by_frame(double, h)

        h = resblock(jnp.concatenate([h, first], axis=-1), self.channels, "out_block", None)
        h = by_frame(conv(self.out_channels, 1, dtype, "conv_out", scale=0.0), h[:, h.shape[1] - frames:])
        return h.astype(jnp.promote_types(h.dtype, jnp.float32))

    def embed(self, c_noise: Array, cond: Cond) -> Array:
        """[B] c_noise and conditions -> [B, 4 channels]."""
        dense = {"dtype": self.dtype, "kernel_init": ddpm_init()}
        emb = sinusoidal_embedding(c_noise, self.channels).astype(self.dtype)
        emb = nn.gelu(Dense(4 * self.channels, name="emb1", **dense)(emb), approximate=False)
        emb = Dense(4 * self.channels, name="emb2", **dense)(emb)
        if self.num_classes:
            emb += nn.Embed(self.num_classes, 4 * self.channels, dtype=self.dtype, name="labels")(cond["label"])
        return emb

    def bias(self, frames: int, keys: Keys | None) -> Array:
        """What is added to the temporal attention's logits, [B or 1, heads, T, T]: a number for each head and distance
        of two frames, learned, the same in all levels; in training, for each clip with probability `single_frames`,
        all frames but a frame's own are hidden."""
        table = nn.Embed(BUCKETS, self.heads, name="relative")
        found = table(buckets(frames)).transpose(2, 0, 1)[None]
        if keys is None or not self.single_frames:
            return found
        layer = zlib.crc32(b"single_frames")
        alone = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, layer), self.single_frames))(keys)
        hidden = alone[:, None, None, None] & ~np.eye(frames, dtype=bool)[None, None]
        return jnp.where(hidden, jnp.finfo(found.dtype).min, found)


def buckets(frames: int) -> np.ndarray:
    """int32 [T, T], queries by keys: the bucket of each distance. Half of them are for later frames; in each half, one
    for each distance below 8, then logarithmically wider ones (Raffel et al. 2020, "T5", Section 2.1)."""
    half, exact = BUCKETS // 2, BUCKETS // 4
    distance = np.arange(frames)[None] - np.arange(frames)[:, None]
    far = np.maximum(np.abs(distance), 1).astype(np.float32)
    wide = exact + (np.log(far / exact) / math.log(LARGEST_DISTANCE / exact) * (half - exact)).astype(np.int32)
    found = np.where(np.abs(distance) < exact, np.abs(distance), np.minimum(wide, half - 1))
    return (found + half * (distance > 0)).astype(np.int32)


def rotated(x: Array) -> Array:
    """x [..., T, heads, D] with the pair of channels 2i, 2i + 1 of frame t turned by the angle t / 10000^(2i / R), for
    the first R = min(32, D) channels (Su et al. 2021, "RoFormer", Eq. 34)."""
    turned = min(32, x.shape[-1])
    angles = np.arange(x.shape[-3])[:, None] / 10_000.0 ** (np.arange(0, turned, 2) / turned)
    before = tuple(range(x.ndim - 3))
    cos, sin = (np.expand_dims(f(angles)[:, None], before).astype(np.float32) for f in (np.cos, np.sin))
    pairs = x[..., :turned].astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    pairs = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([pairs.reshape(*x.shape[:-1], turned).astype(x.dtype), x[..., turned:]], axis=-1)


def conv(channels: int, size: int, dtype: Any, name: str, scale: float = 1.0, **kwargs) -> Conv:
    """A convolution of size x size within a frame."""
    return Conv(channels, (size, size), dtype=dtype, kernel_init=ddpm_init(scale), name=name, **kwargs)


def by_frame(layer: Any, x: Array) -> Array:
    """A layer of images, [B, H, W, C], applied to each frame of [B, T, H, W, C]."""
    y = layer(x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])


class ChannelNorm(nn.Module):
    """Layer or root mean square normalisation over the channels, with a scale and without a shift, in float32."""
    center: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.center:
            h = h - h.mean(-1, keepdims=True)
        # The limits are those of video-diffusion-pytorch: on the variance, and on the length of the vector.
        square = jnp.square(h).mean(-1, keepdims=True)
        square = square + 1e-5 if self.center else jnp.maximum(square, 1e-24 / x.shape[-1])
        return (h * jax.lax.rsqrt(square) * jnp.expand_dims(scale, range(x.ndim - 1))).astype(self.dtype)


class ResBlock(nn.Module):
    """conv-norm-scale and shift by the embedding-swish, conv-norm-swish, + shortcut, within each frame."""
    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, emb: Array | None) -> Array:
        h = ChannelNorm(False, self.dtype, name="norm1")(by_frame(conv(self.channels, 3, self.dtype, "conv1"), x))
        if emb is not None:
            layer = Dense(2 * self.channels, dtype=self.dtype, kernel_init=ddpm_init(), name="emb")
            scale, shift = jnp.split(layer(nn.swish(emb))[:, None, None, None], 2, axis=-1)
            h = h * (1 + scale) + shift
        h = by_frame(conv(self.channels, 3, self.dtype, "conv2"), nn.swish(h))
        h = nn.swish(ChannelNorm(False, self.dtype, name="norm2")(h))
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, dtype=self.dtype, kernel_init=ddpm_init(), name="shortcut")(x)
        return x + h


class _Attention(nn.Module):
    """The normalisation, queries, keys and values, and the output, with a residual connection."""
    heads: int
    head_channels: int
    dtype: Any
    output_bias = False

    def dense(self, channels: int, name: str, **kwargs) -> Dense:
        return Dense(channels, dtype=self.dtype, name=name, **{"use_bias": False, "kernel_init": ddpm_init()} | kwargs)

    def of_heads(self, x: Array) -> list[Array]:
        """[..., C] -> queries, keys and values [..., heads, head_channels]."""
        h = ChannelNorm(True, self.dtype, name="norm")(x)
        return [self.dense(self.heads * self.head_channels, name)(h).reshape(
            *x.shape[:-1], self.heads, self.head_channels) for name in "qkv"]

    def added(self, x: Array, h: Array) -> Array:
        """x plus the output of the heads [..., heads, head_channels]."""
        out = self.dense(x.shape[-1], "out", kernel_init=ddpm_init(0.0), use_bias=self.output_bias)
        return x + out(h.reshape(*x.shape[:-1], -1))


class TemporalAttention(_Attention):
    """Attention over the frames, at each pixel: [B, T, H, W, C], with a bias [B or 1, heads, T, T] of the logits."""

    @nn.compact
    def __call__(self, x: Array, bias: Array) -> Array:
        q, k, v = (h.transpose(0, 2, 3, 1, 4, 5) for h in self.of_heads(x))  # [B, H, W, T, heads, head_channels]
        logits = jnp.einsum("byxqhd,byxkhd->byxhqk", rotated(q), rotated(k),
                            preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
        weights = jax.nn.softmax(logits / math.sqrt(self.head_channels) + bias[:, None, None], axis=-1)
        h = jnp.einsum("byxhqk,byxkhd->byxqhd", weights.astype(v.dtype), v)
        return self.added(x, h.transpose(0, 3, 1, 2, 4, 5))


class SpatialAttention(_Attention):
    """Attention over the pixels of each frame: [B, T, H, W, C]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, t, height, width, _ = x.shape
        heads = (h.reshape(b * t, height * width, self.heads, -1) for h in self.of_heads(x))
        return self.added(x, attend(*heads))


class LinearSpatialAttention(_Attention):
    """Attention over the pixels of each frame whose cost is linear in their number: softmax over the channels of the
    queries, over the pixels of the keys (Shen et al. 2021, "Efficient Attention", Eq. 3)."""
    output_bias = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        q, k, v = (h.reshape(*x.shape[:2], -1, *h.shape[-2:]) for h in self.of_heads(x))  # [B, T, pixels, heads, D]
        up = jnp.promote_types(q.dtype, jnp.float32)
        q = jax.nn.softmax(q.astype(up), axis=-1).astype(v.dtype) / math.sqrt(self.head_channels)
        k = jax.nn.softmax(k.astype(up), axis=-3).astype(v.dtype)
        context = jnp.einsum("btnhd,btnhe->bthde", k, v)
        return self.added(x, jnp.einsum("btnhd,bthde->btnhe", q, context))


NETWORKS = {"video_unet": VideoUNet}
