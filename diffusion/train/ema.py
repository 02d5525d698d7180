"""Exponential moving average of the parameters, its length given as a half-life in images."""
import math

import jax
import jax.numpy as jnp

from diffusion.typing import Array, Params


def new_share(step: Array, *, batch_size: int, half_life: float, warmup_ratio: float, images_before: int = 0) -> Array:
    """The weight of the new parameters in update number `step`: 1 - 2^(-batch_size / half-life), by expm1, since the
    power is nearly 1. images_before: images seen in excess of step * batch_size, as after a change of the batch size.

    The half-life is at most `warmup_ratio` * images seen (Karras et al. 2022, EDM, their code's EMA ramp-up: 0.05), so
    that the average forgets the random start; 0 turns this off, as in Ho et al. (2020). A constant decay d per step is
    a half-life of batch_size * log(1/2) / log(d) images: d = 0.9999 at batch 128 is 887,184 images.
    """
    if warmup_ratio:
        images = jnp.asarray(step, float) * batch_size + images_before  # in int32 the product would overflow
        half_life = jnp.minimum(half_life, images * warmup_ratio)
    return -jnp.expm1(-math.log(2) * batch_size / half_life)


def update(ema: Params, params: Params, share: Array, key: Array | None = None) -> Params:
    """(1 - share) * ema + share * params, leaf by leaf, in float32. A bfloat16 average is rounded by `key`, at
    random."""
    leaves, tree = jax.tree.flatten(ema)
    new = [e.astype(p.dtype) + share * (p - e.astype(p.dtype)) for e, p in zip(leaves, tree.flatten_up_to(params))]
    return tree.unflatten([n if e.dtype == n.dtype else stochastic_round(n, jax.random.fold_in(key, i))
                           for i, (e, n) in enumerate(zip(leaves, new))])


def stochastic_round(x: Array, key: Array) -> Array:
    """float32 to one of the two neighbouring bfloat16 numbers, so that the mean over keys is x.

    Rounding to nearest would freeze the average: at a decay of 0.9999 its steps are far below bfloat16's 2^-9.
    """
    # A bfloat16 is the upper half of a float32: adding a random lower half carries into it with the right probability.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)
