"""Guidance by two predictions, a strong and a weak one: Diffusion -> Diffusion, each with a rule of guidance/rules.py.

These compose with clipping and with each other. Scales and bounds may be traced: new values need no compilation.
"""
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion.core.conditions import with_null
from diffusion.core.parameterization import Diffusion, Prediction
from diffusion.guidance.rules import Rule, linear
from diffusion.typing import NO_COND, Array, Cond, Image, Time

# (x_t, t, cond) -> the strong and the weak prediction at the same x_t
Pair = Callable[[Image, Time, Cond], tuple[Prediction, Prediction]]
# The noise levels sigma / alpha within which guidance is on: above the first, up to the second.
Interval = tuple[Array | float, Array | float]


def condition_pair(diffusion: Diffusion, nulls: Mapping[str, Any]) -> Pair:
    """Predictions with the conditions, and with those of `nulls` at their values for "not given", in one network call
    on a doubled batch.

    nulls: such as {"label": num_classes} of a network that was trained with network.label_dropout. Other conditions are
    the same on both sides. The two rows of an image are neighbours in that batch, so that they stay on its device;
    concatenation would need collectives.
    """
    def pair(x_t: Image, t: Time, cond: Cond = NO_COND) -> tuple[Prediction, Prediction]:
        twice = jax.tree.map(lambda strong, weak: jnp.stack([strong, weak], axis=1).reshape(-1, *strong.shape[1:]),
                             dict(cond), with_null(cond, nulls))
        both = diffusion.denoise(jnp.repeat(x_t, 2, axis=0), jnp.repeat(jnp.broadcast_to(t, x_t.shape[:1]), 2), twice)
        return tuple(jax.tree.map(lambda y: y[first::2], both) for first in (0, 1))
    return pair


def model_pair(diffusion: Diffusion, guide: Diffusion) -> Pair:
    """A model and a worse one on its process (Karras et al. 2024, "Guiding ... with a Bad Version of Itself").

    The guide is smaller or trained for less time, with the same labels; `on_process` converts a guide from another
    process.
    """
    return lambda x_t, t, cond=NO_COND: (diffusion.denoise(x_t, t, cond), guide.denoise(x_t, t, cond))


def guided(diffusion: Diffusion, pair: Pair, rule: Rule, *, interval: Interval | None = None) -> Diffusion:
    """`diffusion` with its prediction replaced by the `rule` applied to the pair.

    interval: outside these noise levels the prediction is unguided, with no second evaluation (Kynkaanniemi et al.
    2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality", Eq. 5). Skipping that
    evaluation needs a scalar t, as in samplers; for times [B] both predictions are made, and one is chosen per example.
    """
    def with_guide(x_t: Image, t: Time, cond: Cond = NO_COND) -> Prediction:
        return rule(diffusion.process, *pair(x_t, t, cond), x_t, t)

    def within(x_t: Image, t: Time, cond: Cond = NO_COND) -> Prediction:
        level = diffusion.process.noise_level(t)
        on = (interval[0] < level) & (level <= interval[1])
        if on.ndim == 0:
            return jax.lax.cond(on, with_guide, diffusion.denoise, x_t, t, cond)
        choose = lambda a, b: jnp.where(on.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
        return jax.tree.map(choose, with_guide(x_t, t, cond), diffusion.denoise(x_t, t, cond))

    return Diffusion(diffusion.process, with_guide if interval is None else within)


def classifier_free(diffusion: Diffusion, scale: Array | float, nulls: Mapping[str, Any], *,
                    interval: Interval | None = None) -> Diffusion:
    """Classifier-free guidance (Ho & Salimans 2022): the rule `linear` with and without the conditions of `nulls`."""
    return guided(diffusion, condition_pair(diffusion, nulls), linear(scale), interval=interval)


def autoguidance(diffusion: Diffusion, guide: Diffusion, scale: Array | float, *,
                 interval: Interval | None = None) -> Diffusion:
    """Autoguidance (Karras et al. 2024, Eq. 4): D = D_guide + scale (D - D_guide), in two calls of two networks."""
    return guided(diffusion, model_pair(diffusion, guide), linear(scale), interval=interval)
