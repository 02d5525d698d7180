"""Reads the files of EDM (Karras et al. 2022), pickled networks that carry their own code, without executing any of it.

`dict(ema=net, ...)` was pickled as it is: each module of `torch_utils.persistence` with its class's source text, the
arguments that made it and its state; each tensor with its storage as the bytes of a file of PyTorch before 1.6. The
unpickler knows these names, plain containers and numbers, and refuses every other name.
"""
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.errors import CheckpointError
from diffusion.interop.tensor_files import AGAIN, StateDict, TensorUnpickler, read_series, read_tensors

NUMBERS = ("f8", "f4", "i8", "i4", "b1")  # types of NumPy's numbers


class Module:
    """Stands for a PyTorch module: its class's name, the arguments that made it, and its parts by name."""
    name, arguments, tensors, parts = "", {}, {}, {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.arguments = state.get("_init_kwargs", {})
        self.tensors = {**state.get("_parameters", {}), **state.get("_buffers", {})}
        self.parts = state.get("_modules", {})

    def state_dict(self, prefix: str = "") -> dict[str, np.ndarray]:
        """As PyTorch's."""
        found = {prefix + name: x for name, x in self.tensors.items() if isinstance(x, np.ndarray)}
        for name, part in self.parts.items():
            found |= part.state_dict(f"{prefix}{name}.") if isinstance(part, Module) else {}
        return found


class NumberType:
    """Stands for a NumPy dtype of numbers."""

    def __init__(self, name: str, *_: Any):
        if name not in NUMBERS:
            raise ValueError(f"numbers of the type {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        if state[1] == ">":
            raise ValueError("big-endian numbers")

    def number(self, data: bytes) -> Any:
        return np.frombuffer(data, self.dtype, 1)[0].item()


class ModuleUnpickler(TensorUnpickler):
    """Unpickles modules of EDM's code as `Module`, too."""

    def known(self) -> dict[tuple[str, str], Any]:
        def module(meta: dict[str, Any]) -> Module:
            made = Module()
            made.__setstate__(meta["state"])
            made.name = str(meta["class_name"])
            return made

        scalar = lambda kind, data: kind.number(data)  # noqa: E731
        return super().known() | {
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): module,
            **{("torch.nn.modules.container", name): Module for name in ("ModuleDict", "ModuleList", "Sequential")},
            ("torch.storage", "_load_from_bytes"): lambda data: read_series(io.BytesIO(data), len(data), self.path),
            ("dnnlib.util", "EasyDict"): StateDict, ("builtins", "set"): set, ("numpy", "dtype"): NumberType,
            ("numpy.core.multiarray", "scalar"): scalar, ("numpy._core.multiarray", "scalar"): scalar}


def is_pickle(path: Path) -> bool:
    """Whether the file is a pickle, of a protocol that EDM's files have, and no file of PyTorch."""
    try:
        with open(path, "rb") as file:
            head = file.read(3)
    except OSError:
        return False
    return head[:1] == b"\x80" and head[1:2] in b"\x03\x04\x05" and len(head) == 3


def read_module(path: str | os.PathLike, key: str | None = None) -> Module:
    """The module of that key, or "ema". Raises CheckpointError if the file cannot be read, is damaged, names anything
    but modules and tensors, or has no such module."""
    path, key = Path(path), key or "ema"
    try:
        with open(path, "rb") as file:
            value = ModuleUnpickler(file, _none, path).load()
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path} is damaged: {str(error) or type(error).__name__}. {AGAIN}") from error
    modules = {str(name): x for name, x in value.items() if isinstance(x, Module) and x.parts} if isinstance(
        value, dict) else {}
    if key not in modules:
        raise CheckpointError(f"{path} has no network {key!r}; it has {', '.join(modules) or 'none'}.")
    return modules[key]


def _none(*_: Any) -> Any:
    raise ValueError("a tensor outside of the file")


def read_state(path: str | os.PathLike, key: str | None = None) -> dict[str, np.ndarray]:
    """The state dict of EDM's pickle, or that of a file of plain tensors (`read_tensors`)."""
    if not is_pickle(Path(path)):
        return read_tensors(path, key)
    try:
        return read_module(path, key).state_dict()
    except (AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its modules have other parts than PyTorch's ({error}).") from error


def read_settings(path: str | os.PathLike, key: str | None = None) -> dict[str, Any]:
    """The class and the arguments that made the network of EDM's pickle; {} for other files, which do not tell."""
    if not is_pickle(Path(path)):
        return {}
    module = read_module(path, key)
    if not isinstance(module.arguments, dict):
        raise CheckpointError(f"{path} does not hold the arguments that made its network. Give them as settings.")
    return {"class_name": module.name, **module.arguments}
