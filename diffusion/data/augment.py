"""Scales and flips uint8 images inside the training step, alike for data fed by hosts and held on the device."""
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import DataError
from diffusion.typing import Array, Keys

TO_UINT8 = ("Give 8-bit images: of floats in [-1, 1], np.rint(127.5 * (x + 1)).astype(np.uint8); of floats in [0, 1], "
            "np.rint(255 * x).astype(np.uint8).")


def to_float(image: Array) -> jax.Array:
    """uint8 0..255 -> float32 x/127.5 - 1 in [-1, 1], the scaling of Ho et al. 2020, section 3.3.

    Written as (2x - 255)/255: the numerator is exact, so 255 becomes 1, not the 1.0000001 that x/127.5 - 1 gives when
    XLA multiplies by the reciprocal, and 255 - x maps to exactly the negative of x's value. Raises DataError for
    another type: floats in [-1, 1] would all become almost the same grey.
    """
    if image.dtype != np.uint8:
        raise DataError(f"Images must be uint8, but they are {image.dtype}. {TO_UINT8}")
    return (2.0 * jnp.asarray(image).astype(jnp.float32) - 255.0) / 255.0


def random_flip(keys: Keys, image: Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2; image i of [B, H, W, C], or all frames of clip i of
    [B, T, H, W, C], depend only on keys[i]."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(jnp.expand_dims(flip, range(1, image.ndim)), image[..., ::-1, :], image)
