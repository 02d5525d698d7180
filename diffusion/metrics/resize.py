"""Resizes images like the published evaluators: the choice changes FID by more than many papers' improvements (Parmar
et al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation").

Each method is linear and separable: a matrix for the rows and one for the columns.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.typing import Array


def tensorflow(size: int, new: int) -> np.ndarray:
    """[new, size]: bilinear as in TensorFlow 1's graph of Inception: between the pixels' corners, not their
    centres, and without a low-pass filter. The last places repeat the last pixel."""
    at = np.arange(new, dtype=np.float32) * np.float32(size / new)
    low = at.astype(int)
    matrix = np.zeros((new, size))
    np.add.at(matrix, (np.arange(new), low), 1.0 - (at - low))
    np.add.at(matrix, (np.arange(new), np.minimum(low + 1, size - 1)), at - low)
    return matrix


def bilinear(size: int, new: int) -> np.ndarray:
    """[new, size]: bilinear between the pixels' centres, without a low-pass filter, as in pytorch-fid, with the
    places in float32 as in PyTorch."""
    half = np.float32(0.5)
    at = np.maximum(np.float32(size / new) * (np.arange(new, dtype=np.float32) + half) - half, 0)
    low = np.minimum(at.astype(int), size - 1)
    matrix = np.zeros((new, size))
    np.add.at(matrix, (np.arange(new), low), 1.0 - (at - low))
    np.add.at(matrix, (np.arange(new), np.minimum(low + 1, size - 1)), at - low)
    return matrix


def bicubic(size: int, new: int) -> np.ndarray:
    """[new, size]: Keys's cubic (a = -1/2), stretched to a low-pass filter when shrinking; as Pillow, clean-fid."""
    scale = max(size / new, 1.0)
    x = np.abs((np.arange(size) + 0.5 - (np.arange(new)[:, None] + 0.5) * size / new) / scale)
    matrix = np.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0))
    return matrix / matrix.sum(1, keepdims=True)


MODES: dict[str, Callable[[int, int], np.ndarray]] = {"tensorflow": tensorflow, "bilinear": bilinear, "clean": bicubic,
                                                         "bicubic": bicubic}


def resize(images: Array, new: int, mode: str) -> Array:
    """uint8 or float [B,H,W,C] of 0..255 -> float32 [B,new,new,C] of 0..255, by one of MODES; not rounded to bytes."""
    rows, columns = (jnp.asarray(MODES[mode](n, new), jnp.float32) for n in images.shape[1:3])
    x = jnp.einsum("hH,bHWc->bhWc", rows, images.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    x = jnp.einsum("wW,bhWc->bhwc", columns, x, precision=jax.lax.Precision.HIGHEST)
    return jnp.clip(x, 0.0, 255.0) if mode == "clean" else x  # the cubic overshoots
