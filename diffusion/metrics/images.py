"""Sets of images on disk: a folder of image files, or an npz as evaluators exchange them."""
import queue
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
BATCH = 200


def open_images(path: Path) -> tuple[int, Iterator[np.ndarray]]:
    """(number, batches uint8 [b, H, W, 3 or 1]) of a folder (all its image files in the order of their paths) or of an
    npz with arr_0 uint8 [N, H, W, C]. Raises DataError for what is neither, or cannot be read, naming the file."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.name != "grid.png")
        if not files:
            raise DataError(f"{path} has no images ({', '.join(SUFFIXES)}).")
        return len(files), ahead(read(files[i:i + BATCH]) for i in range(0, len(files), BATCH))
    if path.suffix != ".npz":
        raise DataError(f"{path} is not there." if not path.exists() else
                        f"{path} is neither a folder of images nor an npz of them.")
    if "arr_0" not in names(path):
        raise DataError(f"{path} has no arr_0, uint8 [N, H, W, C]. It has: {', '.join(names(path))}.")
    shape = next(stream := parts(path))
    return shape[0], stream


def names(path: Path) -> list[str]:
    """Of the arrays of an npz. Raises DataError where it is none."""
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(".npy") for name in file.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as an npz of plain arrays: {error}.") from error


def parts(path: Path) -> Iterator:
    """The shape of arr_0, then its batches uint8 [b, H, W, C], of which one is in memory at a time."""
    try:
        with zipfile.ZipFile(path) as file, file.open("arr_0.npy") as array:
            version = np.lib.format.read_magic(array)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = read_header[version](array)
            if dtype != np.uint8 or len(shape) != 4 or fortran:
                raise DataError(f"arr_0 in {path} must be uint8 [N, H, W, C], got {dtype} {list(shape)}"
                                f"{', by columns' if fortran else ''}.")
            yield shape
            size = int(np.prod(shape[1:]))
            for first in range(0, shape[0], BATCH):
                number = min(BATCH, shape[0] - first)
                content = array.read(number * size)
                if len(content) < number * size:
                    raise DataError(f"{path} ends before image {first + len(content) // size} of {shape[0]}.")
                yield np.frombuffer(content, np.uint8).reshape(number, *shape[1:])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an npz of plain arrays: {error}.") from error


def npz(path: Path) -> dict[str, np.ndarray]:
    """Its arrays. Raises DataError where it cannot be read; pickled objects are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an npz of plain arrays: {error}.") from error


def read(files: list[Path]) -> np.ndarray:
    """uint8 [b, H, W, 3], or 1 where all are grey. Raises DataError that names a file which is broken, or of another
    size."""
    found = []
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode not in ("RGB", "L"):
                    raise DataError(f"{file} is {image.mode}, not 8-bit RGB or grey. Convert it first: what a palette, "
                                    "an alpha channel or 16 bits become is a choice.")
                found.append(np.asarray(image))
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for broken PNG chunks
            raise DataError(f"{file} cannot be read as an image: {error}. Replace or remove it.") from error
        if found[-1].shape != found[0].shape:
            raise DataError(f"{file} is {found[-1].shape}, but {files[0]} is {found[0].shape}. All must be of one "
                            "size; nothing resizes them here without being asked.")
    images = np.stack(found)
    return images[..., None] if images.ndim == 3 else images


def ahead(batches: Iterable[np.ndarray], depth: int = 2) -> Iterator[np.ndarray]:
    """The same, read by a thread while the device works."""
    ready: queue.Queue = queue.Queue(depth)

    def work():
        try:
            for batch in batches:
                ready.put(batch)
            ready.put(None)
        except BaseException as error:  # of any kind: raised where the batch is asked for
            ready.put(error)

    threading.Thread(target=work, daemon=True, name="images").start()
    while (item := ready.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item
