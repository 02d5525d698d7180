"""EDM2's magnitude-preserving U-Net: Karras et al. (2024), "Analyzing and Improving the Training Dynamics of Diffusion
Models", configuration G (Figure 21, Appendix B).

Each layer keeps the mean square of its input, on random inputs: activations, weights and updates keep their magnitudes
over the training. There are no biases and no group normalisations. Equation numbers are the paper's.
"""
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from diffusion.core.conditions import Declared, labels
from diffusion.errors import require
from diffusion.networks import winograd
from diffusion.networks.attention import attend
from diffusion.networks.layers import Dropout, check_channels, downsample, rematerialised, upsample
from diffusion.typing import NO_COND, Array, Cond, Image, Keys, Params

EPSILON = 1e-4  # added to what is divided by
SILU = 0.596    # the root of the mean square of silu(x) for x ~ N(0, 1)

# As networks/unet.SHARDING.
SHARDING = (
    (r"/(conv1|emb|q|k|v|noise|labels)/kernel$", ("fsdp", "tensor")),
    (r"/(conv2|out)/kernel$", ("tensor", "fsdp")),
)


def normalised(x: Array, axes: tuple[int, ...] = (-1,)) -> Array:
    """x divided by the root of its mean square over the axes: of channels, the pixel normalisation; of a layer's
    weights over all but the outputs, as Eq. 47 has them. The mean is computed in float32 at least."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.mean(wide**2, axes, keepdims=True)
    root = jnp.sqrt(jnp.maximum(square, jnp.finfo(square.dtype).tiny))  # which has a gradient at 0
    return x / (root + EPSILON).astype(x.dtype)


def silu(x: Array) -> Array:
    """Eq. 81."""
    return nn.silu(x) / SILU


def mix(a: Array, b: Array, t: float) -> Array:
    """The sum of two uncorrelated branches, with the share t of b (Eq. 88)."""
    return (a + t * (b - a)) / math.hypot(1 - t, t)


def joined(a: Array, b: Array, t: float) -> Array:
    """The concatenation of channels, in which b has the share t whatever the numbers of channels (Eq. 103)."""
    n, m = a.shape[-1], b.shape[-1]
    c = math.sqrt(n + m) / math.hypot(1 - t, t)
    return jnp.concatenate([c * (1 - t) / math.sqrt(n) * a, c * t / math.sqrt(m) * b], axis=-1)


def unit_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Normal weights [..., outputs], already normalised, so that the first gradient has the later ones' size."""
    return normalised(jax.random.normal(key, shape, dtype), tuple(range(len(shape) - 1)))


class Layer(nn.Module):
    """A convolution or dense layer of normalised weights, without bias (Eqs. 47 and 66): [..., C] -> [..., channels].

    size: taps along each axis of an image; 1: a dense layer on the last axis. gain: the output is scaled by a number
    that is learned, and starts at 0.
    """
    channels: int
    size: int = 1
    gain: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        taps = (self.size, self.size) if self.size > 1 else ()
        kernel = self.param("kernel", unit_normal, (*taps, x.shape[-1], self.channels), jnp.float32)
        kernel = normalised(kernel, tuple(range(kernel.ndim - 1))) / math.sqrt(math.prod(kernel.shape[:-1]))
        if self.gain:
            kernel = kernel * self.param("gain", nn.initializers.zeros_init(), (), jnp.float32)
        kernel, x = kernel.astype(self.dtype), x.astype(self.dtype)
        if taps:
            y = winograd.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        else:  # a product of two matrices, as in `layers.Dense`
            y = (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)
        return checkpoint_name(y, "layer")


class Fourier(nn.Module):
    """[B] -> [B, channels]: sqrt(2) cos(f c_noise + phase), f ~ N(0, (2 pi)^2), drawn once and never trained (Eq. 75).
    """
    channels: int

    @nn.compact
    def __call__(self, c_noise: Array) -> Array:
        turns = 2 * math.pi
        frequencies = self.param("frequencies", nn.initializers.normal(turns), (self.channels,))
        phases = self.param("phases", nn.initializers.uniform(turns), (self.channels,))
        frequencies, phases = jax.lax.stop_gradient((frequencies[None], phases[None]))
        return math.sqrt(2) * jnp.cos(c_noise[:, None] * frequencies + phases)


class Block(nn.Module):
    """A residual block, with self-attention if `heads` is not 0 (Figure 21).

    An encoder's block normalises its input, which a decoder's does not. `resample`: "down" or "up" by 2, or "".
    """
    channels: int
    encoder: bool
    resample: str
    heads: int
    dropout: float
    residual_balance: float
    attention_balance: float
    clip_activations: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, emb: Array, keys: Keys | None) -> Array:
        def layer(name, size=1, channels=self.channels, **kwargs):
            return Layer(channels, size, name=name, **{"dtype": self.dtype} | kwargs)

        x = {"down": downsample, "up": upsample, "": lambda x: x}[self.resample](x)
        shortcut = layer("shortcut") if x.shape[-1] != self.channels else lambda x: x
        if self.encoder:
            x = normalised(shortcut(x))
        h = layer("conv1", 3)(silu(x))
        scale = layer("emb", gain=True, dtype=emb.dtype)(emb) + 1
        h = silu(h * scale[:, None, None].astype(h.dtype))
        h = layer("conv2", 3)(Dropout(self.dropout, name="dropout")(h, keys))
        x = mix(x if self.encoder else shortcut(x), h, self.residual_balance)

        if self.heads:
            b, height, width, c = x.shape
            # Normalised queries and keys: a product is sqrt(D) times a cosine.
            q, k, v = (normalised(layer(name)(x).reshape(b, height * width, self.heads, -1)) for name in "qkv")
            h = layer("out")(attend(q, k, v).reshape(b, height, width, c))
            x = mix(x, h, self.attention_balance)
        return jnp.clip(x, -self.clip_activations, self.clip_activations) if self.clip_activations else x


class EDM2UNet(nn.Module):
    """EDM2's magnitude-preserving U-Net (Karras et al. 2024, configuration G).

    F(x, c_noise, cond): [B,H,W,C_in] -> [B,H,W,out_channels], float32 at least. The defaults are EDM2-S's on 64 x 64.
    The middle always has attention. c_noise should be of the order of 1, as ln(sigma)/4 of the prediction "edm" is.
    `project`, after each update, gives weights the mean square 1 again: then the learning rate alone sets how fast they
    turn, and it has to decay.
    """
    channels: int = 192                         # channels of the first level
    multipliers: tuple[float, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_resolutions: tuple[int, ...] = (16, 8)
    head_channels: int = 64
    noise_features: int = 0                     # Fourier features of the noise level; 0: the first level's channels
    embedding_width: int = 0                    # channels of the embedding; 0: the most that any level has
    label_balance: float = 0.5                  # share of the label in the embedding, against the noise level
    concat_balance: float = 0.5                 # share of the skip connections, against the main path
    residual_balance: float = 0.3               # share of a block's convolutions, against its input
    attention_balance: float = 0.3              # share of an attention, against its input
    clip_activations: float = 256.0             # each block's output is clipped to [-this, this]; 0: not
    dropout: float = 0.0
    num_classes: int = 0                        # 0: unconditional; else cond["label"] is int32 [B] below it
    out_channels: int = 3
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "light", "full"] = "none"
    sharding = SHARDING
    undecayed = (r"/kernel$",)  # the projection undoes what weight decay does
    untrained = (r"/fourier/(frequencies|phases)$",)
    spatial = 2

    @property
    def cond(self) -> Declared:
        """The label, if there are classes."""
        return labels(self.num_classes)

    def project(self, params: Params) -> Params:
        """Each layer's weights normalised, as `Layer` uses them (forced weight normalisation, Eq. 66)."""
        return jax.tree_util.tree_map_with_path(
            lambda path, x: normalised(x, tuple(range(x.ndim - 1))) if path[-1].key == "kernel" else x, params)

    def check(self, size: tuple[int, int]) -> None:
        """Raises FieldError for fields that do not fit images of this height and width, or each other."""
        check_channels(self.channels)
        levels = len(self.multipliers)
        require(levels >= 1, "multipliers", self.multipliers, "needs a number for each level, at least one.")
        require(all(m > 0 and abs(self.channels * m - round(self.channels * m)) < 1e-6 for m in self.multipliers),
                "multipliers", self.multipliers,
                f"times network.channels = {self.channels} must be whole numbers.")
        for key in ("noise_features", "embedding_width"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "must not be negative; 0 follows the levels.")
        for side in size:
            require(side % 2**(levels - 1) == 0, "multipliers", self.multipliers, f"{levels} levels halve an image "
                    f"{levels - 1} times, which {side} pixels (config.data.size) do not allow. Use fewer levels or "
                    "another size.")
        require(self.blocks >= 1, "blocks", self.blocks, "each level needs at least one residual block.")
        maps = [size[0] >> level for level in range(levels)]
        require(set(self.attention_resolutions) <= set(maps), "attention_resolutions", self.attention_resolutions,
                f"is not the size of any level's feature maps; their heights are {maps}.")
        widths = self._widths()
        attended = sorted({widths[-1], *(w for w, n in zip(widths, maps) if n in self.attention_resolutions)})
        require(self.head_channels >= 1 and not any(w % self.head_channels for w in attended), "head_channels",
                self.head_channels, f"must divide the channels of all levels with attention, {attended}.")
        for key in ("label_balance", "concat_balance", "residual_balance", "attention_balance"):
            require(0 < getattr(self, key) < 1, key, getattr(self, key), "is a share, between 0 and 1.")
        require(self.clip_activations >= 0, "clip_activations", self.clip_activations, "must not be negative; 0 clips "
                "nothing (Karras et al. 2024: 256).")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "is a probability below 1.")

    def _widths(self) -> list[int]:
        """The channels of each level."""
        return [round(self.channels * m) for m in self.multipliers]

    @nn.compact
    def __call__(self, x: Image, c_noise: Array, cond: Cond = NO_COND, keys: Keys | None = None) -> Array:
        widths = self._widths()
        block_of = rematerialised(Block, self.remat)
        emb = self.embed(c_noise, cond)

        def block(h, name, channels=None, *, attention=False, resample=""):
            channels = channels or h.shape[-1]
            return block_of(channels, name.startswith("down"), resample, channels // self.head_channels * attention,
                            self.dropout, self.residual_balance, self.attention_balance, self.clip_activations,
                            self.dtype, name=name)(h, emb, keys)

        h = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)  # ones, since layers have no biases
        h = Layer(widths[0], 3, dtype=self.dtype, name="conv_in")(h)
        skips = [h]
        for level, width in enumerate(widths):
            if level > 0:
                h = block(h, f"down{level}_downsample", resample="down")
                skips.append(h)
            for i in range(self.blocks):
                h = block(h, f"down{level}_block{i}", width, attention=h.shape[1] in self.attention_resolutions)
                skips.append(h)

        h = block(h, "middle_block0", attention=True)
        h = block(h, "middle_block1")

        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                h = block(h, f"up{level}_upsample", resample="up")
            for i in range(self.blocks + 1):
                h = joined(h, skips.pop(), self.concat_balance)
                h = block(h, f"up{level}_block{i}", width, attention=h.shape[1] in self.attention_resolutions)
        h = Layer(self.out_channels, 3, gain=True, dtype=self.dtype, name="conv_out")(h)
        return h.astype(jnp.promote_types(h.dtype, jnp.float32))

    def embed(self, c_noise: Array, cond: Cond) -> Array:
        """[B] c_noise and conditions -> [B, embedding_width], in float32 at least."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        features, width = self.noise_features or self._widths()[0], self.embedding_width or max(self._widths())
        emb = Layer(width, dtype=wide, name="noise")(Fourier(features, name="fourier")(c_noise.astype(wide)))
        if self.num_classes:
            one_hot = jax.nn.one_hot(cond["label"], self.num_classes, dtype=wide)
            label = Layer(width, dtype=wide, name="labels")(one_hot * math.sqrt(self.num_classes))
            emb = mix(emb, label, self.label_balance)
        return silu(emb)


NETWORKS = {"edm2": EDM2UNet}
