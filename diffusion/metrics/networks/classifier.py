"""A small residual network that classifies pictures: the features of metrics for data that no published network knows.
"""
import flax.linen as nn
import jax

from diffusion.typing import Array, Keys

FEATURES = 64  # of the penultimate layer: few, so that some hundred examples give a covariance of full rank
SMALL = 4      # height and width of the last map are at most this


class Block(nn.Module):
    """x + conv(norm(conv(norm(x)))), pre-activation (He et al. 2016, "Identity Mappings"), with group normalisation, so
    that an example's features do not depend on its batch."""
    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = x
        for _ in range(2):
            h = nn.swish(nn.GroupNorm(num_groups=8)(h))
            h = nn.Conv(self.channels, (3, 3))(h)
        return (x if x.shape[-1] == self.channels else nn.Conv(self.channels, (1, 1))(x)) + h


class Classifier(nn.Module):
    """(pictures float [B, h, w, c], keys [B] of dropout or None) -> (features [B, FEATURES], logits [B, classes]).

    Large pictures are first halved by a convolution; then each level has one block and halves what is longer than
    SMALL. The last map is not averaged, since the place in it matters: in a spectrogram it is the frequency. Features
    are normalised over their layer, which bounds them by sqrt(FEATURES).
    """
    classes: int
    channels: int = 16   # of the first level; doubled at each, up to four times as many
    dropout: float = 0.3  # of the last map

    @nn.compact
    def __call__(self, x: Array, keys: Keys | None = None) -> tuple[Array, Array]:
        strides = tuple(2 if n >= 48 else 1 for n in x.shape[1:3])
        x = nn.Conv(self.channels, (3, 3), strides=strides)(x)
        level = 0
        while True:
            x = Block(self.channels * min(2**level, 4))(x)
            halved = tuple(2 if n > SMALL else 1 for n in x.shape[1:3])
            if halved == (1, 1):
                break
            x = nn.avg_pool(x, halved, strides=halved, padding="SAME")
            level += 1
        x = nn.swish(nn.GroupNorm(num_groups=8)(x)).reshape(len(x), -1)
        if keys is not None:
            keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, x.shape[1:]))(keys)
            x = x * keep / (1 - self.dropout)
        features = nn.swish(nn.LayerNorm(use_scale=False, use_bias=False)(nn.Dense(FEATURES)(x)))
        return features, nn.Dense(self.classes)(features)
