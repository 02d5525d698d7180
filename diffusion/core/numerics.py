"""Small numerical helpers that the rest of the core shares."""
import jax
import jax.numpy as jnp

from diffusion.typing import Array, Keys


def expand(a: Array, like: Array) -> Array:
    """[B] or scalar -> [B, 1, ..., 1] or scalar, to broadcast against `like` [B, ...] from the left."""
    a = jnp.asarray(a)
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim)) if a.ndim else a


def mean_flat(x: Array) -> Array:
    """[B, ...] -> [B]: the mean over all axes but the first."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def mean_over(x: Array, mask: Array | None = None) -> Array:
    """[B, ...] -> [B]: the mean over the entries of each example that are true in `mask`, which broadcasts to x; None:
    over all (`mean_flat`). What x is elsewhere, NaN included, does not matter."""
    if mask is None:
        return mean_flat(x)
    return sum_over(x, mask) / count_over(x, mask)


def masked(x: Array, mask: Array | None = None) -> Array:
    """x, 0 where `mask` is false; None: x."""
    return x if mask is None else jnp.where(mask, x, 0)


def sum_over(x: Array, mask: Array | None = None) -> Array:
    """[B, ...] -> [B]: the sum over the entries of each example that are true in `mask`; None: over all."""
    x = masked(x, mask)
    return jnp.sum(x.reshape(x.shape[0], -1), 1)


def count_over(x: Array, mask: Array | None = None) -> Array:
    """The numbers over which `sum_over` adds: [B], or a scalar without a mask."""
    if mask is None:
        return jnp.asarray(x[0].size, x.dtype)
    return sum_over(jnp.broadcast_to(mask, x.shape).astype(x.dtype))


def fold_in(keys: Keys, data: Array | int) -> Keys:
    """`jax.random.fold_in` of one number into each of the keys [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def normal(keys: Keys, shape: tuple[int, ...], dtype=float) -> Array:
    """Standard normal [B, *shape], row i a function of keys[i] only: the same in any batch, on any device."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)
