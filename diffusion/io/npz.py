"""Reads npz files from users: plain arrays, whose headers are checked before their content is read."""
import contextlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from diffusion.errors import DataError
from diffusion.io.reading import check_room, ordinary, reading

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Header:
    """The header of an array in an npz."""
    shape: tuple[int, ...]
    dtype: np.dtype
    by_columns: bool

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}{', by columns' if self.by_columns else ''}"


def headers(path: str | os.PathLike) -> dict[str, Header]:
    """The headers of all arrays by name. Raises DataError if the file is not an npz of plain arrays or is damaged."""
    with _opened(path) as file:
        found = {}
        for info in file.infolist():
            with file.open(info) as array:
                found[info.filename.removesuffix(".npy")] = _header(array, info, path)
    return found


def read_npz(path: str | os.PathLike, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays `names`, by default all. Raises DataError as `headers` does, and for arrays larger than the memory."""
    found = headers(path)
    names = list(found) if names is None else names
    size = sum(_size(found[name]) for name in names)
    check_room(size, f"The content of {path}")
    with _opened(path) as file:
        arrays = {}
        for name in names:
            with file.open(f"{name}.npy") as array:
                arrays[name] = np.lib.format.read_array(array, allow_pickle=False)  # a pickle could run any code
    return arrays


def batches(path: str | os.PathLike, name: str, rows: int) -> Iterator[np.ndarray]:
    """The array `name`, not stored by columns, in batches of `rows` rows, one in memory at a time. Raises DataError as
    `headers` does, and if it ends early."""
    with _opened(path) as file:
        info = file.getinfo(f"{name}.npy")
        with file.open(info) as array:
            header = _header(array, info, path)
            size = _size(header) // max(header.shape[0], 1)
            for first in range(0, header.shape[0], rows):
                number = min(rows, header.shape[0] - first)
                check_room(number * size, f"A batch of {name} in {path}")
                content = array.read(number * size)
                if len(content) < number * size:
                    raise DataError(f"{path} ends before row {first + len(content) // size} of {header.shape[0]}.")
                yield np.frombuffer(content, header.dtype).reshape(number, *header.shape[1:])


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[zipfile.ZipFile]:
    path = ordinary(path)
    with (reading(f"{path} cannot be read as an npz of plain arrays", "Write it again, with numpy.savez."),
          zipfile.ZipFile(path) as file):
        yield file


def _header(array: IO[bytes], info: zipfile.ZipInfo, path: str | os.PathLike) -> Header:
    """The header at the start of an array, which must agree with the array's size in the archive."""
    if not info.filename.endswith(".npy"):
        raise DataError(f"{path} holds {info.filename!r}, which is not an array. Write it again, with numpy.savez.")
    shape, by_columns, dtype = _HEADERS[np.lib.format.read_magic(array)](array)
    header = Header(shape, dtype, by_columns)
    if dtype.hasobject:
        raise DataError(f"{Path(info.filename).stem} in {path} holds Python objects, as a pickle; only plain arrays "
                        "are read. Write it again, with numpy.savez, as numbers.")
    if min(shape, default=0) < 0 or array.tell() + _size(header) != info.file_size:
        raise DataError(f"{path} is damaged: {Path(info.filename).stem} should be {header}, {_size(header):,} "
                        f"bytes, but has {info.file_size - array.tell():,}.")
    return header


def _size(header: Header) -> int:
    """The array's size in bytes, in Python's integers, which do not overflow."""
    size = header.dtype.itemsize
    for n in header.shape:
        size *= n
    return size
