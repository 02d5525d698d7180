"""The past values of a multistep solver: the last K outputs of the denoiser."""
from typing import NamedTuple

import jax.numpy as jnp

from diffusion.typing import Array, Image


class History(NamedTuple):
    """A stack of fixed length, the newest first; the first min(count, K) entries have been pushed, the rest are 0."""
    values: Array  # [K, B, ...]
    times: Array   # [K] float: a time of each, in whatever unit the solver pushes
    count: Array   # int32: pushes so far


def empty(x: Image, length: int) -> History:
    """An empty history for values like x."""
    return History(jnp.zeros((length, *x.shape), x.dtype), jnp.zeros(length), jnp.zeros((), jnp.int32))


def push(history: History, value: Image, t: Array) -> History:
    """Adds `value` at `t` in front and drops the oldest."""
    values, times, count = history
    values = jnp.concatenate([value[None].astype(values.dtype), values[:-1]])
    times = jnp.concatenate([jnp.asarray(t, times.dtype)[None], times[:-1]])
    return History(values, times, count + 1)
