"""Weight files of others, read without PyTorch and without executing anything in them.

A .bin or .pt file of PyTorch is a zip archive of one pickle, which names tensors, and of one file for each storage. The
pickle is read by an unpickler that knows tensors and containers and refuses every other name: calling what a pickle
names is how it executes code.
"""
import collections
import json
import math
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from diffusion.errors import CheckpointError
from diffusion.io.files import atomic_write

DTYPES = {"FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
          "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
          "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_}
AGAIN = "Fetch the file again, or use the .safetensors of the same model."


def read_tensors(path: str | os.PathLike, key: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file, or of a PyTorch file (.bin, .pt, .pth, .ckpt), told apart by their content.

    key: of a PyTorch file that holds several state dicts, which one, such as "state_dict" or "ema". Entries that are no
    tensors are left out. Raises CheckpointError if the file is missing, damaged, of another kind, or carries code.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if not head:
        raise CheckpointError(f"{path} is empty. {AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a pointer of Git LFS, not the weights. Run `git lfs pull` in its repository.")
    if head.startswith(b"PK"):
        return state_dict(read_zip(path), path, key)
    if head[8:9] == b"{":
        try:
            return safetensors.numpy.load_file(path)
        except Exception as error:  # SafetensorError, and KeyError for a dtype that NumPy does not have
            raise CheckpointError(f"{path} is no whole safetensors file: {error}. {AGAIN}") from error
    if head.startswith(b"\x80"):
        raise CheckpointError(f"{path} is a bare pickle, which only running it could read; nothing in it was executed. "
                              "Save the model with PyTorch 1.6 or newer, or as .safetensors.")
    raise CheckpointError(f"{path} is neither a safetensors nor a PyTorch file; it begins with {head[:16]!r}. {AGAIN}")


def read_sharded(folder: Path, index: str) -> dict[str, np.ndarray]:
    """The tensors of all files that a Hugging Face index ("weight_map": {tensor: file}) names, in its folder.

    Raises CheckpointError if the index names a file outside of the folder, or a tensor that its file does not have.
    """
    path = folder / index
    try:
        weight_map = dict(json.loads(path.read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no index of weights: {error!r}. {AGAIN}") from error
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
    """Whole or not at all. Raises CheckpointError if it cannot be written."""
    atomic_write(path, safetensors.numpy.save(tensors, metadata))


def state_dict(value: Any, path: Path, key: str | None) -> dict[str, np.ndarray]:
    """The tensors of a dict, or of the one dict of tensors in it."""
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
    if inner:
        raise CheckpointError(f"{path} has several sets of weights: {', '.join(map(str, inner))}. Say which one.")
    raise CheckpointError(f"{path} holds no dict of tensors, but a {type(value).__name__}. "
                          "Save the model's state_dict().")


# ---- PyTorch's zip files ---------------------------------------------------------------------------------------------

def read_zip(path: Path) -> Any:
    """What torch.save wrote, with tensors as arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(names) != 1:
                raise CheckpointError(f"{path} is a zip archive, but not one of PyTorch: it has no data.pkl. {AGAIN}")
            prefix = names[0].removesuffix("data.pkl")
            if (order := prefix + "byteorder") in archive.namelist() and archive.read(order) != b"little":
                raise CheckpointError(f"{path} has big-endian tensors, which are not supported.")
            with archive.open(names[0]) as file:
                return TensorUnpickler(file, archive, prefix, path).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path} is damaged: {error or type(error).__name__}. {AGAIN}") from error


class Storage:
    """The name of a kind of storage in a pickle; never called."""

    def __init__(self, dtype: type):
        self.dtype = np.dtype(dtype)


class TensorUnpickler(pickle.Unpickler):
    """Knows tensors and containers. What else a pickle names is refused before it could be called."""

    def __init__(self, file, archive: zipfile.ZipFile, prefix: str, path: Path):
        super().__init__(file, encoding="utf-8")
        self.archive, self.prefix, self.path = archive, prefix, path
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return Storage(DTYPES[name])
        known = {("collections", "OrderedDict"): collections.OrderedDict,
                 ("torch._utils", "_rebuild_tensor_v2"): tensor,
                 ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data, ("torch", "Size"): tuple}
        if (module, name) not in known:
            raise CheckpointError(f"{self.path} asks for {module}.{name}, which is no tensor. Files of PyTorch can "
                                  f"carry code, so such names are refused; nothing was executed. {AGAIN}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, Storage):
            raise ValueError(f"an unknown kind of storage, {kind!r}")
        if key not in self.storages:
            data = self.archive.read(f"{self.prefix}data/{key}")
            if len(data) < count * storage.dtype.itemsize:
                raise ValueError(f"storage {key} has {len(data)} bytes, and {count} of {storage.dtype} are needed")
            self.storages[key] = np.frombuffer(data, storage.dtype, count)
        return self.storages[key]


def tensor(storage: np.ndarray, offset: int, shape: tuple, stride: tuple, *rest: Any) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2: a strided view of a storage, never beyond it."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or len(shape) != len(stride):
        raise ValueError("a tensor without a storage")
    if min((offset, *shape, *stride), default=0) < 0:
        raise ValueError("a tensor of negative offset, shape or stride")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride))
    if math.prod(shape) and last >= storage.size:
        raise ValueError("a tensor that reaches beyond its storage")
    strides = tuple(step * storage.itemsize for step in stride)
    view = np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)
    return np.array(view) if math.prod(shape) else np.zeros(shape, storage.dtype)
