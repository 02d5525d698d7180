"""Builds the kind of data that a config describes."""
from ml_collections import ConfigDict

from diffusion.build.rules import require_key, sides
from diffusion.kinds.image import ImageSpec


def spec(config: ConfigDict) -> ImageSpec:
    """The kind of config.data. Raises ConfigError for impossible keys."""
    c = config.data
    require_key(c.channels >= 1, "data.channels", c.channels, "must be positive.")
    return ImageSpec(shape=(*sides(c.size), c.channels), flip=c.flip)
