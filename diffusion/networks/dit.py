"""DiT, the transformer with adaLN-Zero (Peebles & Xie 2023, "Scalable Diffusion Models with Transformers")."""
import functools
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion.core.conditions import Declared, labels
from diffusion.errors import require
from diffusion.networks.activations import gelu
from diffusion.networks.attention import attend
from diffusion.networks.layers import Dense, check_channels, fold, rematerialised, sinusoidal_embedding, unfold
from diffusion.typing import NO_COND, Array, Cond, Image, Keys

FREQUENCIES = 256  # sines and cosines in the time embedding

# As networks/unet.SHARDING: queries, keys, values and the MLP's first layer are cut by outputs, hence by heads.
SHARDING = (
    (r"/(q|k|v|mlp1|modulation|time1)/kernel$", ("fsdp", "tensor")),
    (r"/(out|mlp2|time2)/kernel$", ("tensor", "fsdp")),
)


class DiT(nn.Module):
    """The diffusion transformer with adaLN-Zero (Peebles & Xie 2023).

    F(x, c_noise, cond): [B,H,W,C_in] -> [B,H,W,out_channels], float32 at least. The defaults are DiT-S/2's. As in the
    authors' code (facebookresearch/DiT), the image is cut into patches with fixed positions, each block is modulated by
    the time and the label, and each residual branch starts at zero, as does the output.
    """
    channels: int = 384                         # width of a token
    depth: int = 12                             # number of blocks
    heads: int = 6                              # attention heads
    patch: int = 2                              # side of a patch of x, which becomes one position of the network
    mlp_ratio: float = 4.0                      # width of the MLPs / channels
    num_classes: int = 0                        # 0: unconditional; else cond["label"] is int32 [B] below it
    out_channels: int = 3
    dtype: Literal["float32", "bfloat16"] = "float32"  # computation precision; parameters are float32
    remat: Literal["none", "light", "full"] = "none"
    sharding = SHARDING
    undecayed = (r"/labels/embedding$",)  # parameters that weight decay leaves alone, besides vectors
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
        for side in size:
            require(self.patch >= 1 and side % self.patch == 0, "patch", self.patch,
                    f"must divide the {side} pixels of an image's side (config.data.size).")
        require(self.mlp_ratio > 0, "mlp_ratio", self.mlp_ratio, "must be positive (Peebles & Xie 2023: 4).")

    @nn.compact
    def __call__(self, x: Image, c_noise: Array, cond: Cond = NO_COND, keys: Keys | None = None) -> Array:
        b, height, width, _ = x.shape
        rows, columns = height // self.patch, width // self.patch
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        small = nn.initializers.normal(0.02)

        h = fold(x.astype(self.dtype), self.patch)
        h = dense(self.channels, name="patches")(h.reshape(b, rows * columns, -1))
        h += positions(self.channels, rows, columns)[None].astype(self.dtype)

        emb = sinusoidal_embedding(c_noise, FREQUENCIES, freq_shift=0.0, cos_first=True).astype(self.dtype)
        emb = nn.swish(dense(self.channels, kernel_init=small, name="time1")(emb))
        emb = dense(self.channels, kernel_init=small, name="time2")(emb)
        if self.num_classes:
            emb += nn.Embed(self.num_classes, self.channels, dtype=self.dtype, embedding_init=small,
                            name="labels")(cond["label"])

        block = rematerialised(Block, self.remat)
        for i in range(self.depth):
            h = block(self.heads, self.mlp_ratio, self.dtype, name=f"block{i}")(h, emb)

        shift, scale = modulation(emb, 2, self.dtype)
        h = modulated(normalised(h, self.dtype, "norm_out"), shift, scale)
        h = dense(self.patch**2 * self.out_channels, kernel_init=nn.initializers.zeros_init(), name="pixels")(h)
        h = unfold(h.reshape(b, rows, columns, -1), self.patch)
        return h.astype(jnp.promote_types(h.dtype, jnp.float32))


class Block(nn.Module):
    """Attention and an MLP, each after a normalisation that the embedding scales and shifts, and gated by the
    embedding; the gates start at zero (adaLN-Zero, Figure 3)."""
    heads: int
    mlp_ratio: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, emb: Array) -> Array:
        b, tokens, c = x.shape
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        # The authors initialise queries, keys and values as one matrix, whose fan-out is three times as large.
        of_three = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation(emb, 6, self.dtype)

        h = modulated(normalised(x, self.dtype, "norm1"), shift1, scale1)
        q, k, v = (dense(c, kernel_init=of_three, name=name)(h).reshape(b, tokens, self.heads, c // self.heads)
                   for name in "qkv")
        x = x + gate1 * dense(c, name="out")(attend(q, k, v).reshape(b, tokens, c))

        h = modulated(normalised(x, self.dtype, "norm2"), shift2, scale2)
        h = gelu(dense(round(c * self.mlp_ratio), name="mlp1")(h))
        return x + gate2 * dense(c, name="mlp2")(h)


def modulation(emb: Array, parts: int, dtype: Any) -> list[Array]:
    """[B, C] -> `parts` arrays [B, 1, C], by a layer of the calling module."""
    layer = nn.Dense(parts * emb.shape[-1], dtype=dtype, kernel_init=nn.initializers.zeros_init(), name="modulation")
    return jnp.split(layer(nn.swish(emb))[:, None], parts, axis=-1)


def modulated(x: Array, shift: Array, scale: Array) -> Array:
    return x * (1 + scale) + shift


def normalised(x: Array, dtype: Any, name: str) -> Array:
    return nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=dtype, name=name)(x)


def positions(channels: int, rows: int, columns: int) -> np.ndarray:
    """[rows * columns, channels]: sines and cosines of the column in the first half, of the row in the second."""
    def of(places: np.ndarray) -> np.ndarray:
        angles = places[:, None] / 10_000.0 ** (np.arange(channels // 4) / (channels / 4))
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    row, column = (grid.ravel().astype(float) for grid in np.meshgrid(np.arange(rows), np.arange(columns),
                                                                      indexing="ij"))
    return np.concatenate([of(column), of(row)], axis=1)


NETWORKS = {"dit": DiT}
