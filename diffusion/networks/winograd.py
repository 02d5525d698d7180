"""3x3 convolutions on a CPU by Winograd's minimal filtering: fewer multiplications, as plain matrix products.

Lavin & Gray (2016), "Fast Algorithms for Convolutional Neural Networks": F(m x m, 3 x 3) computes m x m outputs of a
correlation with (m + 2)^2 multiplications instead of 9 m^2. For each position of the transformed tile, all tiles are
one matrix product. F(2 x 2) is as accurate as the direct sum in float32; F(4 x 4) has errors of 1e-5 of the largest
result, and serves gradients alone. Images are [B, H, W, C], kernels [3, 3, C, D], of stride 1, padded to the same size.
"""
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diffusion.networks import backend
from diffusion.typing import Array

POINTS = (0, 1, -1, 2, -2)  # where the polynomials are evaluated, besides at infinity
CHUNK = 1.5e6  # bytes of the larger array that are transformed at once, so that they stay in the caches


def conv_general_dilated(x: Array, kernel: Array, strides: Sequence[int], padding: str | Sequence[tuple[int, int]],
                         **kwargs) -> Array:
    """`lax.conv_general_dilated` as `nn.Conv` calls it, by `convolve` where that is faster."""
    if (backend.on_one_cpu() and tuple(strides) == (1, 1) and padding == "SAME" and x.dtype == jnp.float32
            and is_faster(x.shape, kernel.shape)):
        return convolve(x, kernel)
    return lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)


def is_faster(shape: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether `convolve` and its gradients were measured to be faster than XLA's convolution, by more than it takes
    longer to compile: from 1e9 FLOPs on, for many channels and more tiles, if there are whole ones."""
    batch, height, width, _ = shape
    return (kernel[:2] == (3, 3) and min(kernel[2:]) >= 32 and height % 2 == width % 2 == 0
            and 18 * batch * height * width * kernel[2] * kernel[3] >= 1e9
            and batch * height * width // gradient_m(height, width)**2 >= max(kernel[2:]) / 2)


def gradient_m(height: int, width: int) -> int:
    return 4 if height % 4 == width % 4 == 0 else 2


@functools.cache
def transforms(outputs: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A^T [outputs, t], G [t, taps], B^T [t, t]) of F(outputs, taps), t = outputs + taps - 1, by Toom and Cook:
    y = A^T ((G g) * (B^T d)) is y_i = sum_k g_k d_(i + k)."""
    tile = outputs + taps - 1

    def vandermonde(columns: int) -> np.ndarray:
        rows = [[float(p) ** k for k in range(columns)] for p in POINTS[:tile - 1]]
        return np.array([*rows, [0.0] * (columns - 1) + [1.0]])

    return vandermonde(outputs).T, vandermonde(taps), np.linalg.inv(vandermonde(tile)).T


def combine(matrix: np.ndarray, arrays: Sequence[Array]) -> list[Array]:
    """The matrix times a vector of arrays."""
    def row(coefficients: np.ndarray) -> Array:
        return sum(x if c == 1 else float(c) * x for c, x in zip(coefficients, arrays) if abs(c) > 1e-12)

    return [row(coefficients) for coefficients in matrix]


def stored(arrays: Sequence[Array]) -> list[Array]:
    """The arrays, computed once: else XLA computes the transform of a row again for each column, and compiles a kernel
    for each pair of both."""
    return lax.optimization_barrier(list(arrays))


def strided(x: Array, size: int, step: int, axis: int) -> list[Array]:
    """The first, second, ... entries along the axis of tiles of `size` that begin every `step`."""
    last = x.shape[axis] - size
    return [lax.slice_in_dim(x, i, i + last + 1, step, axis) for i in range(size)]


def input_tiles(matrix: np.ndarray, x: Array, m: int) -> list[list[Array]]:
    """The transformed tiles of x [B, H, W, C], for each position [B, H / m, W / m, C]."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = stored(combine(matrix, strided(x, m + 2, m, 1)))
    return [combine(matrix, strided(row, m + 2, m, 2)) for row in rows]


def kernel_tiles(kernel: Array, m: int) -> list[list[Array]]:
    """The transformed kernel, for each position [C, D]."""
    matrix = transforms(m, 3)[1]
    return [stored(combine(matrix, row)) for row in stored(combine(matrix, kernel))]


def correlate(x: Array, kernels: list[list[Array]], m: int) -> Array:
    """x [B, H, W, C] and its `kernel_tiles` -> [B, H, W, D]; m divides H and W."""
    to_output, _, of_input = transforms(m, 3)
    rows = [jnp.stack(combine(to_output, [jnp.einsum("bhwc,cd->bhwd", *pair) for pair in zip(*both)]), 3)
            for both in zip(input_tiles(of_input, x, m), kernels)]
    return jnp.stack(combine(to_output, rows), 2).reshape(*x.shape[:3], -1)


def kernel_gradient(x: Array, dy: Array, m: int) -> Array:
    """x [B, H, W, C] and the gradient dy [B, H, W, D] of its correlation -> that of the kernel [3, 3, C, D], by
    F(3 x 3, m x m); m divides H and W."""
    to_output, of_dy, of_input = transforms(3, m)
    contract = lambda a, b: lax.dot_general(  # noqa: E731
        a.reshape(-1, a.shape[3]), b.reshape(-1, b.shape[3]), (((0,), (0,)), ((), ())))
    outer = [combine(of_dy, strided(row, m, m, 2)) for row in stored(combine(of_dy, strided(dy, m, m, 1)))]
    rows = [jnp.stack(combine(to_output, [contract(*pair) for pair in zip(*both)]))
            for both in zip(input_tiles(of_input, x, m), outer)]
    return jnp.stack(combine(to_output, rows))


def chunks(*arrays: Array) -> int:
    """Into how many equal parts the batch is cut: the fewest of at most CHUNK bytes."""
    batch, size = len(arrays[0]), max(a.size * a.dtype.itemsize for a in arrays)
    return next(n for n in range(1, batch + 1) if batch % n == 0 and (size <= n * CHUNK or n == batch))


def in_chunks(x: Array, n: int) -> Array:
    return x.reshape(n, -1, *x.shape[1:])


# Jitted, so that all convolutions of one shape are traced once. planning/flops.py knows these functions by their names.
@jax.jit
def conv3x3_value(x, kernel):
    kernels = kernel_tiles(kernel, 2)
    y = lax.map(lambda x: correlate(x, kernels, 2), in_chunks(x, chunks(x)))
    return y.reshape(*x.shape[:3], -1)


@jax.jit
def conv3x3_gradients(saved, dy):
    (x, kernel), m = saved, gradient_m(*dy.shape[1:3])
    kernels = kernel_tiles(jnp.swapaxes(kernel[::-1, ::-1], 2, 3), m)

    def body(total, pair):
        x, dy = pair
        return total + kernel_gradient(x, dy, m), correlate(dy, kernels, m)

    n = chunks(x, dy)
    gradient, dx = lax.scan(body, jnp.zeros_like(kernel), (in_chunks(x, n), in_chunks(dy, n)))
    return dx.reshape(x.shape), gradient


@jax.custom_vjp
def convolve(x: Array, kernel: Array) -> Array:
    """The correlation by F(2 x 2), and its gradients by F(4 x 4) if 4 divides the sides. Without forward-mode
    derivative."""
    return conv3x3_value(x, kernel)


convolve.defvjp(lambda x, kernel: (conv3x3_value(x, kernel), (x, kernel)), conv3x3_gradients)
