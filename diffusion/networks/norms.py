"""Group normalisation with what surrounds it, in two passes over the activations forward and two back."""
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.networks import backend
from diffusion.typing import Array

Activation = Callable[[Array], Array]


def over(values: Array, x: Array) -> Array:
    """[B, C] with as many axes as x, to broadcast over its positions."""
    return jnp.expand_dims(values, tuple(range(1, x.ndim - 1)))


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu & He 2018) with what a residual block does around it, fused on a GPU."""

    @nn.compact
    def __call__(self, x: Array, act: Activation = lambda x: x, *, shift: Array | None = None,
                 scale_shift: Array | None = None) -> Array:
        """act(norm(x + shift)) or, with scale_shift = (s, t) in one [B, 2 C], act(norm(x) (1 + s) + t): x [B, ..., C],
        such as [B, H, W, C], shift [B, C]."""
        if backend.on_gpu() and x.dtype == self.dtype:
            return self.fused(x, act, shift, scale_shift)
        h = super().__call__(x if shift is None else x + over(shift, x))
        if scale_shift is not None:
            s, t = jnp.split(over(scale_shift, x), 2, axis=-1)
            h = h * (1 + s) + t
        return act(h)

    def fused(self, x: Array, act: Activation, shift: Array | None, scale_shift: Array | None) -> Array:
        """The same by `shifted_group_norm`, with the same parameters."""
        batch, channels = x.shape[0], x.shape[-1]
        affine = jnp.stack([self.param(name, init, (channels,), self.param_dtype) for name, init in
                            (("scale", self.scale_init), ("bias", self.bias_init))]).astype(jnp.float32)[:, None]
        if scale_shift is not None:
            s, t = jnp.split(scale_shift.astype(jnp.float32), 2, axis=-1)
            affine = affine * (1 + s)[None] + jnp.stack([jnp.zeros_like(t), t])
        shift = jnp.zeros(()) if shift is None else shift.astype(jnp.float32)
        return shifted_group_norm(x, jnp.broadcast_to(shift, (batch, channels)),
                                  jnp.broadcast_to(affine, (2, batch, channels)), self.num_groups, self.epsilon, act)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def shifted_group_norm(x: Array, shift: Array, affine: Array, groups: int, epsilon: float, act: Activation) -> Array:
    """act(normalised(x + shift) * scale + bias): x [B, ..., C], shift [B, C], affine = (scale, bias) in one
    [2, B, C] -> [B, ..., C] in x's dtype.

    Statistics and arithmetic are in float32. Everything that depends on x only by its sums over positions, which
    includes the gradients of shift and affine, comes from two [B, C] sums; the gradient keeps x and nothing else of
    that size.
    Scale and bias are in one array, so that one kernel sums the gradients of both over B. Without forward-mode
    derivative.
    """
    return _forward(x, shift, affine, groups, epsilon, act)[0]


def _forward(x, shift, affine, groups, epsilon, act):
    scale, bias = affine
    x32 = x.astype(jnp.float32)
    positions = math.prod(x.shape[1:-1])
    sum_x, second = _two_sums(x32, x32 * x32)
    # The sums of x + shift and of its square, from those of x.
    second = second + 2 * shift * sum_x + positions * shift * shift
    first = sum_x + positions * shift
    count = positions * x.shape[-1] // groups
    mean, square = _over_groups(first, groups) / count, _over_groups(second, groups) / count
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0) + epsilon)
    mean, inverse = _of_channels(mean, x), _of_channels(inverse, x)
    factor = inverse * scale
    offset = (shift - mean) * factor + bias
    y = act(x32 * over(factor, x) + over(offset, x)).astype(x.dtype)
    return y, (x, sum_x, shift, scale, mean, inverse, factor, offset)


def _backward(groups, epsilon, act, saved, dy):
    x, sum_x, shift, scale, mean, inverse, factor, offset = saved
    positions = math.prod(x.shape[1:-1])

    def of_input(x: Array, dy: Array) -> tuple[Array, Array]:
        x = x.astype(jnp.float32)
        _, of_act = jax.vjp(act, x * over(factor, x) + over(offset, x))
        return x, of_act(dy.astype(jnp.float32))[0]

    x32, du = of_input(x, dy)
    first, second = _two_sums(du, du * x32)
    # Sums of du and of du * normalised(x + shift), by channel.
    second = (second + (shift - mean) * first) * inverse
    count = positions * x.shape[-1] // groups
    mean_first = _of_channels(_over_groups(first * scale, groups) / count, x)
    mean_second = _of_channels(_over_groups(second * scale, groups) / count, x)
    # d(x + shift) = inverse (du scale - mean_first - normalised mean_second), linear in du and x.
    of_x = -inverse * inverse * mean_second
    rest = -inverse * mean_first + (shift - mean) * of_x
    # The barrier has the second pass compute du again from x and dy, instead of reading it as a third array.
    x32, du = of_input(*jax.lax.optimization_barrier((x, dy)))
    dx = du * over(factor, x) + x32 * over(of_x, x) + over(rest, x)
    dshift = first * factor + sum_x * of_x + positions * rest
    return dx.astype(x.dtype), dshift, jnp.stack([second, first])


def _two_sums(x: Array, y: Array) -> tuple[Array, Array]:
    """[B, ..., C] -> [B, C] of both. Without the barrier, XLA makes a sum of these over B a second reduction of x."""
    axes = tuple(range(1, x.ndim - 1))
    return jax.lax.optimization_barrier((jnp.sum(x, axes), jnp.sum(y, axes)))


def _over_groups(x: Array, groups: int) -> Array:
    """[B, C] -> [B, groups]: sums."""
    return jnp.sum(x.reshape(x.shape[0], groups, -1), -1)


def _of_channels(x: Array, like: Array) -> Array:
    """[B, groups] -> [B, C]."""
    return jnp.repeat(x, like.shape[-1] // x.shape[1], axis=1)


shifted_group_norm.defvjp(_forward, _backward)
