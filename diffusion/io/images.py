"""Converts images to bytes, grids and files."""
import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.errors import DivergedError
from diffusion.io.files import atomic_write
from diffusion.io.sample_set import save_set
from diffusion.typing import Array

_MARGIN_GREY = 225
_LARGEST = 2048    # pixels; a larger grid is enlarged less


def to_uint8(x: Array) -> np.ndarray:
    """[-1, 1] -> 0..255: (x + 1) 127.5, clipped and rounded to the nearest; the inverse of u / 127.5 - 1.

    x: float [...], uint8 [...] returned. Raises DivergedError if a value is NaN.
    """
    x = np.asarray(x, np.float32)
    if np.isnan(x).any():
        bad = int(np.isnan(x.reshape(len(x), -1)).any(axis=1).sum()) if x.ndim else 1
        raise DivergedError(f"{bad} of {len(x) if x.ndim else 1} sampled images contain NaN. Sample with "
                            "config.network.dtype=float32 or with an earlier checkpoint (--checkpoint=STEP).")
    return np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def grid(images: np.ndarray, *, columns: int | None = None, margin: int = 4, min_tile: int = 40) -> np.ndarray:
    """One picture of all images, row by row, with a light margin around each tile.

    images: uint8 [N, H, W, C], shown by `visible`. Returns uint8 [h, w, 3]. Images smaller than min_tile pixels are
    enlarged by a whole factor, each pixel to a square, or by less if the grid would exceed 2048 pixels. columns: nearly
    square if None.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.uint8 or not images.size:
        raise ValueError(f"expected uint8 [N, H, W, C] with N > 0, got {images.dtype} {list(images.shape)}")
    images = visible(images)
    n, height, width, channels = images.shape
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    rows = math.ceil(n / columns)
    fits = min((_LARGEST // columns - margin) // width, (_LARGEST // rows - margin) // height)
    factor = max(1, min(math.ceil(min_tile / min(height, width)), fits))
    tiles = images.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = height * factor, width * factor
    out = np.full((rows * (height + margin) + margin, columns * (width + margin) + margin, 3), _MARGIN_GREY, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (i // columns) * (height + margin) + margin, (i % columns) * (width + margin) + margin
        out[y:y + height, x:x + width] = tile
    return out


def visible(images: np.ndarray) -> np.ndarray:
    """uint8 [..., H, W, C] -> viewable [..., H, W, 1 or 3]: four channels are RGBA, put on white; other numbers but
    one and three become grey images of the channels from left to right, [..., H, C W, 1]."""
    channels = images.shape[-1]
    if channels == 4:
        alpha = images[..., 3:] / 255
        return np.rint(images[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    if channels in (1, 3):
        return images
    return np.concatenate(np.split(images, channels, axis=-1), axis=-2)


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes `picture` of uint8 [H, W] or [H, W, C], whole or not at all. Raises CheckpointError if it cannot."""
    atomic_write(path, lambda file: picture(image).save(file, "PNG"))


def save_samples(folder: str | os.PathLike, images: np.ndarray | Iterable[np.ndarray], first_index: int = 0, *,
                 count: int | None = None) -> None:
    """Writes image i as `{first_index + i:06d}.png`, the first 100 as grid.png, then all as samples.npz, by `save_set`.

    images: uint8 [N, H, W, C], or batches [b, H, W, C], `count` images in all.
    """
    if isinstance(images, np.ndarray):
        images, count = [images], len(images)
    save_set(folder, images, count=count, first_index=first_index, ending=".png",
             save=lambda path, image: picture(image).save(path),
             overview=lambda shown: save_png(Path(folder) / "grid.png", grid(shown)))


def picture(image: np.ndarray) -> Image.Image:
    """uint8 [H, W] or [H, W, C] -> a PIL image: grey, RGB or RGBA for 1, 3 or 4 channels; otherwise by `visible`."""
    if image.ndim == 3 and image.shape[-1] not in (3, 4):
        image = visible(image)[..., 0]
    return Image.fromarray(image)
