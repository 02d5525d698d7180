"""Images: uint8 [H, W, C] on disk, floats in [-1, 1] in a training step."""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from diffusion.data import sources
from diffusion.data.augment import random_flip, to_float
from diffusion.errors import DataError, require
from diffusion.io import images
from diffusion.io.pictures import by
from diffusion.kinds.base import Example, Record, check_stored
from diffusion.typing import Keys


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """Images of one height, width and number of channels."""
    shape: tuple[int, int, int]  # [H, W, C]
    flip: bool = False           # mirror each image with probability 1/2
    crop: str = "none"           # how larger images are cut: none, center, random
    bounds = (-1.0, 1.0)
    levels = 256
    called = "image"

    @property
    def stored(self) -> dict:
        """The bytes of an image, and a label."""
        return {"image": (self.shape, np.uint8), "label": ((), np.int32)}

    def check(self, source: Sequence, where: str) -> None:
        """Raises DataError if the first image is not uint8 of this shape."""
        if len(source):
            check_stored(self, source[0], "image", where)
            source = [self.load(source[0], None)] if self.load else source
        sources.check_images(source, *self.shape)

    @property
    def draws(self) -> bool:
        """Whether training cuts at random places."""
        return self.crop == "random"

    @property
    def load(self) -> Callable[[dict, np.random.Generator | None], dict] | None:
        """Cuts larger images, at random with an rng and otherwise in the middle; None: images are used as they are."""
        return None if self.crop == "none" else self._cut

    def _cut(self, raw: dict, rng: np.random.Generator | None) -> dict:
        image, (height, width) = raw["image"], self.shape[:2]
        spare = image.shape[0] - height, image.shape[1] - width
        if min(spare) < 0:
            raise DataError(f"An image is {by(image.shape[:2])} (height x width), smaller than the {height}x{width} of "
                            "config.data.size that are to be cut from it. Remove such images, or enlarge them.")
        y, x = (n // 2 for n in spare) if rng is None or not self.draws else (rng.integers(n + 1) for n in spare)
        return {**raw, "image": image[y:y + height, x:x + width]}

    def prepare(self, record: Record, keys: Callable[[str], Keys] | None = None) -> Example:
        """{"image": uint8 [B, H, W, C], ...} -> x0 in [-1, 1], and the record's other entries as conditions."""
        x0 = to_float(record["image"])
        if self.flip and keys is not None:
            x0 = random_flip(keys("flip"), x0)
        return Example(x0, {name: value for name, value in record.items() if name != "image"})

    def finish(self, x0: np.ndarray) -> np.ndarray:
        """uint8 of samples in [-1, 1]."""
        return images.to_uint8(x0)

    def write(self, folder: Path, batches: Iterable[np.ndarray], count: int) -> str:
        """PNG files, a grid, and samples.npz."""
        images.save_samples(folder, batches, count=count)
        return "grid.png and samples.npz"

    def preview(self, path: Path, samples: np.ndarray) -> None:
        """A grid of the images."""
        images.save_png(path, images.grid(samples))


def image(*, size: int | tuple[int, int] = 32,  # height and width of an image, pixels: one number, or both
          channels: int = 3,                    # of an image
          flip: bool = False,                   # mirror each image with probability 1/2
          crop: Literal["none", "center", "random"] = "none",  # cut larger images to `size`: in the middle, or, in
                                                # training, at random
          ) -> ImageSpec:
    """Images of bytes, scaled to [-1, 1] (Ho et al. 2020)."""
    require(channels >= 1, "channels", channels, "must be positive.")
    return ImageSpec(shape=(*sides(size), channels), flip=flip, crop=crop)


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width: one number for both, or two. Raises FieldError for anything else."""
    found = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (tuple, list)) else ()
    require(len(found) == 2 and all(isinstance(n, int) and n >= 1 for n in found), "size", size, "is one positive "
            "whole number, or two: (height, width).")
    return found


KINDS = {"image": image}
