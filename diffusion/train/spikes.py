"""Skips updates whose gradient is finite, but far larger than usual."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion.errors import require
from diffusion.train.optimizer import norm_of, with_schedule_of
from diffusion.typing import Array

DECAY = 0.99  # of the running means, per update
FIRST = 100   # updates after which the first can be skipped


class SpikeState(NamedTuple):
    """The optimizer's state, the running means of the gradient's norm and of its square, and the last update."""
    inner: optax.OptState
    mean: Array
    square: Array
    count: Array    # updates whose norm is in the means
    skipped: Array  # whether the last update was skipped


def skip_spikes(optimizer: optax.GradientTransformation, deviations: float) -> optax.GradientTransformationExtraArgs:
    """The optimizer, without the updates whose gradient's norm is more than so many standard deviations above its
    running mean; those change nothing but the schedule's count. The first `FIRST` updates are all made.

    Such a norm enters the means at that limit, so that norms which stay large are soon usual. Raises FieldError for
    deviations that are not positive.
    """
    require(deviations > 0, "spike", deviations, "is a number of standard deviations, above 0.")
    of = optax.with_extra_args_support(optimizer)

    def init(params):
        zero = jnp.zeros(())
        return SpikeState(of.init(params), zero, zero, jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def update(grad, state, params=None, *, known_norm=((), None), **others):
        norm = norm_of(grad, known_norm)
        seen = jnp.maximum(1 - DECAY**state.count, 1 - DECAY)
        mean, square = state.mean / seen, state.square / seen
        limit = mean + deviations * jnp.sqrt(jnp.maximum(square - mean**2, 0))
        spike = (state.count >= FIRST) & (norm > limit) & jnp.isfinite(norm)
        enters = jnp.where(spike, limit, norm)

        changes, inner = of.update(grad, state.inner, params, known_norm=known_norm, **others)
        changes = jax.tree.map(lambda x: jnp.where(spike, jnp.zeros_like(x), x), changes)
        inner = jax.tree.map(lambda new, old: jnp.where(spike, old, new), inner, with_schedule_of(inner, state.inner))
        return changes, SpikeState(inner, state.mean + (1 - DECAY) * (enters - state.mean), state.square
                                   + (1 - DECAY) * (enters**2 - state.square), state.count + 1, spike)
    return of._replace(init=init, update=update)
