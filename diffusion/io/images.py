"""Converts images to bytes, grids and files."""
import itertools
import math
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from diffusion.errors import CheckpointError, ConfigError, DivergedError
from diffusion.io.files import atomic_write, cannot_write, check_can_be_written
from diffusion.typing import Array

GRID_IMAGES = 100  # at most this many samples of a set are shown in its grid.png
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


def check_samples_folder(folder: str | os.PathLike) -> None:
    """Raises ConfigError if the folder already holds samples (two sets must not be mixed, nor the first one lost), or
    cannot be a folder."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; samples need a folder. Give another --out.")
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    found = sorted(n for n in names if re.fullmatch(r"\d{6,}\.png|grid\.png|samples\.npz", n))
    if found:
        raise ConfigError(f"{folder} holds samples already ({found[0]}{', ...' if len(found) > 1 else ''}). Give "
                          "another --out, or move or delete that folder.")
    check_can_be_written(folder / "samples.npz")


def save_samples(folder: str | os.PathLike, images: np.ndarray | Iterable[np.ndarray], first_index: int = 0, *,
                 count: int | None = None) -> None:
    """Writes image i as `{first_index + i:06d}.png`, the first 100 as grid.png, then all as samples.npz.

    images: uint8 [N, H, W, C], or batches [b, H, W, C], `count` images in all, each batch written as it comes and not
    kept. samples.npz holds `arr_0`, uint8 [N, H, W, C], as the field's evaluators read it, and marks the set as whole.
    `check_samples_folder` refuses a folder with samples before the first batch is drawn. Raises CheckpointError if the
    disk is full.
    """
    folder = Path(folder)
    check_samples_folder(folder)
    if isinstance(images, np.ndarray):
        images, count = [images], len(images)
    batches, index, shown = iter(images), itertools.count(first_index), []
    first = next(batches)  # drawn before the folder is made

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as array:
            np.lib.format.write_array_header_1_0(
                array, {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape[1:])})
            for batch in itertools.chain([first], batches):
                for image in batch:
                    path = folder / f"{next(index):06d}.png"
                    try:
                        picture(image).save(path)  # not atomic: tens of thousands of fsyncs take minutes
                    except OSError as error:
                        raise CheckpointError(cannot_write(path, error)) from error
                shown.extend(batch[:GRID_IMAGES - len(shown)])
                array.write(np.ascontiguousarray(batch).tobytes())
        if (written := next(index) - first_index) != count:
            raise ValueError(f"{written} images came, but {count} were announced")
        save_png(folder / "grid.png", grid(np.stack(shown)))

    atomic_write(folder / "samples.npz", write)


def picture(image: np.ndarray) -> Image.Image:
    """uint8 [H, W] or [H, W, C] -> a PIL image: grey, RGB or RGBA for 1, 3 or 4 channels; otherwise by `visible`."""
    if image.ndim == 3 and image.shape[-1] not in (3, 4):
        image = visible(image)[..., 0]
    return Image.fromarray(image)
