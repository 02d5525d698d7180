"""A multilayer perceptron, for points and other small arrays."""
import math

import flax.linen as nn
import jax.numpy as jnp

from diffusion.core.conditions import Declared, labels
from diffusion.errors import require
from diffusion.networks.layers import check_channels, sinusoidal_embedding
from diffusion.typing import NO_COND, Array, Cond, Keys

SHARDING = ((r"/(in|layer\d+)/kernel$", ("fsdp", "tensor")), (r"/out/kernel$", ("tensor", "fsdp")))


class MLP(nn.Module):
    """Residual blocks of one layer on the flattened array, modulated by the time and the label.

    F(x, c_noise, cond): [B, ..., C] -> [B, ..., out_channels], float32. The last layer starts at zero.
    """
    channels: int = 128      # width of the layers
    depth: int = 4           # number of blocks
    num_classes: int = 0     # 0: unconditional; else cond["label"] is int32 [B] below it
    out_channels: int = 2
    sharding = SHARDING
    undecayed = (r"/labels/embedding$",)  # parameters that weight decay leaves alone, besides vectors
    spatial = None           # arrays of any rank

    @property
    def cond(self) -> Declared:
        """The label, if there are classes."""
        return labels(self.num_classes)

    def check(self, size: tuple[int, ...]) -> None:
        """Raises FieldError for fields that cannot be built."""
        check_channels(self.channels)
        require(self.depth >= 1, "depth", self.depth, "must be 1 or more.")

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Cond = NO_COND, keys: Keys | None = None) -> Array:
        emb = nn.swish(nn.Dense(self.channels, name="time1")(sinusoidal_embedding(c_noise, self.channels)))
        emb = nn.Dense(self.channels, name="time2")(emb)
        if self.num_classes:
            emb += nn.Embed(self.num_classes, self.channels, name="labels")(cond["label"])
        h = nn.Dense(self.channels, name="in")(x.reshape(len(x), -1))
        for i in range(self.depth):
            scale, shift = jnp.split(nn.Dense(2 * self.channels, name=f"modulation{i}")(nn.swish(emb)), 2, axis=-1)
            normed = nn.LayerNorm(name=f"norm{i}")(h)
            h += nn.Dense(self.channels, name=f"layer{i}")(nn.swish(normed * (1 + scale) + shift))
        places = math.prod(x.shape[1:-1])
        out = nn.Dense(places * self.out_channels, kernel_init=nn.initializers.zeros_init(), name="out")(nn.swish(h))
        return out.reshape(*x.shape[:-1], self.out_channels)


NETWORKS = {"mlp": MLP}
