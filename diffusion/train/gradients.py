"""The mean gradient and its norm, and in a form that a GPU clips and applies with few kernels."""
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffusion.parallel import sharding
from diffusion.typing import Array

# Numbers in an array. To write and read a smaller one once more, 10 MB, takes a GPU no longer than to launch a kernel.
_SMALL = 1_250_000


def gathers(mesh: Mesh) -> bool:
    """Whether `mean` should gather arrays: on GPUs that each have all of every parameter, since arrays that are cut
    differently cannot be stacked without being sent."""
    return sharding.platform(mesh) in ("gpu", "cuda") and mesh.shape["fsdp"] * mesh.shape["tensor"] == 1


def mean(total: Any, size: int, *, gather: bool = False) -> tuple[Any, Array]:
    """(total / size, its global norm), of a tree of sums over `size` examples.

    gather: small arrays of one shape pass through one array that stacks them. XLA then sums the squares of all in one
    kernel, and makes one kernel of the updates of those that read the same stack, where it had one or more for each.
    The values are the same; the norm is so up to the order of its sum.
    """
    if not gather:
        grad = jax.tree.map(lambda g: g / size, total)
        return grad, optax.tree.norm(grad)
    leaves, tree = jax.tree.flatten(total)
    groups: dict[Any, list[int]] = {}
    for i, g in enumerate(leaves):
        groups.setdefault((g.shape, g.dtype) if g.size < _SMALL else i, []).append(i)
    squares = []
    for members in groups.values():
        shape = leaves[members[0]].shape
        stack = jnp.stack([leaves[i].ravel() for i in members])
        if stack[0].size < _SMALL:
            # Without the barrier XLA reads its parts; not flat, the parts keep the layout of a convolution's gradient,
            # in which no update can overwrite its parameters.
            stack = jax.lax.optimization_barrier(stack)
        stack = stack.reshape(-1, *shape) / size
        squares.append(jnp.sum(jnp.square(stack), -1).ravel())
        for place, i in enumerate(members):
            leaves[i] = stack[place]
    squares = jax.lax.optimization_barrier(jnp.concatenate(squares))  # else XLA sums each part in its own kernel
    return tree.unflatten(leaves), jnp.sqrt(jnp.sum(squares))
