"""Images: uint8 [H, W, C] on disk, floats in [-1, 1] in a training step."""
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from diffusion.data import crops, non_leaking, sources
from diffusion.data.augment import random_flip, to_float
from diffusion.errors import DataError, require
from diffusion.io import images, pictures
from diffusion.kinds.base import Example, Record, check_stored
from diffusion.typing import Keys


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """Images of one height, width and number of channels."""
    shape: tuple[int, int, int]  # [H, W, C]
    flip: bool = False           # mirror each image with probability 1/2
    augment: float = 0.0         # probability of each transform of `data.non_leaking`, and the condition of that name
    crop: str = "none"           # how pictures get this size: none, or one of `data.crops`
    background: str = "white"    # behind transparent parts
    bounds = (-1.0, 1.0)
    levels = 256
    field, called, endings = "image", "image", pictures.ENDINGS
    scaling = ()
    rounding = "uint8: rint((clip(x, -1, 1) + 1) 127.5)"

    @property
    def stored(self) -> dict:
        """The bytes of an image, and a label."""
        return {"image": (self.shape, np.uint8), "label": ((), np.int32)}

    def check(self, source: Sequence, where: str) -> None:
        """Raises DataError if the first image is not uint8 of this shape."""
        if len(source):
            encoded = getattr(source, "encoded", False)
            if not encoded:
                check_stored(self, source[0], "image", where)
            source = [self.load(source[0], None)] if self.needs_load(encoded) else source
        sources.check_images(source, *self.shape)

    @property
    def augment_labels(self) -> int:
        """The numbers that say how an image is augmented."""
        return non_leaking.LABELS if self.augment else 0

    @property
    def draws(self) -> bool:
        """Whether training cuts at random places."""
        return self.crop in crops.DRAWS

    def needs_load(self, encoded: bool) -> bool:
        """Whether pictures are decoded, or cut and scaled."""
        return encoded or self.crop != "none"

    def load(self, raw: dict, rng: np.random.Generator | None) -> dict:
        """{"file": File, ...} or {"image": uint8 [h, w, C], ...} -> "image" uint8 [H, W, C]; with an rng at random
        where the crop is. Raises DataError for a picture that cannot be read, or is of another size without a crop."""
        rest = {name: value for name, value in raw.items() if name not in ("file", "image")}
        if file := raw.get("file"):
            where, size = file.where, self.shape[:2] if self.crop == "none" else None
            image = pictures.decoded(io.BytesIO(file.content), where, channels=self.shape[-1], size=size,
                                     background=self.background, whose="config.data.size is (see data.crop)")
        else:
            where, image = "An image", raw["image"]
            if self.crop in SCALED:
                require(image.shape[-1] in (1, 3, 4), "crop", self.crop, "scales pictures, of 1, 3 or 4 channels; "
                        "arrays of other channels can be cut, by center or random.")
                image = images.picture(image)
        if self.crop != "none":
            try:
                image = crops.CROPS[self.crop](image, self.shape[:2], rng)
            except DataError as error:
                raise DataError(f"{where} {error}") from None
        image = np.asarray(image)
        return {"image": image if image.ndim == 3 else image[..., None], **rest}

    def describe(self, raw: dict) -> str:
        """The size and mode of a picture as it is stored, in a text for people."""
        if file := raw.get("file"):
            with Image.open(io.BytesIO(file.content), formats=pictures.FORMATS) as image:
                return f"{image.height}x{image.width} {image.format} {image.mode}"
        return f"{pictures.by(raw['image'].shape)} array"

    def prepare(self, record: Record, keys: Callable[[str], Keys] | None = None) -> Example:
        """{"image": uint8 [B, H, W, C], ...} -> x0 in [-1, 1], and the record's other entries as conditions, with
        "augment" where the images are augmented."""
        x0 = to_float(record["image"])
        if self.flip and keys is not None:
            x0 = random_flip(keys("flip"), x0)
        cond = {name: value for name, value in record.items() if name != "image"}
        if self.augment and keys is not None:
            x0, cond["augment"] = non_leaking.augmented(x0, non_leaking.drawn(keys("augment")), self.augment)
        return Example(x0, cond)

    def finish(self, x0: np.ndarray) -> np.ndarray:
        """uint8 of samples in [-1, 1]."""
        return images.to_uint8(x0)

    def pictures(self, values: np.ndarray) -> np.ndarray:
        """Each image as the one picture of itself, uint8 [B, 1, H, W, C]."""
        return values[:, None]

    def write(self, folder: Path, batches: Iterable[np.ndarray], count: int, titles: Sequence[str] = ()) -> str:
        """PNG files, a grid, and samples.npz."""
        images.save_samples(folder, batches, count=count)
        return "grid.png and samples.npz"

    def preview(self, path: Path, samples: np.ndarray, titles: Sequence[str] = ()) -> None:
        """A grid of the images."""
        images.save_png(path, images.grid(samples))

    def pooled(self, x0: np.ndarray, size: int = 8) -> np.ndarray:
        """Averages over blocks, at most size x size for each channel: sees colours, layout and noise but no objects."""
        n, height, width, channels = x0.shape
        k = max(1, height // size)
        cut = x0[:, :height // k * k, :width // k * k]
        return cut.reshape(n, height // k, k, width // k, k, channels).mean((2, 4), dtype=np.float64).reshape(n, -1)


Crop = Literal["none", "center", "random", "adm", "adm_random", "edm", "box"]
SCALED = ("adm", "adm_random", "edm", "box")


def image(*, size: int | tuple[int, int] = 32,  # height and width of an image, pixels: one number, or both
          channels: int = 3,                    # of an image
          flip: bool = False,                   # mirror each image with probability 1/2
          augment: float = 0.0,                 # probability of each transform of EDM's non-leaking augmentation, whose
                                                # label the network is told (0.12 to 0.15); 0: none
          crop: Crop = "none",                  # how others get that size: cut in the middle (center) or, in training,
                                                # at random; first scaled as guided-diffusion does (adm, adm_random);
                                                # edm: by LANCZOS; box: stretched, as the published ImageNet 64
          background: Literal["white", "black", "gray"] = "white",  # behind transparent parts
          ) -> ImageSpec:
    """Images of bytes, scaled to [-1, 1] (Ho et al. 2020)."""
    require(channels >= 1, "channels", channels, "must be positive.")
    require(0 <= augment <= 1, "augment", augment, "is a probability (Karras et al. 2022: 0.12 for CIFAR-10).")
    require(not augment or min(sides(size)) > 1, "augment", augment, f"reflects images at their edges, which {size} "
            "pixels do not allow.")
    return ImageSpec(shape=(*sides(size), channels), flip=flip, augment=augment, crop=crop, background=background)


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width: one number for both, or two. Raises FieldError for anything else."""
    found = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (tuple, list)) else ()
    require(len(found) == 2 and all(isinstance(n, int) and n >= 1 for n in found), "size", size, "is one positive "
            "whole number, or two: (height, width).")
    return found


KINDS = {"image": image}
