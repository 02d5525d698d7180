"""Exponential moving average of the parameters, its length given as a half-life in images."""
import jax
import jax.numpy as jnp

from diffusion.typing import Array, Params


def decay(step: Array, *, batch_size: int, half_life: float, warmup_ratio: float) -> Array:
    """The factor of the old average in the update that makes `step` of them: 2^(-batch_size / half-life).

    The half-life is at most `warmup_ratio` * images seen (Karras et al. 2022, EDM, their code's EMA ramp-up: 0.05), so
    that the average forgets the random start; 0 turns this off, as in Ho et al. (2020). A constant decay d per step is
    a half-life of batch_size * log(1/2) / log(d) images: d = 0.9999 at batch 128 is 887,184 images.
    """
    if warmup_ratio:
        images = jnp.asarray(step, float) * batch_size  # in int32 the product would overflow
        half_life = jnp.minimum(half_life, images * warmup_ratio)
    return jnp.exp2(-batch_size / half_life)


def update(ema: Params, params: Params, decay: Array) -> Params:
    """decay * ema + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda e, p: p + decay * (e - p), ema, params)
