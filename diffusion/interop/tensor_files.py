"""Reads weight files of other projects without PyTorch and without executing anything in them.

A .bin or .pt file of PyTorch is a zip archive with one pickle, which names tensors, and one file for each storage.
Before PyTorch 1.6 it was a series of pickles, then the storages. The unpickler here knows tensors and containers and
refuses every other name, since a pickle executes code by calling the names in it.
"""
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from diffusion.errors import CheckpointError
from diffusion.io.files import atomic_write, read_json

DTYPES = {"FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
          "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
          "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_}
DTYPE_NAMES = {np.dtype(dtype).name for dtype in DTYPES.values()}  # the same names as PyTorch's
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that begins files from before PyTorch 1.6
SMALL = 2**24  # bytes; an archive of any size may unpack to this many
AGAIN = "Fetch the file again, or use the .safetensors of the same model."


def read_tensors(path: str | os.PathLike, key: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file, or of a PyTorch file (.bin, .pt, .pth, .ckpt), told apart by their content.

    key: selects one of several state dicts of a PyTorch file, such as "state_dict" or "ema". Other entries than tensors
    are left out. Arrays of a PyTorch file are read-only views of its storages. Raises CheckpointError if the file is
    missing, damaged, of another kind, or carries code.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', error)}.") from error
    if not head:
        raise CheckpointError(f"{path} is empty. {AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a pointer of Git LFS, not the weights. Run `git lfs pull` in its repository.")
    if head.startswith((b"PK", LEGACY)):
        try:
            value = read_zip(path) if head.startswith(b"PK") else read_legacy(path)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise CheckpointError(f"{path} is damaged: {str(error) or type(error).__name__}. {AGAIN}") from error
        return state_dict(value, path, key)
    if head[8:9] == b"{":
        try:
            return safetensors.numpy.load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: {error}. {AGAIN}") from error
        except (AttributeError, KeyError, TypeError) as error:  # a dtype that NumPy lacks
            raise CheckpointError(f"{path} has tensors of a type that is not supported: {error}. Save them as float32, "
                                  "float16 or bfloat16.") from error
    if head.startswith(b"\x80"):
        raise CheckpointError(f"{path} is a bare pickle, which can only be read by running it; nothing was executed. "
                              "Save the model with torch.save, or as .safetensors. (EDM's networks are read: layout "
                              "edm.)")
    raise CheckpointError(f"{path} is neither a safetensors nor a PyTorch file; it begins with {head[:16]!r}. {AGAIN}")


def read_sharded(folder: Path, index: str) -> dict[str, np.ndarray]:
    """The tensors of all files that a Hugging Face index ("weight_map": {tensor: file}) names in its folder.

    Raises CheckpointError if the index names a file outside of the folder, or a tensor that its file does not have.
    """
    path = folder / index
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path} is not an index of weights: it has no weight_map of tensors and files. {AGAIN}")
    tensors = {}
    for name in sorted(set(map(str, weight_map.values()))):
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise CheckpointError(f"{path} names the file {name!r}, which is not in its folder. Nothing was "
                                  "read of it.")
        tensors |= read_tensors(folder / name)
    if missing := sorted(weight_map.keys() - tensors.keys()):
        raise CheckpointError(f"{path} names {len(missing)} tensors that its files do not have: "
                              f"{', '.join(missing[:4])}. {AGAIN}")
    return tensors


def write_safetensors(path: str | os.PathLike, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a .safetensors file, whole or not at all. Raises CheckpointError if it cannot be written."""
    atomic_write(path, safetensors.numpy.save({k: np.asarray(x, order="C") for k, x in tensors.items()}, metadata))


def state_dict(value: Any, path: Path, key: str | None) -> dict[str, np.ndarray]:
    """The tensors of a dict, or of the only dict of tensors in it."""
    def tensors(value) -> dict[str, np.ndarray]:
        return ({str(name): x for name, x in value.items() if isinstance(x, np.ndarray)}
                if isinstance(value, dict) else {})

    inner = {name: found for name, x in value.items() if (found := tensors(x))} if isinstance(value, dict) else {}
    if key is None and (own := tensors(value)) and not inner:
        return own
    if key is None and len(inner) == 1:
        return next(iter(inner.values()))
    if key in inner:
        return inner[key]
    if key is not None:
        raise CheckpointError(f"{path} has no set of weights {key!r}; it has "
                              f"{', '.join(map(str, inner)) or 'no named set'}.")
    if inner:
        raise CheckpointError(f"{path} has several sets of weights: {', '.join(map(str, inner))}. Choose one by "
                              f"weights={next(iter(inner))!r} in Python or --weights={next(iter(inner))}.")
    raise CheckpointError(f"{path} holds no dict of tensors, but a {type(value).__name__}. "
                          "Save the model's state_dict().")


# ---- PyTorch's files -------------------------------------------------------------------------------------------------

def read_zip(path: Path) -> Any:
    """The object that torch.save wrote, with tensors as arrays."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [e.filename for e in entries if e.filename.endswith("/data.pkl") or e.filename == "data.pkl"]
        if len(names) != 1:
            raise CheckpointError(f"{path} is a zip archive, but not one of PyTorch: it has no data.pkl. {AGAIN}")
        size, packed = sum(e.file_size for e in entries), path.stat().st_size
        if size > max(packed, SMALL) or {e.compress_type for e in entries} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise CheckpointError(f"{path} has {packed} bytes and would unpack to {size}. PyTorch stores its tensors "
                                  f"without compression; nothing was unpacked. {AGAIN}")
        prefix = names[0].removesuffix("data.pkl")
        if (order := prefix + "byteorder") in archive.namelist() and archive.read(order) != b"little":
            raise CheckpointError(f"{path} has big-endian tensors, which are not supported.")

        def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
            data = archive.read(f"{prefix}data/{key}")
            if len(data) < count * dtype.itemsize:
                raise ValueError(f"storage {key} has {len(data)} bytes, but {count} of {dtype} are needed")
            return np.frombuffer(data, dtype, count)

        with archive.open(names[0]) as file:
            return TensorUnpickler(file, storage, path).load()


def read_legacy(path: Path) -> Any:
    """The object that torch.save wrote before PyTorch 1.6."""
    with open(path, "rb") as file:
        return read_series(file, path.stat().st_size, path)


def read_series(file: BinaryIO, size: int, path: Path) -> Any:
    """The object of a series of pickles in `size` bytes of the file: the storages come last, after their tensors."""
    left = size
    storages: dict[str, np.ndarray] = {}

    def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        nonlocal left
        left -= count * dtype.itemsize
        if left < 0:
            raise ValueError(f"the file is too short for storage {key}, {count} of {dtype}")
        return storages.setdefault(key, np.zeros(count, dtype))

    _, _, machine, value, keys = (TensorUnpickler(file, storage, path).load() for _ in range(5))
    if not machine["little_endian"]:
        raise CheckpointError(f"{path} has big-endian tensors, which are not supported.")
    if sorted(keys) != sorted(storages):
        raise ValueError("its storages do not match its tensors")
    for key in keys:
        count, data = int.from_bytes(file.read(8), "little"), storages[key].view(np.uint8)
        if count != storages[key].size or file.readinto(data) != data.size:
            raise ValueError(f"storage {key} is cut off or does not have the size that its tensors need")
    return value


class StateDict(dict):
    """Stands for collections.OrderedDict. Attributes that a pickle sets, such as _metadata, are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class Ignored:
    """Stands for an object whose attributes are not read, such as a program's flags."""

    def __setstate__(self, state: Any) -> None:
        pass


class Storage:
    """Stands for a kind of storage in a pickle; never called."""

    def __init__(self, dtype: type):
        self.dtype = np.dtype(dtype)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a kind of storage with a state")


class TensorUnpickler(pickle.Unpickler):
    """Unpickles only tensors and containers. Any other name in a pickle is refused before it could be called.

    storage: returns the array [count] of a storage by its key; called once for each.
    """

    def __init__(self, file, storage: Callable[[str, np.dtype, int], np.ndarray], path: Path):
        super().__init__(file, encoding="utf-8")
        self.storage, self.path = storage, path
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return Storage(DTYPES[name])
        if module == "torch" and name in DTYPE_NAMES:
            return f"torch.{name}"
        known = self.known()
        if (module, name) not in known:
            raise CheckpointError(f"{self.path} names {module}.{name}, which is not a tensor. Files of PyTorch can "
                                  f"carry code, so such names are refused; nothing was executed. {AGAIN}")
        return known[module, name]

    def known(self) -> dict[tuple[str, str], Any]:
        """What stands for each name. New functions for each one: a pickle can set attributes of the functions that it
        gets."""
        return {("collections", "OrderedDict"): StateDict, ("torch", "Size"): tuple,
                ("argparse", "Namespace"): Ignored,  # the flags beside the weights of DiT, SiT and JiT
                ("torch._utils", "_rebuild_tensor_v2"): lambda *args: self.tensor(*args),
                ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data}

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, count, *view = pid  # legacy files have a sixth part, None
        if not (kind == "storage" and isinstance(storage, Storage) and isinstance(key, str) and isinstance(count, int)):
            raise ValueError("a storage of an unknown kind")
        if count < 0 or any(part is not None for part in view):
            raise ValueError(f"storage {key} has a negative size or is part of another")
        if key not in self.storages:
            self.storages[key] = self.storage(key, storage.dtype, count)
        return self.storages[key]

    def tensor(self, storage: np.ndarray, offset: int, shape: tuple, stride: tuple, requires_grad: bool = False,
               hooks: Any = None, metadata: Any = None) -> np.ndarray:
        """torch._utils._rebuild_tensor_v2: a strided view of a storage, never beyond it.

        A view, not a copy, with not many more numbers than are stored: a stride of 0 would let a few bytes request any
        amount of memory.
        """
        if metadata:
            raise CheckpointError(f"{self.path} has a tensor that is a negative or conjugate view of another, which is "
                                  "not supported. Save it after .resolve_neg().resolve_conj().")
        if not isinstance(storage, np.ndarray) or storage.ndim != 1 or len(shape) != len(stride):
            raise ValueError("a tensor without a storage")
        if min((offset, *shape, *stride), default=0) < 0:
            raise ValueError("a tensor of negative offset, shape or stride")
        if not math.prod(shape):
            return np.zeros(shape, storage.dtype)
        if offset + sum((n - 1) * step for n, step in zip(shape, stride)) >= storage.size:
            raise ValueError("a tensor that reaches beyond its storage")
        if math.prod(shape) > max(storage.size, SMALL):
            raise ValueError(f"a tensor of {math.prod(shape)} numbers made from {storage.size} stored ones")
        strides = tuple(step * storage.itemsize for step in stride)
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)
