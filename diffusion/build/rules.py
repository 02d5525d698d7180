"""Reads names and numbers of the config, and raises ConfigError for a wrong one."""
import math

from diffusion.config_values import nearest
from diffusion.errors import ConfigError


def lookup(table, key: str, name: str):
    """The entry `name` of a table or set. Raises ConfigError that lists the allowed values of `config.key`."""
    if name not in table:
        names = sorted(map(str, table))
        raise ConfigError(f"config.{key} = {name!r} is not known.{nearest(str(name), names)} "
                          f"It can be one of: {', '.join(names)}.")
    return table[name] if isinstance(table, dict) else name


def require_key(condition: bool, key: str, value, rule: str) -> None:
    """Raises ConfigError with the rule that config.key = value breaks, unless the condition holds."""
    if not condition:
        raise ConfigError(f"config.{key} = {value!r}: {rule}")


def sides(size: object) -> tuple[int, int]:
    """Height and width of config.data.size: one number for both, or two. Raises ConfigError for anything else."""
    found = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (tuple, list)) else ()
    require_key(len(found) == 2 and all(isinstance(n, int) and n >= 1 for n in found), "data.size", size, "is one "
                "positive whole number, or two: (height, width).")
    return found


def require_finite(section, name: str) -> None:
    """Raises ConfigError if a number of a section of the config is NaN or infinite."""
    for key, value in section.items():
        require_key(not isinstance(value, float) or math.isfinite(value), f"{name}.{key}", value,
                    "must be a finite number.")
