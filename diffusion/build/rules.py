"""Reading a name or a number of the config, and saying what is wrong with it."""
import math

from diffusion import config as config_lib
from diffusion.errors import ConfigError


def choose(table, key: str, name: str):
    """The entry `name` of a table or set, or a ConfigError that lists what `config.key` may be."""
    if name not in table:
        names = sorted(map(str, table))
        raise ConfigError(f"config.{key} = {name!r} is not known.{config_lib.nearest(str(name), names)} "
                          f"It can be one of: {', '.join(names)}.")
    return table[name] if isinstance(table, dict) else name


def need(condition: bool, key: str, value, rule: str) -> None:
    """A ConfigError with the rule that config.key = value breaks."""
    if not condition:
        raise ConfigError(f"config.{key} = {value!r}: {rule}")


def finite(section, name: str) -> None:
    """A ConfigError for a number of a section of the config that is none, or infinite."""
    for key, value in section.items():
        need(not isinstance(value, float) or math.isfinite(value), f"{name}.{key}", value, "must be a finite number.")
