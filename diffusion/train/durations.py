"""Durations and intervals as strings with a unit: "2000 steps", "10M images", "5 epochs"."""
import math
import re
from fractions import Fraction

from diffusion.errors import ConfigError

_PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:e[0-9]+)?)\s*([kMB]?)\s*(steps?|images?|epochs?)\s*")
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
_MAX_STEPS = 2**31 - 1  # the step is an int32


def _parse(text: str, key: str, batch_size: int, epoch_size: int | None) -> Fraction:
    """The number of images, exactly: "0.7 epochs" of 10 images is 7, not 7.000000000000001."""
    match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
    if not match:
        raise ConfigError(f"config.{key} = {text!r} is not a duration. Write a number and a unit: '2000 steps', "
                          "'10M images' or '5 epochs' (k, M and B stand for thousand, million and billion).")
    number, factor, unit = match.groups()
    if unit.startswith("epoch") and epoch_size is None:
        raise ConfigError(f"config.{key} = {text!r} needs a data set of known size. Use steps or images.")
    size = {"s": batch_size, "i": 1, "e": epoch_size}[unit[0]]
    if float(number) * _FACTORS[factor] * size > _MAX_STEPS * batch_size:  # floats: exact 1e999999999 is slow
        raise ConfigError(f"config.{key} = {text!r} is more than the {_MAX_STEPS} steps that a run can count.")
    return Fraction(number) * _FACTORS[factor] * size


def to_images(text: str, *, key: str, batch_size: int, epoch_size: int | None) -> float:
    """The number of training images that `text` stands for; `key` is the config key that errors name.

    `epoch_size` is the number of examples of the data set, None if unknown. Raises ConfigError on anything other than
    NUMBER[k|M|B] steps|images|epochs, and on more than 2^31 - 1 steps.
    """
    return float(_parse(text, key, batch_size, epoch_size))


def to_steps(text: str, *, key: str, batch_size: int, epoch_size: int | None) -> int:
    """The number of training steps, rounded up to a whole one; see `to_images`."""
    return math.ceil(_parse(text, key, batch_size, epoch_size) / batch_size)
