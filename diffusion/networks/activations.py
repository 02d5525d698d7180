"""Activations whose gradient keeps their argument only."""
import functools

import jax
import jax.numpy as jnp

from diffusion.networks import backend
from diffusion.typing import Array

_gelu = functools.partial(jax.nn.gelu, approximate=True)


def gelu(x: Array) -> Array:
    """The Gaussian error linear unit (Hendrycks & Gimpel 2016), by tanh.

    On a GPU the matrix product before it computes it and also stores x, which is all that the gradient reads.
    """
    return _gelu_of_argument(x) if backend.on_gpu() else _gelu(x)


@jax.custom_vjp
def _gelu_of_argument(x: Array) -> Array:
    return _gelu(x)


def _backward(x: Array, dy: Array) -> tuple[Array]:
    x, dy = jax.lax.optimization_barrier((x, dy))  # else XLA stores what both passes compute
    _, of_gelu = jax.vjp(_gelu, x.astype(jnp.float32))
    return (of_gelu(dy.astype(jnp.float32))[0].astype(x.dtype),)


_gelu_of_argument.defvjp(lambda x: (_gelu(x), x), _backward)
