"""Allowed settings of other projects: each value's type and size, checked before anything is built from it.

A table {name: Field} describes a file of settings or a command line; `read_fields` returns all values, given and
default, or names an invalid one. The limits are far above any published model and far below the size of memory.
"""
import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusion.errors import CheckpointError, shown

SIDE, CHANNELS, LEVELS, BLOCKS = 4096, 2**16, 10, 32  # pixels, channels of a layer, resolutions, blocks of each
LABELS, STEPS = 10**6, 10**5                          # classes, times of a noise process


@dataclass(frozen=True)
class Field:
    """One setting: its default, a function that reads a value (ValueError: not allowed), the allowed values as text."""
    default: Any
    read: Callable[[Any], Any]
    words: str


def whole(default: int | None, least: int, most: int) -> Field:
    """A whole number, not a float or a boolean."""
    def read(value):
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError
        return int(value)
    return Field(default, read, f"a whole number in {least} .. {most}")


def number(default: float, least: float = -math.inf, most: float = math.inf) -> Field:
    """A finite number, as a float."""
    def read(value):
        if not isinstance(value, numbers.Real) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError
        if not math.isfinite(value := float(value)):  # or OverflowError, for whole numbers beyond all floats
            raise ValueError
        return value
    return Field(default, read, "a number" if (least, most) == (-math.inf, math.inf)
                 else f"a number of at least {least:g}" if most == math.inf else f"a number in {least:g} .. {most:g}")


def flag(default: bool) -> Field:
    """True or false."""
    return choice(default, (True, False), "true or false")


def text(default: str) -> Field:
    """A string."""
    def read(value):
        if not isinstance(value, str):
            raise ValueError
        return value
    return Field(default, read, "a string")


def only(value: Any, why: str) -> Field:
    """The only supported value, and the reason."""
    return choice(value, (value,), f"{'null' if value is None else value} only: {why}")


def idle() -> Field:
    """A setting that has no effect here, whatever its value."""
    return Field(None, lambda value: value, "anything")


def choice(default: Any, values: Iterable, words: str = "") -> Field:
    """One of a few values. The keys of a mapping are read as its values."""
    table = [(key, values[key] if isinstance(values, Mapping) else key) for key in values]

    def read(value):
        for key, meaning in table:
            if type(value) is type(key) and value == key:
                return meaning
        raise ValueError
    return Field(default, read, words or "one of: " + ", ".join("null" if key is None else str(key)
                                                                for key, _ in table))


def optional(field: Field) -> Field:
    """That, or null."""
    return Field(field.default, lambda value: None if value is None else field.read(value), f"{field.words}, or null")


def several(default: tuple, of: Field, most: int, least: int = 1) -> Field:
    """A list, read as a tuple."""
    def read(value):
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            raise ValueError
        return tuple(of.read(item) for item in value)
    return Field(default, read, f"a list of {least} to {most}, each {of.words}")


def read_fields(settings: Mapping[str, Any], fields: Mapping[str, Field], where: str) -> dict[str, Any]:
    """The value of every field. Raises CheckpointError that names a setting with an invalid value."""
    return {key: read_one(settings.get(key, field.default), field, f"{where}: {key}") for key, field in fields.items()}


def read_one(value: Any, field: Field, name: str) -> Any:
    """The value of one field. `name` is its setting and place, for the CheckpointError raised for an invalid value."""
    try:
        return field.read(value)
    except (ValueError, ArithmeticError, RecursionError):
        raise CheckpointError(f"{name} = {shown(value)} is not supported. It can be {field.words}.") from None


def named(value: Any) -> str:
    """`shown` without quotes, for the name of a class, a setting or a flag."""
    return shown(value).strip("'\"")


def own(settings: Mapping[str, Any], fields: Mapping[str, Field], where: str, name: str) -> dict[str, Any]:
    """The settings that the class `name` has. A warning names all others, which diffusers also keeps and ignores; keys
    that begin with _ are diffusers' own notes."""
    others = sorted(key for key in settings if key not in fields and not key.startswith("_"))
    if others:
        warnings.warn(f"{where}: ignored, as in diffusers, since a {name} has no such settings: "
                      f"{named(', '.join(others))}.", stacklevel=2)
    return {key: value for key, value in settings.items() if key in fields}
