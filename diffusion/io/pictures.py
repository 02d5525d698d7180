"""Reads pictures from users: files of many kinds to uint8 arrays, by the same rules for data, tasks and metrics.

A picture is read as a viewer shows it: turned by its EXIF orientation, transparent parts on white (unless alpha is
requested as a fourth channel), palettes and CMYK as colours. 16 bits become 8 by x/257 (0 .. 65535 to 0 .. 255; a
camera's 10 of 16 bits stay as dark as stored). Floating-point levels and 32-bit integers have no agreed white, and
animations are not one picture: these are refused.
"""
import os
from collections import Counter
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusion.errors import DataError
from diffusion.io import npz
from diffusion.io.reading import expanded, ordinary, reading

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Other picture files: refused next to readable ones, since they would be left out silently.
_OTHER_ENDINGS = (".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".pgm", ".exr", ".npy")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow's others run programs, or are never data
MAX_PIXELS = 2**26  # if no other limit on the size is known; Pillow itself only warns
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_WIDE = ("I;16", "I;16L", "I;16B", "I;16N")


def read_picture(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 [N, H, W, C] of one picture, of all in a folder by name, or of `arr_0` in a .npz as `save_samples` writes.

    Raises DataError if there is no picture, or one cannot be read or does not have `shape` [H, W, C].
    """
    path = expanded(path)
    if path.is_dir():
        if not (files := [file for file in listed(path) if file.stem != "grid"]):  # `save_samples` also writes grid.png
            raise DataError(f"There are no pictures in {path}: files that end in {', '.join(ENDINGS)}.")
        return np.concatenate([read_picture(file, shape) for file in files])
    if path.suffix == ".npz":
        header = npz.headers(path).get("arr_0")
        if header is None:
            raise DataError(f"{path} has no array arr_0, but {', '.join(npz.headers(path)) or 'none'}.")
        if header.dtype != np.uint8 or len(header.shape) != 4 or not header.shape[0]:
            raise DataError(f"{path}: arr_0 must be uint8 [N, H, W, C] with N > 0, got {header}.")
        if header.shape[1:] != shape:
            raise DataError(f"{path} is {by(header.shape[1:])} (height x width x channels), but the model's images "
                            f"are {by(shape)}. Crop or scale it to that.")
        return npz.read_npz(path, ["arr_0"])["arr_0"]
    return decode(path, channels=shape[-1], size=shape[:2], whose="the images of this model are")[None]


def read_mask(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """bool [H, W, 1], true where the picture is white or transparent. Raises DataError if it also has greys."""
    levels = decode(path, channels=1)
    if levels.shape[:2] != shape[:2]:
        raise DataError(f"The mask {path} is {by(levels.shape[:2])} (height x width), but the images of this model are "
                        f"{by(shape[:2])}. Scale it without smoothing, or draw it anew.")
    if np.any((levels > 16) & (levels < 239)):
        raise DataError(f"The mask {path} has greys in it. White is drawn anew, black is kept: use only these two, in "
                        "a PNG, since a JPEG blurs edges.")
    return levels > 127


def listed(folder: Path, *, below: bool = False) -> list[Path]:
    """The picture files in a folder, or `below` it at any depth, in the order of their paths. Raises DataError if some
    are of an unsupported kind."""
    files = sorted(p for p in (folder.rglob("*") if below else folder.iterdir()) if not p.is_dir())
    if strange := [p for p in files if p.suffix.lower() in _OTHER_ENDINGS]:
        raise DataError(f"{strange[0]} would be left out: pictures are read from files that end in "
                        f"{', '.join(ENDINGS)}. Convert it, or move it away.")
    return [p for p in files if p.suffix.lower() in ENDINGS]


def opened(file: str | os.PathLike | IO[bytes], where: object = None, *, size: tuple[int, int] | None = None,
           whose: str = "the others are") -> Image.Image:
    """The decoded picture of a file, turned by its EXIF orientation, in its own colours.

    where: its name in errors, by default the file. size: its required height and width, checked before anything is
    decoded, with `whose` in the error. Raises DataError for a file that is unreadable, too large, or animated.
    """
    if not hasattr(file, "read"):
        file = ordinary(file)
        where = where or file
    with reading(f"{where} is not a picture that can be read, or is damaged", "Replace or remove it."):
        try:
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise DataError(f"{where} is not a picture that can be read, or is damaged: it has none of the formats "
                            f"{', '.join(FORMATS)}. Replace or remove it.") from error
        with image:
            width, height = image.size
            if size is not None and sorted(size) != sorted((height, width)):
                raise _wrong_size(where, (height, width), size, whose)
            if size is None and width * height > MAX_PIXELS:
                raise DataError(f"{where} claims {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}: it "
                                "is damaged, or made to fill the memory. Crop or scale it.")
            if getattr(image, "is_animated", False) and image.format != "MPO":  # a JPEG with a preview
                raise DataError(f"{where} is an animation of {image.n_frames} pictures. Save each as a file.")
            image.load()
            wide = image.mode == "I" and image.format in ("PNG", "PPM")  # the mode of older Pillows for 16 bits
            turned = image.convert("I;16") if wide else image
            ImageOps.exif_transpose(turned, in_place=True)  # without a copy of those that are not turned
    if size is not None and turned.size != (size[1], size[0]):
        raise _wrong_size(where, turned.size[::-1], size, whose)
    return turned


def decode(file: str | os.PathLike | IO[bytes], where: object = None, *, channels: int, **options) -> np.ndarray:
    """`decoded` as uint8 [H, W, C]."""
    found = np.asarray(decoded(file, where, channels=channels, **options))
    return found[..., None] if found.ndim == 2 else found


def decoded(file: str | os.PathLike | IO[bytes], where: object = None, *, channels: int,
            size: tuple[int, int] | None = None, whose: str = "the others are", background: str = "white",
            seen: Counter | None = None) -> Image.Image:
    """The picture of a file, in 8 bits: 1 channel grey, 3 RGB, 4 with alpha.

    background: the colour behind transparent parts, if alpha is not requested. seen: counts conversions that the owner
    may not expect. Other arguments and errors as for `opened`.
    """
    if channels not in MODES:
        raise DataError(f"A picture has 1, 3 or 4 channels, not the {channels} of config.data.channels.")
    image, mode = opened(file, where, size=size, whose=whose), MODES[channels]
    if image.mode != mode or image.has_transparency_data:
        seen = Counter() if seen is None else seen
        with reading(f"{where or file} cannot be made {mode}", "Convert it."):
            image = _eight_bits(image, where or file, seen)
            image = (image if channels == 4 else _opaque(image, background, seen)).convert(mode)
    return image


def by(shape: tuple[int, ...]) -> str:
    """8x8x3."""
    return "x".join(map(str, shape))


def _eight_bits(image: Image.Image, where: object, seen: Counter) -> Image.Image:
    if image.mode in ("F", "I"):
        raise DataError(f"{where} has {'floating-point' if image.mode == 'F' else '32-bit'} levels, whose white "
                        "is unknown. Scale it to 0 .. 255 and save it as an 8-bit PNG.")
    if image.mode not in _WIDE:
        return image
    seen["of 16 bits, which are now 8"] += 1
    levels = np.asarray(image).astype(np.int32)
    grey = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if (hidden := image.info.get("transparency")) is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(levels == hidden, 0, 255).astype(np.uint8))))


def _opaque(image: Image.Image, background: str, seen: Counter) -> Image.Image:
    """The picture on a background, by default white, as viewers and img2dataset show it."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    if image.getextrema()[3][0] < 255:
        seen[f"with transparent parts, which are now {background}"] += 1
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image


def _wrong_size(where: object, found: tuple[int, int], size: tuple[int, int], whose: str) -> DataError:
    return DataError(f"{where} is {by(found)} (height x width), but {whose} {by(size)}. Crop or scale it to that.")
