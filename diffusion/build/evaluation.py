"""Checks that the extractor of config.evaluate takes the data of config.data."""
from typing import Any

from ml_collections import ConfigDict

from diffusion.build.kinds import spec
from diffusion.build.rules import require_key
from diffusion.families import BY_NAME


def extractor(config: ConfigDict) -> Any:
    """The extractor that config.evaluate names, without its weights. Raises ConfigError if it takes other data."""
    c, data = config.evaluate, config.data
    found = BY_NAME["extractor"].member(c.extractor).make
    require_key(data.kind in found.takes, "evaluate.extractor", c.extractor, "takes data.kind = "
                f"{' or '.join(map(repr, found.takes))}, but this model's is {data.kind!r}.")
    channels = spec(config).shape[-1]
    require_key(not found.channels or channels in found.channels, "evaluate.extractor", c.extractor, "takes data of "
                f"{' or '.join(map(str, found.channels))} channels, but this model's have {channels}.")
    return found
