"""Images: uint8 [H, W, C] on disk, floats in [-1, 1] in a training step."""
from collections.abc import Callable
from dataclasses import dataclass

from diffusion.data.augment import random_flip, to_float
from diffusion.kinds.base import Example, Record
from diffusion.typing import Keys


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """Images of one height, width and number of channels."""
    shape: tuple[int, int, int]  # [H, W, C]
    flip: bool = False           # mirror each image with probability 1/2

    def prepare(self, record: Record, keys: Callable[[str], Keys] | None = None) -> Example:
        """{"image": uint8 [B, H, W, C], ...} -> x0 in [-1, 1], and the record's other entries as conditions."""
        x0 = to_float(record["image"])
        if self.flip and keys is not None:
            x0 = random_flip(keys("flip"), x0)
        return Example(x0, {name: value for name, value in record.items() if name != "image"})
