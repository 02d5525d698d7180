"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32 in ten classes, from its two official archives."""
import io
import pathlib
import pickle
import tarfile
from typing import Any

import numpy as np

from diffusion.data.prepare.data_set import DataSet
from diffusion.data.prepare.readers import Splits
from diffusion.errors import DataError
from diffusion.io.reading import ordinary, reading

_TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
_MAX_BYTES = 64 * 2**20  # a batch file has 31 MB; a larger file is something else and would fill the memory
_MAX_ARCHIVE = 2**30     # unpacked; the official ones have 185 MB, and more would take long to search


def read_official(path: pathlib.Path) -> Splits | None:
    """The python or binary archive, or a folder with its files: images uint8 [N, 32, 32, 3]; None if `path` is neither.

    Only the files known by name are read, into memory: nothing is unpacked, and links are not followed.
    """
    if path.is_dir():
        files = _files_of_folder(path)
    elif ".tar" in path.name or path.suffix == ".tgz":
        files = _files_of_archive(path)
    else:
        return None
    for suffix, decode in (("", _decode_python), (".bin", _decode_binary)):
        if f"{_TRAIN[0]}{suffix}" in files:
            break
    else:
        if path.is_dir():
            return None
        raise DataError(f"{path} holds neither cifar-10-batches-py/{_TRAIN[0]} nor "
                        f"cifar-10-batches-bin/{_TRAIN[0]}.bin: it is not an archive of CIFAR-10.")
    missing = [f"{name}{suffix}" for name in (*_TRAIN, "test_batch") if f"{name}{suffix}" not in files]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}: it is incomplete. Get it again.")
    parts = {name: decode(files[f"{name}{suffix}"], f"{name}{suffix} in {path}") for name in (*_TRAIN, "test_batch")}
    train = tuple(np.concatenate([parts[name][i] for name in _TRAIN]) for i in (0, 1))
    return {"train": train, "test": parts["test_batch"]}


def _wanted(name: str) -> bool:
    return name.removesuffix(".bin") in (*_TRAIN, "test_batch")


def _files_of_folder(folder: pathlib.Path) -> dict[str, bytes]:
    folders = (folder, folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin")
    inner = next((f for f in folders if any((f / f"{_TRAIN[0]}{suffix}").is_file() for suffix in ("", ".bin"))), None)
    if inner is None:
        return {}
    return {file.name: file.read_bytes() for file in inner.iterdir()
            if _wanted(file.name) and file.is_file() and file.stat().st_size <= _MAX_BYTES}


def _files_of_archive(path: pathlib.Path) -> dict[str, bytes]:
    path, files = ordinary(path), {}
    with (reading(f"{path} cannot be read as an archive", "It is truncated or damaged. Get it again."),
          tarfile.open(path) as archive):
        for member in archive:
            if member.size < 0:  # the next one would be the same member again
                raise DataError(f"{path} is damaged: {member.name!r} has {member.size} bytes.")
            if member.offset_data + member.size > _MAX_ARCHIVE:
                raise DataError(f"{path} unpacks to more than {_MAX_ARCHIVE // 2**20:,} MiB: it is not an archive of "
                                "CIFAR-10.")
            folder, _, name = member.name.rpartition("/")
            if (folder in ("cifar-10-batches-py", "cifar-10-batches-bin") and _wanted(name) and member.isreg()
                    and member.size <= _MAX_BYTES):
                files[name] = archive.extractfile(member).read()
    return files


def _decode_binary(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 1 label byte and 3 x 32 x 32 pixels."""
    if not data or len(data) % 3073:
        raise DataError(f"{where} has {len(data)} bytes, which is not a multiple of 3073: it is truncated or damaged.")
    rows = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    return _to_nhwc(rows[:, 1:]), rows[:, 0].astype(np.int32)


def _decode_python(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A pickled {b"data": uint8 [N, 3072], b"labels": N ints, ...}."""
    with reading(f"{where} is not a batch of CIFAR-10", "It is damaged or another file. Get it again."):
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        images, labels = batch[b"data"].to_numpy(), batch[b"labels"]
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise ValueError("the labels are not a list of integers")
        labels = np.array(labels, np.int32)
    if labels.shape != images.shape[:1]:
        raise DataError(f"{where} has {len(images)} images and labels of shape {list(labels.shape)}: it is damaged.")
    return _to_nhwc(images), labels


def _to_nhwc(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class _Array:
    """Stands for a NumPy array in the pickle, so that the pickle cannot run NumPy's code."""

    def __init__(self, *unused):
        self._state = None

    def __setstate__(self, state: Any):
        self._state = state

    def to_numpy(self) -> np.ndarray:
        _, shape, dtype, column_major, data = self._state
        if not isinstance(dtype, _DType) or dtype.name not in (b"u1", "u1"):
            raise ValueError("the images are not uint8")
        rows, columns = shape
        if columns != 3072:
            raise ValueError(f"an image has {columns} values, not 3072")
        return np.frombuffer(data, np.uint8).reshape(rows, columns, order="F" if column_major else "C")


class _DType:
    """Stands for numpy.dtype in the pickle."""

    def __init__(self, name: bytes | str, *unused):
        self.name = name

    def __setstate__(self, state: Any):
        pass


class _Unpickler(pickle._Unpickler):  # the Python version: the one in C allocates any size that a forged pickle names
    """Resolves the three names that a pickled array needs to stand-ins and refuses all others: a pickle may otherwise
    call any function of any module, and the archive comes from the network."""

    _NAMES = {("numpy.core.multiarray", "_reconstruct"): _Array, ("numpy._core.multiarray", "_reconstruct"): _Array,
              ("numpy", "ndarray"): None, ("numpy", "dtype"): _DType}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which the official file does not; refused")
        return self._NAMES[module, name]


CIFAR10 = DataSet(
    name="cifar10",
    version="3.0.2",  # of the TFDS data set with this layout
    description="60,000 colour images of 32x32 pixels in ten classes, 6,000 of each; 50,000 for training.",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    citation="Alex Krizhevsky. Learning Multiple Layers of Features from Tiny Images. Technical report, 2009.",
    image_shape=(32, 32, 3),
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    counts={"train": 50_000, "test": 10_000},
    sha256={"train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a"},
    archives={"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
              "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    read_official=read_official,
)
