"""Fills a parameter tree from another project's state dict, leaf by leaf, with nothing missing and nothing left
over."""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion.errors import CheckpointError

SHOWN = 4  # names listed in a message


class Slot(NamedTuple):
    """The name of one of our leaves in the other project's state dict, and the conversion to ours."""
    name: str
    read: Callable[[np.ndarray], np.ndarray]


def conv(weight: np.ndarray) -> np.ndarray:
    """PyTorch's [out, in, height, width] -> [height, width, in, out]."""
    return weight.transpose(2, 3, 1, 0)


def dense(weight: np.ndarray) -> np.ndarray:
    """PyTorch's [out, in], or a 1x1 convolution [out, in, 1] or [out, in, 1, 1], -> [in, out]."""
    return weight.reshape(weight.shape[:2]).T if all(n == 1 for n in weight.shape[2:]) else weight


def vector(weight: np.ndarray) -> np.ndarray:
    """Biases, scales and embedding tables, which have the same layout in both."""
    return weight


def leaves(params: Any) -> dict[tuple[str, ...], Any]:
    """A nested dict of parameters -> {path: leaf}."""
    return {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def fill(abstract: Any, state: dict[str, np.ndarray], locate: Callable[[tuple[str, ...]], Slot], where: str) -> Any:
    """The tree with the shapes and dtypes of `abstract`, each leaf read from the `state` of file or folder `where`.

    Raises CheckpointError if names are missing or left over or shapes differ, with the counts and the first few names.
    """
    slots = {path: locate(path) for path in leaves(abstract)}
    wanted = {slot.name for slot in slots.values()}
    problems = []
    if missing := sorted(wanted - state.keys()):
        problems.append(f"{len(missing)} of {len(wanted)} tensors are missing: {listed(missing)}")
    if extra := sorted(state.keys() - wanted):
        problems.append(f"{len(extra)} of {len(state)} tensors have no place in the network: {listed(extra)}")
    filled, wrong = {}, []
    for path, leaf in leaves(abstract).items():
        name, read = slots[path]
        if name in state:
            try:
                value = read(state[name])
            except ValueError:  # from a transposition: even the number of axes differs
                value = state[name]
            if value.shape != leaf.shape:
                wrong.append(f"{name} {list(state[name].shape)} (read as {list(value.shape)}, "
                             f"needed {list(leaf.shape)})")
            else:
                filled[path] = np.ascontiguousarray(value, leaf.dtype)
    if wrong:
        problems.append(f"{len(wrong)} of {len(slots)} tensors have another shape: {listed(wrong)}")
    if problems:
        raise CheckpointError(f"The weights of {where} do not fit the network that its settings describe. "
                              + "; ".join(problems) + ". Check that settings and weights come from the same model.")
    return jax.tree_util.tree_map_with_path(lambda path, _: filled[tuple(key.key for key in path)], abstract)


def listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
