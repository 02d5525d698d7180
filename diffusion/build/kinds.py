"""Builds the kind of data that a config describes."""
from ml_collections import ConfigDict

from diffusion import families
from diffusion.build.rules import require_key
from diffusion.config import override
from diffusion.data.sources import Source
from diffusion.errors import ConfigError
from diffusion.families import BY_NAME
from diffusion.kinds.base import Spec

COUNTED = -1  # config.network.num_classes: as many as the data have


def spec(config: ConfigDict) -> Spec:
    """The kind of config.data. Raises ConfigError for impossible keys."""
    return BY_NAME["kind"].make(config.data)


def source(config: ConfigDict) -> Source:
    """The data of config.data, unchecked. Raises DataError if they are missing."""
    return BY_NAME["data"].make(config.data, split=config.data.split, kind=spec(config),
                                embedder=families.user_function)


def measured(config: ConfigDict, *, assume: bool = False) -> ConfigDict:
    """The config with the keys that follow from the data: network.num_classes = -1, and those that its kind measures,
    such as data.mean. assume: usual values instead, without the data, for what depends on shapes alone."""
    found, values, opened = spec(config), {}, None
    if config.network.num_classes == COUNTED:
        opened = None if assume else source(config)
        values["network.num_classes"] = 0 if opened is None or opened.num_classes < 2 else opened.num_classes
    if not getattr(found, "measured", True):
        measured = found.assumed() if assume else found.measure(opened or source(config))
        values |= {f"data.{key}": value for key, value in measured.items()}
    return override(config, values) if values else config


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
