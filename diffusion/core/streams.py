"""Named random streams: a draw is a function of (seed, stream, step, position of the example), never carried state.

So the loss curve does not depend on the number of devices, hosts or micro-batches, and a resumed run makes the same
draws as an uninterrupted one.
"""
import zlib

import jax

from diffusion.typing import Array, Keys


def step_key(seed_key: Array, stream: str, step: Array | int) -> Array:
    """One key for the whole global batch of `step`."""
    return jax.random.fold_in(jax.random.fold_in(seed_key, zlib.crc32(stream.encode())), step)


def example_keys(seed_key: Array, stream: str, step: Array | int, positions: Array) -> Keys:
    """Keys [B] for the examples at `positions` [B] of the global batch of `step`."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key(seed_key, stream, step), positions)
