"""Durations and intervals as strings with a unit: "2000 steps", "10M images", "5 epochs"."""
import math
import re

from diffusion.errors import ConfigError

_PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:e[0-9]+)?)\s*([kMB]?)\s*(steps?|images?|epochs?)\s*")
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


def to_images(text: str, *, key: str, batch_size: int, epoch_size: int | None) -> float:
    """The number of training images that `text` stands for; `key` is the config key that errors name.

    `epoch_size` is the number of examples of the data set, None where it is not known.
    Raises ConfigError on anything else than NUMBER[k|M|B] steps|images|epochs.
    """
    match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
    if not match:
        raise ConfigError(f"config.{key} = {text!r} is not a duration. Write a number and a unit: '2000 steps', "
                          "'10M images' or '5 epochs' (k, M and B stand for thousand, million and billion).")
    number, factor, unit = match.groups()
    count = float(number) * _FACTORS[factor]
    if unit.startswith("step"):
        return count * batch_size
    if unit.startswith("epoch"):
        if epoch_size is None:
            raise ConfigError(f"config.{key} = {text!r} needs a data set of known size. Use steps or images.")
        return count * epoch_size
    return count


def to_steps(text: str, *, key: str, batch_size: int, epoch_size: int | None) -> int:
    """The number of training steps, rounded up to a whole one; see `to_images`."""
    images = to_images(text, key=key, batch_size=batch_size, epoch_size=epoch_size)
    return math.ceil(images / batch_size - 1e-9)  # 1e-9: "0.7 epochs" of 10 images is 7 images, not 7.000000000000001
