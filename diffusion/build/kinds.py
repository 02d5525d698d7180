"""Builds the kind of data that a config describes."""
from ml_collections import ConfigDict

from diffusion.build.rules import require_key
from diffusion.config import override
from diffusion.data.sources import Source
from diffusion.errors import ConfigError
from diffusion.families import BY_NAME
from diffusion.kinds.base import Spec


def spec(config: ConfigDict) -> Spec:
    """The kind of config.data. Raises ConfigError for impossible keys."""
    return BY_NAME["kind"].make(config.data)


def source(config: ConfigDict) -> Source:
    """The data of config.data, unchecked. Raises DataError if they are missing."""
    return BY_NAME["data"].make(config.data, split=config.data.split)


def measured(config: ConfigDict, *, assume: bool = False) -> ConfigDict:
    """The config with the keys of its kind that are measured on the data, such as data.mean. assume: usual values
    instead, without the data, for what depends on shapes alone."""
    found = spec(config)
    if getattr(found, "measured", True):
        return config
    values = found.assumed() if assume else found.measure(source(config))
    return override(config, {f"data.{key}": value for key, value in values.items()})


def clips(config: ConfigDict) -> bool:
    """Whether x0 is clipped at each step of a chain: config.sample.clip, or, if that is None, whether data have bounds.
    Raises ConfigError for data without bounds that would be clipped."""
    c, bounds = config.sample, spec(config).bounds
    for key in ("clip", "dynamic_threshold"):
        require_key(bounds is not None or not c[key], f"sample.{key}", c[key], f"limits x0, but data.kind = "
                    f"{config.data.kind!r} has no bounds: leave it out.")
    return bounds is not None if c.clip is None else c.clip


def require_images(config: ConfigDict, what: str) -> None:
    """Raises ConfigError unless the data are images."""
    if (called := spec(config).called) != "image":
        raise ConfigError(f"{what} is for images, but data.kind = {config.data.kind!r} is of {called}s.")
