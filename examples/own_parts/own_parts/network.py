"""A network: residual convolutions at the images' own size, told the time by an embedding."""
import flax.linen as nn
import jax.numpy as jnp

from diffusion.core.conditions import labels
from diffusion.errors import require
from diffusion.networks.layers import sinusoidal_embedding


class PlainNet(nn.Module):
    """F(x, c_noise, cond): [B, H, W, C] -> [B, H, W, out_channels]. Build gives `num_classes` and `out_channels`."""
    channels: int = 32     # of the feature maps
    layers: int = 4        # residual convolutions
    num_classes: int = 0
    out_channels: int = 3

    @property
    def cond(self):
        """The conditions that the network takes: the label, if there are classes."""
        return labels(self.num_classes)

    def check(self, size: tuple[int, int]) -> None:
        """Called before anything is built. Raises FieldError, which names the field."""
        require(self.layers >= 1, "layers", self.layers, "must be 1 or more.")

    @nn.compact
    def __call__(self, x, c_noise, cond=None, keys=None):
        told = nn.swish(nn.Dense(self.channels)(sinusoidal_embedding(c_noise, self.channels)))
        if self.num_classes:
            told += nn.Embed(self.num_classes, self.channels)(cond["label"])
        h = nn.Conv(self.channels, (3, 3))(x)
        for _ in range(self.layers):
            h += nn.Conv(self.channels, (3, 3))(nn.swish(h + told[:, None, None]))
        return nn.Conv(self.out_channels, (3, 3), kernel_init=nn.initializers.zeros)(nn.swish(h)).astype(jnp.float32)


NETWORKS = {"plain": PlainNet}
