"""Resampling by 2 with a short filter (FIR), as StyleGAN2 and NCSN++ do, as sums of shifted slices: no convolution."""
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from diffusion.typing import Array


def _share(taps: Sequence[float]) -> list[float]:
    return [tap / sum(taps) for tap in taps]


def _padded(x: Array, axis: int, zeros: int) -> Array:
    return jnp.pad(x, [(zeros, zeros) if i == axis else (0, 0) for i in range(x.ndim)])


def margin(taps: Sequence[float]) -> int:
    """The zeros on each side with which half as many values come out."""
    return len(taps) // 2 - 1


def fir_downsample(x: Array, taps: Sequence[float] = (1, 1), *, pad: bool = True) -> Array:
    """Each spatial axis half as long: y_i = sum_k f_k x_(2i + k - margin), with f the taps divided by their sum.

    [B, H, W, C] -> [B, H/2, W/2, C] for an even number of taps; (1, 1) is the mean of 2 x 2. Without `pad` the margin
    is part of x.
    """
    for axis in range(1, x.ndim - 1):
        if pad:
            x = _padded(x, axis, margin(taps))
        last = x.shape[axis] - len(taps)
        x = sum(f * lax.slice_in_dim(x, k, k + last + 1, 2, axis) for k, f in enumerate(_share(taps)))
    return x


def fir_upsample(x: Array, taps: Sequence[float] = (1, 1)) -> Array:
    """Each spatial axis twice as long, by the transposed filter of twice the weight: y_j = 2 sum f_k x_i over all k =
    j - 2i + margin.

    [B, H, W, C] -> [B, 2H, 2W, C] for an even number of taps; (1, 1) repeats each value.
    """
    for axis in range(1, x.ndim - 1):
        length, reach = x.shape[axis], len(taps) // 4
        around, phases = _padded(x, axis, reach), [0, 0]
        for k, f in enumerate(_share(taps)):  # y_(2m + parity) = sum_k 2 f_k x_(m - shift)
            shift, parity = divmod(k - margin(taps), 2)
            phases[parity] += 2 * f * lax.slice_in_dim(around, reach - shift, reach - shift + length, 1, axis)
        x = jnp.stack(phases, axis + 1).reshape(*x.shape[:axis], 2 * length, *x.shape[axis + 1:])
    return x
