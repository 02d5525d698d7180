"""A network that takes four conditions, and data that hold three of them, for test_conditions.py."""
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion.core.conditions import Condition, labels
from diffusion.data import sources
from diffusion.networks.layers import sinusoidal_embedding


class Told(nn.Module):
    """A network of a label, a vector that may be hidden, a number that is always given, and one with a default."""
    channels: int = 8
    num_classes: int = 0
    out_channels: int = 1

    @property
    def cond(self):
        return labels(self.num_classes) | {
            "vector": Condition(shape=(3,), null=0.0), "kept": Condition(), "augment": Condition(shape=(2,), default=0)}

    @nn.compact
    def __call__(self, x, c_noise, cond, keys=None):
        emb = sinusoidal_embedding(c_noise, self.channels)
        for name in ("vector", "kept", "augment"):
            emb += nn.Dense(self.channels, name=name)(cond[name].reshape(len(x), -1))
        if self.num_classes:
            emb += nn.Embed(self.num_classes, self.channels, name="label")(cond["label"])
        h = nn.Conv(self.channels, (3, 3))(x) + nn.swish(emb)[:, None, None]
        return nn.Conv(self.out_channels, (3, 3))(nn.swish(h))


class Rich:
    """The digits, each with a vector and a number."""
    num_classes = 10

    def __init__(self):
        self.digits = sources.digits("train")

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return self.digits[i] | {"vector": np.full(3, i / 40, np.float32), "kept": np.float32(i % 4)}


def rich(*, split: str) -> Rich:
    """Its source, as a member of the family data."""
    return Rich()


def weights(params):
    """Random ones of the same shapes."""
    import jax
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32), params)
