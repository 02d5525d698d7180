"""Reads sets of images from disk: a folder of image files, or an npz as evaluators exchange them."""
import math
import queue
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from diffusion.errors import DataError
from diffusion.io import npz, pictures
from diffusion.io.reading import expanded

BATCH = 200
_BYTES = 2**28  # the most for a batch


def open_images(path: Path) -> tuple[int, tuple[int, ...], Iterator[np.ndarray]]:
    """(number, shape [H, W, C] of the first, batches uint8 [b, H, W, 3 or 1]) of a folder (all its image files in the
    order of their paths) or of an npz with arr_0 uint8 [N, H, W, C]. Raises DataError that names the file for anything
    else, or an unreadable file."""
    path = expanded(path)
    if path.is_dir():
        files = [file for file in pictures.listed(path, below=True) if file.name != "grid.png"]
        if not files:
            raise DataError(f"{path} has no images ({', '.join(pictures.ENDINGS)}).")
        shape = read_images(files[:1]).shape[1:]
        rows = rows_of(shape)
        return len(files), shape, ahead(read_images(files[i:i + rows], shape) for i in range(0, len(files), rows))
    if path.suffix != ".npz":
        raise DataError(f"{path} does not exist." if not path.exists() else
                        f"{path} is neither a folder of images nor an npz of them.")
    header = npz.headers(path).get("arr_0")
    if header is None:
        raise DataError(f"{path} has no arr_0, uint8 [N, H, W, C]. It has: {', '.join(npz.headers(path))}.")
    if header.dtype != np.uint8 or len(header.shape) != 4 or header.by_columns or 0 in header.shape[1:]:
        raise DataError(f"arr_0 in {path} must be uint8 [N, H, W, C], got {header}.")
    return header.shape[0], header.shape[1:], npz.batches(path, "arr_0", rows_of(header.shape[1:]))


def rows_of(shape: tuple[int, ...]) -> int:
    """The number of images of this shape to read at a time: BATCH, or fewer large ones."""
    return max(1, min(BATCH, _BYTES // max(1, math.prod(shape))))


def read_images(files: list[Path], shape: tuple[int, ...] | None = None) -> np.ndarray:
    """uint8 [b, H, W, 3], or 1 if all are grey; `shape` [H, W, C] is the set's first. Raises DataError that names a
    broken file or one of another shape."""
    found = []
    for file in files:
        image = pictures.opened(file, size=shape and shape[:2])
        if image.mode not in ("RGB", "L"):
            raise DataError(f"{file} is {image.mode}, not 8-bit RGB or grey. Convert it first: the conversion of "
                            "a palette, an alpha channel or 16 bits is a choice.")
        found.append(np.asarray(image).reshape(image.height, image.width, -1))
        if shape and found[-1].shape != shape:
            raise DataError(f"{file} is {'grey' if image.mode == 'L' else 'in colours'}, the others are not. Convert "
                            "it: all must be of one kind.")
    return np.stack(found)


def ahead(batches: Iterable[np.ndarray], depth: int = 2) -> Iterator[np.ndarray]:
    """The same batches, read by a thread while the device works. The thread ends with the iterator, at any point."""
    ready: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()

    def put(item) -> bool:
        """Puts an item into the queue; False if the iterator has ended."""
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def work():
        try:
            if all(put(batch) for batch in batches):
                put(None)
        except BaseException as error:  # of any kind: raised in the thread that reads the batches
            put(error)

    threading.Thread(target=work, daemon=True, name="images").start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
