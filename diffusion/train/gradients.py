"""The mean gradient and its norm, and forms of both that a GPU computes and applies with few kernels."""
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffusion.parallel import sharding
from diffusion.typing import Array, Params

# Numbers in an array. To write and read once more an array of 10 MB takes a GPU no longer than to launch a kernel.
_SMALL = 1_250_000
_MANY = 32  # arrays in a stack: XLA cuts a longer one by a kernel for each


def gathers(mesh: Mesh) -> bool:
    """Whether to gather arrays by shape: on GPUs that each have all of every parameter, since arrays that are cut
    differently cannot be stacked without being sent."""
    return sharding.platform(mesh) in ("gpu", "cuda") and mesh.shape["fsdp"] * mesh.shape["tensor"] == 1


def mean(total: Any, size: int, *, gather: bool = False) -> tuple[Any, Array]:
    """(total / size, its global norm), of a tree of sums over `size` examples.

    gather: by `_stacks`. XLA then sums the squares of all arrays of one shape in one kernel, and updates several by
    one. The values are the same; the norm is so up to the order of its sum.
    """
    if not gather:
        grad = jax.tree.map(lambda g: g / size, total)
        return grad, optax.tree.norm(grad)
    leaves, tree = jax.tree.flatten(total)
    squares = []
    for members, stack in _stacks(leaves, _SMALL):
        stack = stack / size
        squares.append(jnp.sum(jnp.square(stack), -1).ravel())
        for place, i in enumerate(members):
            leaves[i] = stack[place]
    squares = jax.lax.optimization_barrier(jnp.concatenate(squares))  # else XLA sums each part in its own kernel
    return tree.unflatten(leaves), jnp.sqrt(jnp.sum(squares))


def gathered(params: Params) -> Params:
    """The same parameters, those of most layers' biases and small matrices by `_stacks`, so that one kernel converts
    many to a lower precision. Others are used as they are (a norm's) or transposed one by one (a convolution's)."""
    found, tree = jax.tree_util.tree_flatten_with_path(params)
    names, leaves = [sharding.name_of(path).rpartition("/") for path, _ in found], [x for _, x in found]
    layers = {layer for layer, _, name in names if name == "kernel"}
    chosen = [i for i, (layer, _, _) in enumerate(names) if layer in layers and leaves[i].ndim <= 2]
    for members, stack in _stacks([leaves[i] for i in chosen], _SMALL // 4):
        for place, i in enumerate(members):
            leaves[chosen[i]] = stack[place]
    return tree.unflatten(leaves)


def _stacks(leaves: list[Array], small: int) -> Iterator[tuple[list[int], Array]]:
    """(places in the list, the arrays there as one): those of fewer than `small` numbers by shape, others alone.

    A small one is behind a barrier, so that XLA reads the stack and not its parts: it makes one kernel of what reads
    one array and gives results of one shape. It is flat there, since a convolution's gradient has another layout, in
    which an update could not overwrite its parameters.
    """
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        groups.setdefault((x.shape, x.dtype) if x.size < small else i, []).append(i)
    for members in (group[i:i + _MANY] for group in groups.values() for i in range(0, len(group), _MANY)):
        first = leaves[members[0]]
        if first.size < small:
            flat = jax.lax.optimization_barrier(jnp.stack([leaves[i].ravel() for i in members]))
            yield members, flat.reshape(-1, *first.shape)
        else:
            yield members, first[None]
