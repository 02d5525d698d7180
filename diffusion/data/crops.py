"""Ways to cut and scale a picture to one size, each with the pixels of the authors who made published sets by it."""
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from diffusion.errors import DataError

Size = tuple[int, int]  # height, width


def cut(image: Image.Image | np.ndarray, size: Size, rng: np.random.Generator | None = None) -> np.ndarray:
    """A part of the picture as it is: at random with an rng, otherwise the middle. Raises DataError for a smaller
    picture."""
    image, (height, width) = np.asarray(image), size
    spare = image.shape[0] - height, image.shape[1] - width
    if min(spare) < 0:
        raise DataError(f"is {image.shape[0]}x{image.shape[1]} (height x width), smaller than the {height}x{width} of "
                        "config.data.size that are to be cut from it. Remove such images, or choose data.crop=adm, "
                        "which enlarges them.")
    y, x = (n // 2 for n in spare) if rng is None else (rng.integers(n + 1) for n in spare)
    return image[y:y + height, x:x + width]


def adm(image: Image.Image, size: Size, rng: np.random.Generator | None = None) -> np.ndarray:
    """Scaled until it just covers `size`, then the middle: halved by BOX while it is twice as large, the rest by
    BICUBIC (Dhariwal & Nichol 2021, guided-diffusion's `center_crop_arr`)."""
    return cut(_covering(image, size), size)


def adm_random(image: Image.Image, size: Size, rng: np.random.Generator | None = None) -> np.ndarray:
    """As `adm`, but scaled to up to 1.25 times the size, by a random whole number of pixels of the shorter side, and
    cut at random (guided-diffusion's `random_crop_arr`, with fractions 0.8 .. 1). Without an rng: `adm`."""
    if rng is None:
        return adm(image, size)
    shorter = min(size)
    drawn = int(rng.integers(shorter, math.ceil(shorter / 0.8) + 1))
    larger = tuple(max(side, round(side * drawn / shorter)) for side in size)
    return cut(_covering(image, larger), size, rng)


def _covering(image: Image.Image, size: Size) -> Image.Image:
    height, width = size
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def edm(image: Image.Image, size: Size, rng: np.random.Generator | None = None) -> np.ndarray:
    """The largest middle part of the shape of `size`, scaled to it by LANCZOS (Karras et al. 2022, `center-crop` of
    EDM's dataset_tool)."""
    height, width = size
    h = min(image.height, image.width * height // width)
    w = min(image.width, image.height * width // height)
    top, left = (image.height - h) // 2, (image.width - w) // 2
    return np.asarray(image.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.LANCZOS))


def box(image: Image.Image, size: Size, rng: np.random.Generator | None = None) -> np.ndarray:
    """The whole picture, stretched to `size` by BOX (Chrabaszcz et al. 2017, "A Downsampled Variant of ImageNet", which
    published ImageNet 32x32 and 64x64 so)."""
    return np.asarray(image.resize(size[::-1], Image.Resampling.BOX))


CROPS: dict[str, Callable] = {"center": lambda image, size, rng=None: cut(image, size), "random": cut, "adm": adm,
                              "adm_random": adm_random, "edm": edm, "box": box}
DRAWS = {"random", "adm_random"}  # those that use the rng
