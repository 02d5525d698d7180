"""DiffWave (Kong et al. 2021, "DiffWave: A Versatile Diffusion Model for Audio Synthesis")."""
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from diffusion.core.conditions import Declared, labels
from diffusion.errors import require
from diffusion.networks.layers import Dense, check_channels, rematerialised, sinusoidal_embedding
from diffusion.typing import NO_COND, Array, Cond, Keys

FREQUENCIES = 128  # sines and cosines of the time
EMBEDDING = 512    # width of the time's two layers
LABEL = 128        # width of a label's embedding
TAPS = 3           # of a dilated convolution

# As networks/unet.SHARDING: the dilated convolution is cut by outputs, and the layers after it by inputs.
SHARDING = (
    (r"/(dilated|label|time1)/kernel$", ("fsdp", "tensor")),
    (r"/(residual|skip|time|time2)/kernel$", ("tensor", "fsdp")),
)


class DiffWave(nn.Module):
    """DiffWave: residual blocks of dilated convolutions at the full rate (Kong et al. 2021).

    F(x, c_noise, cond): [B,L,C_in] -> [B,L,out_channels], float32 at least. The defaults are the unconditional network
    for SC09 of 24.1M parameters, as in albertfgu/diffwave-sashimi, which took it from the first author's
    philsyn/DiffWave-unconditional. Block i sees 2^(i mod dilation_cycle) samples to each side. Its skips' sum over
    sqrt(depth) is the output, after two layers of which the last one starts at zero. The initial values are those
    that PyTorch's layers have: that code's own initialiser has no effect, since weight normalisation overwrites it.
    """
    channels: int = 256                         # residual and skip channels
    depth: int = 36                             # number of blocks
    dilation_cycle: int = 12                    # blocks until the dilation, doubled by each block, is 1 again
    weight_norm: bool = True                    # a kernel is a direction times a length (Salimans & Kingma 2016); off:
                                                # as in lmnt-com/diffwave
    num_classes: int = 0                        # 0: unconditional; else cond["label"] is int32 [B] below it
    out_channels: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"  # computation precision; parameters are float32
    remat: Literal["none", "light", "full"] = "none"
    sharding = SHARDING
    undecayed = (r"/labels/embedding$",)  # parameters that weight decay leaves alone, besides vectors
    spatial = 1

    @property
    def cond(self) -> Declared:
        """The label, if there are classes."""
        return labels(self.num_classes)

    def check(self, size: tuple[int]) -> None:
        """Raises FieldError for fields that do not fit sequences of this length, or each other."""
        check_channels(self.channels)
        require(self.depth >= 1, "depth", self.depth, "must be 1 or more.")
        farthest = min(self.dilation_cycle, self.depth) - 1
        require(self.dilation_cycle >= 1 and 2**farthest < size[0], "dilation_cycle", self.dilation_cycle, "must be 1 "
                f"or more, and so small that the largest dilation, here {2**max(farthest, 0)}, is less than the "
                f"{size[0]} samples of x: others would be taps of padding alone.")

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Cond = NO_COND, keys: Keys | None = None) -> Array:
        emb = sinusoidal_embedding(c_noise, FREQUENCIES).astype(self.dtype)
        emb = nn.swish(dense(EMBEDDING, FREQUENCIES, self.dtype, "time1")(emb))
        emb = nn.swish(dense(EMBEDDING, EMBEDDING, self.dtype, "time2")(emb))
        label = None
        if self.num_classes:
            label = nn.Embed(self.num_classes, LABEL, dtype=self.dtype, embedding_init=nn.initializers.normal(1.0),
                             name="labels")(cond["label"])

        h = nn.relu(Convolution(self.channels, self.dtype, self.weight_norm, name="conv_in")(x.astype(self.dtype)))
        total, block = 0.0, rematerialised(Block, self.remat)
        for i in range(self.depth):
            h, skip = block(2 ** (i % self.dilation_cycle), self.dtype, self.weight_norm, name=f"block{i}")(
                h, emb, label)
            total += skip
        h = total * math.sqrt(1 / self.depth)
        h = nn.relu(Convolution(self.channels, self.dtype, self.weight_norm, name="conv_skip")(h))
        zeros = nn.initializers.zeros_init()
        h = Dense(self.out_channels, dtype=self.dtype, kernel_init=zeros, bias_init=zeros, name="conv_out")(h)
        return h.astype(jnp.promote_types(h.dtype, jnp.float32))


class Block(nn.Module):
    """x [B, L, C], the time's embedding and the label's, or None -> (the next x, the skip), both [B, L, C].

    The label is a bias after the dilated convolution, as the mel spectrogram of the vocoder is (Kong et al. 2021,
    Section 3.3; no published code has it).
    """
    dilation: int
    dtype: Any
    weight_norm: bool

    @nn.compact
    def __call__(self, x: Array, emb: Array, label: Array | None) -> tuple[Array, Array]:
        channels = x.shape[-1]
        h = x + dense(channels, EMBEDDING, self.dtype, "time")(emb)[:, None]
        h = Convolution(2 * channels, self.dtype, self.weight_norm, TAPS, self.dilation, name="dilated")(h)
        if label is not None:
            h += Convolution(2 * channels, self.dtype, self.weight_norm, name="label")(label[:, None])
        h = jnp.tanh(h[..., :channels]) * nn.sigmoid(h[..., channels:])
        residual = Convolution(channels, self.dtype, self.weight_norm, name="residual")(h)
        return (x + residual) * math.sqrt(0.5), Convolution(channels, self.dtype, self.weight_norm, name="skip")(h)


class Convolution(nn.Module):
    """[B, L, C] -> [B, L, channels], of one tap or more, spread by the dilation and padded to the same length.

    With weight_norm, output j's kernel is scale_j v_j / ||v_j|| (Salimans & Kingma 2016, Eq. 2), and begins as v_j.
    """
    channels: int
    dtype: Any
    weight_norm: bool
    taps: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        fan_in = self.taps * x.shape[-1]
        kernel = self.param("kernel", within(fan_in), (self.taps, x.shape[-1], self.channels))
        bias = self.param("bias", within(fan_in), (self.channels,)).astype(self.dtype)
        if self.weight_norm:
            length = jnp.sqrt(jnp.sum(kernel**2, (0, 1)))
            kernel = kernel * (self.param("scale", lambda key: length) / length)[None, None]
        kernel = kernel.astype(self.dtype)
        if self.taps == 1:  # a matrix product: as layers.Dense
            y = (x.reshape(-1, x.shape[-1]) @ kernel[0]).reshape(*x.shape[:-1], -1)
        else:
            reach = self.dilation * (self.taps // 2)
            y = jax.lax.conv_general_dilated(x, kernel, (1,), [(reach, reach)], rhs_dilation=(self.dilation,),
                                             dimension_numbers=("NWC", "WIO", "NWC"))
        return checkpoint_name(y + bias[None, None], "layer")


def dense(channels: int, fan_in: int, dtype: Any, name: str) -> Dense:
    return Dense(channels, dtype=dtype, kernel_init=within(fan_in), bias_init=within(fan_in), name=name)


def within(fan_in: int) -> Callable[..., Array]:
    """The initialiser of PyTorch's layers: uniform within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


NETWORKS = {"diffwave": DiffWave}
