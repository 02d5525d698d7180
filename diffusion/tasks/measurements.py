"""Measurements: orthogonal projections P of images [B, H, W, C], or other arrays, onto the measured part.

The constraint on x is P x = P y for a given y, without noise. Projected white noise is white within P's range, as
`Replacement` needs (Song et al. 2021, "Score SDE", Appendix I.2 and I.3).
"""
from collections.abc import Callable

import jax.numpy as jnp

from diffusion.typing import Array, Image

Projection = Callable[[Image], Image]


def pixel_projection(mask: Array) -> Projection:
    """The entries where mask, which broadcasts to x with or without its axis B, is 1: for inpainting."""
    return lambda x: x * mask.reshape(*[1] * (x.ndim - mask.ndim), *mask.shape).astype(x.dtype)


def grey_projection(x: Image) -> Image:
    """The mean over the channels, copied to each channel: for colorisation.

    The first coordinate of the orthonormal basis in which Song et al. (2021), Appendix I.3, decouple the channels.
    """
    return jnp.broadcast_to(x.mean(-1, keepdims=True), x.shape)


def block_mean_projection(factor: int) -> Projection:
    """The mean of each square of factor x factor pixels, copied to each pixel: for super-resolution."""
    def project(x: Image) -> Image:
        b, h, w, c = x.shape
        mean = x.reshape(b, h // factor, factor, w // factor, factor, c).mean((2, 4), keepdims=True)
        return jnp.broadcast_to(mean, (b, h // factor, factor, w // factor, factor, c)).reshape(x.shape)
    return project
