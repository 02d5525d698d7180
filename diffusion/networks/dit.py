"""Diffusion transformers: DiT (Peebles & Xie 2023, "Scalable Diffusion Models with Transformers"), SiT (Ma et al. 2024)
and JiT (Li & He 2025, "Back to Basics: Let Denoising Generative Models Denoise").

SiT is DiT's network, told the data's share of x in place of a time: `process.network_time` = "data". JiT differs from
DiT in the fields from `norm` on.
"""
import functools
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion.core.conditions import Declared, labels
from diffusion.errors import require
from diffusion.networks.activations import gelu
from diffusion.networks.attention import attend
from diffusion.networks.layers import (
    Dense,
    Dropout,
    check_channels,
    fold,
    rematerialised,
    sinusoidal_embedding,
    unfold,
)
from diffusion.typing import NO_COND, Array, Cond, Image, Keys

FREQUENCIES = 256  # sines and cosines in the time embedding

# As networks/unet.SHARDING: queries, keys, values and the MLP's first layers are cut by outputs, hence by heads.
SHARDING = (
    (r"/(q|k|v|mlp1|gate|modulation|time1)/kernel$", ("fsdp", "tensor")),
    (r"/(out|mlp2|time2)/kernel$", ("tensor", "fsdp")),
)


class DiT(nn.Module):
    """The diffusion transformer with adaLN-Zero (Peebles & Xie 2023).

    F(x, c_noise, cond): [B,H,W,C_in] -> [B,H,W,out_channels], float32 at least. The defaults are DiT-S/2's. As in the
    authors' code (facebookresearch/DiT), the image is cut into patches with fixed positions, each block is modulated by
    the time and the label, and each residual branch starts at zero, as does the output. Dropout is in attention's
    output and the MLP's hidden layer, in the middle half of the blocks (Li & He 2025, Appendix A).
    """
    channels: int = 384                         # width of a token
    depth: int = 12                             # number of blocks
    heads: int = 6                              # attention heads
    patch: int = 2                              # side of a patch of x, which becomes one position of the network
    mlp_ratio: float = 4.0                      # width of the MLPs / channels
    norm: Literal["layer", "rms"] = "layer"     # normalisation: layer, without parameters, or rms, with a scale
    mlp: Literal["gelu", "swiglu"] = "gelu"     # gelu, or swiglu (Shazeer 2020), of 2/3 of the width
    qk_norm: bool = False                       # queries and keys are divided by their root mean square, with a scale
    rotary: bool = False                        # queries and keys turn by their row and column (Su et al. 2021, RoPE)
    bottleneck: int = 0                         # width of a linear layer between a patch and its token; 0: none
    class_tokens: int = 0                       # tokens of the label that are put before those of the patches
    class_tokens_from: int = 0                  # the block before which they are put
    dropout: float = 0.0
    unread_outputs: bool = False                # a second half of the output that nothing reads, as in SiT's weights
    num_classes: int = 0                        # 0: unconditional; else cond["label"] is int32 [B] below it
    out_channels: int = 3
    dtype: Literal["float32", "bfloat16"] = "float32"  # computation precision; parameters are float32
    remat: Literal["none", "light", "full"] = "none"
    sharding = SHARDING
    undecayed = (r"/labels/embedding$", r"/class_positions$")  # which weight decay leaves alone, besides vectors
    spatial = 2

    @property
    def cond(self) -> Declared:
        """The label, if there are classes."""
        return labels(self.num_classes)

    def check(self, size: tuple[int, int]) -> None:
        """Raises FieldError for fields that do not fit images of this height and width, or each other."""
        check_channels(self.channels)
        require(self.channels % 4 == 0, "channels", self.channels, "must be a multiple of 4: a position is sines and "
                "cosines of its row and column.")
        require(self.depth >= 1, "depth", self.depth, "must be 1 or more.")
        require(self.heads >= 1 and self.channels % self.heads == 0, "heads", self.heads,
                f"must divide network.channels = {self.channels}.")
        width = self.channels // self.heads
        require(not self.rotary or width % 4 == 0, "rotary", self.rotary, f"turns pairs of a head's channels, half of "
                f"them by the row and half by the column, but a head has {width}, which 4 does not divide: choose "
                f"network.heads so that it does (now {self.heads}, of {self.channels} channels).")
        for side in size:
            require(self.patch >= 1 and side % self.patch == 0, "patch", self.patch,
                    f"must divide the {side} pixels of an image's side (config.data.size).")
        require(self.mlp_ratio > 0, "mlp_ratio", self.mlp_ratio, "must be positive (Peebles & Xie 2023: 4).")
        require(self.bottleneck >= 0, "bottleneck", self.bottleneck, "must not be negative (Li & He 2025: 128).")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "is a probability below 1.")
        require(self.class_tokens >= 0, "class_tokens", self.class_tokens, "must not be negative (Li & He 2025: 32).")
        require(self.num_classes or not self.class_tokens, "class_tokens", self.class_tokens, "are of a label, but the "
                "network has none: set network.num_classes, or network.class_tokens=0.")
        require(not self.class_tokens or 0 <= self.class_tokens_from < self.depth, "class_tokens_from",
                self.class_tokens_from, f"must be one of the blocks 0 .. {self.depth - 1} (network.depth = "
                f"{self.depth}).")

    @nn.compact
    def __call__(self, x: Image, c_noise: Array, cond: Cond = NO_COND, keys: Keys | None = None) -> Array:
        b, height, width, _ = x.shape
        rows, columns = height // self.patch, width // self.patch
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        small = nn.initializers.normal(0.02)

        h = fold(x.astype(self.dtype), self.patch).reshape(b, rows * columns, -1)
        if self.bottleneck:
            h = dense(self.bottleneck, use_bias=False, name="bottleneck")(h)
        h = dense(self.channels, name="patches")(h)
        h += positions(self.channels, rows, columns)[None].astype(self.dtype)

        emb = sinusoidal_embedding(c_noise, FREQUENCIES, freq_shift=0.0, cos_first=True).astype(self.dtype)
        emb = nn.swish(dense(self.channels, kernel_init=small, name="time1")(emb))
        emb = dense(self.channels, kernel_init=small, name="time2")(emb)
        if self.num_classes:
            label = nn.Embed(self.num_classes, self.channels, dtype=self.dtype, embedding_init=small,
                             name="labels")(cond["label"])
            emb += label

        turns = turns_of(self.channels // self.heads, rows, columns) if self.rotary else None
        block = rematerialised(Block, self.remat)
        for i in range(self.depth):
            if self.class_tokens and i == self.class_tokens_from:
                differing = self.param("class_positions", small, (self.class_tokens, self.channels))
                h = jnp.concatenate([label[:, None] + differing[None].astype(self.dtype), h], axis=1)
                if turns is not None:  # they have no place in the image, and do not turn
                    cos, sin = np.pad(turns, ((0, 0), (self.class_tokens, 0), (0, 0)))
                    cos[:self.class_tokens] = 1
                    turns = np.stack([cos, sin])
            middle = self.depth // 4 <= i < self.depth // 4 * 3
            h = block(self.heads, self.mlp_ratio, self.norm, self.mlp, self.qk_norm,
                      self.dropout if middle else 0.0, self.dtype, name=f"block{i}")(h, emb, turns, keys)

        h = h[:, self.class_tokens:]
        shift, scale = modulation(emb, 2, self.dtype)
        h = modulated(normalised(h, self.norm, self.dtype, "norm_out"), shift, scale)
        outputs = self.out_channels * (1 + self.unread_outputs)
        h = dense(self.patch**2 * outputs, kernel_init=nn.initializers.zeros_init(), name="pixels")(h)
        h = unfold(h.reshape(b, rows, columns, -1), self.patch)[..., :self.out_channels]
        return h.astype(jnp.promote_types(h.dtype, jnp.float32))


class JiT(DiT):
    """Just image Transformer, DiT for large patches of pixels (Li & He 2025).

    The defaults are JiT-B/16's; it needs classes, unless class_tokens is 0. Equal to the authors' code (LTH14/JiT) in
    its output and parameters; attention has no dropout, which no published recipe uses.
    """
    channels: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    norm: Literal["layer", "rms"] = "rms"
    mlp: Literal["gelu", "swiglu"] = "swiglu"
    qk_norm: bool = True
    rotary: bool = True
    bottleneck: int = 128
    class_tokens: int = 32
    class_tokens_from: int = 4


class Block(nn.Module):
    """Attention and an MLP, each after a normalisation that the embedding scales and shifts, and gated by the
    embedding; the gates start at zero (adaLN-Zero, Figure 3)."""
    heads: int
    mlp_ratio: float
    norm: str
    mlp: str
    qk_norm: bool
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, emb: Array, turns: Array | None, keys: Keys | None) -> Array:
        b, tokens, c = x.shape
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        # The authors initialise queries, keys and values as one matrix, whose fan-out is three times as large.
        of_three = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation(emb, 6, self.dtype)

        h = modulated(normalised(x, self.norm, self.dtype, "norm1"), shift1, scale1)
        q, k, v = (dense(c, kernel_init=of_three, name=name)(h).reshape(b, tokens, self.heads, c // self.heads)
                   for name in "qkv")
        if self.qk_norm:
            q, k = (normalised(x, "rms", self.dtype, name) for x, name in ((q, "q_norm"), (k, "k_norm")))
        if turns is not None:
            q, k = turned(q, turns), turned(k, turns)
        h = dense(c, name="out")(attend(q, k, v).reshape(b, tokens, c))
        x = x + gate1 * Dropout(self.dropout, name="out_dropout")(h, keys)

        h = modulated(normalised(x, self.norm, self.dtype, "norm2"), shift2, scale2)
        if self.mlp == "swiglu":
            inner = int(int(c * self.mlp_ratio) * 2 / 3)
            # The authors initialise both as one matrix, as above.
            of_two = nn.initializers.variance_scaling((c + inner) / (c + 2 * inner), "fan_avg", "uniform")
            h = nn.swish(dense(inner, kernel_init=of_two, name="gate")(h)) * dense(inner, kernel_init=of_two,
                                                                                   name="mlp1")(h)
        else:
            h = gelu(dense(round(c * self.mlp_ratio), name="mlp1")(h))
        h = Dropout(self.dropout, name="mlp_dropout")(h, keys)
        return x + gate2 * dense(c, name="mlp2")(h)


def modulation(emb: Array, parts: int, dtype: Any) -> list[Array]:
    """[B, C] -> `parts` arrays [B, 1, C], by a layer of the calling module."""
    layer = nn.Dense(parts * emb.shape[-1], dtype=dtype, kernel_init=nn.initializers.zeros_init(), name="modulation")
    return jnp.split(layer(nn.swish(emb))[:, None], parts, axis=-1)


def modulated(x: Array, shift: Array, scale: Array) -> Array:
    return x * (1 + scale) + shift


def normalised(x: Array, norm: str, dtype: Any, name: str) -> Array:
    """x over its root mean square, with a scale (rms: Zhang & Sennrich 2019), or standardised (layer)."""
    if norm == "rms":
        return nn.RMSNorm(epsilon=1e-6, dtype=dtype, name=name)(x)
    return nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=dtype, name=name)(x)


def positions(channels: int, rows: int, columns: int) -> np.ndarray:
    """[rows * columns, channels]: sines and cosines of the column in the first half, of the row in the second."""
    def of(places: np.ndarray) -> np.ndarray:
        angles = places[:, None] / 10_000.0 ** (np.arange(channels // 4) / (channels / 4))
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    row, column = places(rows, columns)
    return np.concatenate([of(column), of(row)], axis=1)


def turns_of(width: int, rows: int, columns: int) -> np.ndarray:
    """[2, rows * columns, width / 2]: cosines and sines of the angles by which the pairs of a head's channels turn, of
    the row in the first half, of the column in the second (Su et al. 2021, Eq. 15, along two axes)."""
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width / 4))
    angles = np.concatenate([place[:, None] * frequencies for place in places(rows, columns)], axis=1)
    return np.stack([np.cos(angles), np.sin(angles)])


def places(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column of each position, [rows * columns]."""
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return row.ravel().astype(float), column.ravel().astype(float)


def turned(x: Array, turns: Array) -> Array:
    """[B, S, heads, D], whose neighbouring channels are pairs, turned by `turns` [2, S, D / 2], in float32 at least."""
    first, second = jnp.moveaxis(x.reshape(*x.shape[:-1], -1, 2), -1, 0)
    cos, sin = turns[:, None, :, None]
    y = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return y.reshape(x.shape).astype(x.dtype)


NETWORKS = {"dit": DiT, "jit": JiT}
