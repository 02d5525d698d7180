"""Guidance by two predictions, a strong and a weak one: Diffusion -> Diffusion, each with a rule of guidance/rules.py.

These compose with clipping and with each other. Scales and bounds may be traced: their values do not compile anew.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion.core.parameterization import Diffusion, Prediction
from diffusion.guidance.rules import Rule, linear
from diffusion.typing import Array, Cond, Image, Time

# (x_t, t, cond) -> the strong and the weak prediction at the same x_t
Pair = Callable[[Image, Time, Cond], tuple[Prediction, Prediction]]
# The noise levels sigma / alpha within which guidance is on: above the first, up to the second.
Interval = tuple[Array | float, Array | float]


def label_pair(diffusion: Diffusion, null_label: int) -> Pair:
    """With the labels, and with "no class" in their place, in one call of the network on a doubled batch.

    null_label: what training had for "no class", num_classes where it hid labels (network.label_dropout). The two of an
    image are neighbours in that batch, so that they stay on its device: a concatenation would cost collectives.
    """
    def pair(x_t: Image, t: Time, cond: Cond = None) -> tuple[Prediction, Prediction]:
        labels = jnp.stack([cond, jnp.full_like(cond, null_label)], axis=1).reshape(-1)
        both = diffusion.denoise(jnp.repeat(x_t, 2, axis=0), jnp.repeat(jnp.broadcast_to(t, x_t.shape[:1]), 2), labels)
        return tuple(jax.tree.map(lambda y: y[first::2], both) for first in (0, 1))
    return pair


def model_pair(diffusion: Diffusion, guide: Diffusion) -> Pair:
    """A model, and a worse one of the same process (Karras et al. 2024, "Guiding ... with a Bad Version of Itself").

    The guide is smaller or trained for less time, with the same labels; one on another process is put on this one by
    `on_process`.
    """
    return lambda x_t, t, cond=None: (diffusion.denoise(x_t, t, cond), guide.denoise(x_t, t, cond))


def guided(diffusion: Diffusion, pair: Pair, rule: Rule, *, interval: Interval | None = None) -> Diffusion:
    """`diffusion`, with what `rule` makes of the pair in the place of its prediction.

    interval: beyond these noise levels it predicts alone, with no second evaluation (Kynkaanniemi et al. 2024,
    "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality", Eq. 5). Samplers' scalar t is
    asked for there: the times of a batch [B] are guided or not one by one, and all evaluated.
    """
    def with_guide(x_t: Image, t: Time, cond: Cond = None) -> Prediction:
        return rule(diffusion.process, *pair(x_t, t, cond), x_t, t)

    def within(x_t: Image, t: Time, cond: Cond = None) -> Prediction:
        level = diffusion.process.noise_level(t)
        on = (interval[0] < level) & (level <= interval[1])
        if on.ndim == 0:
            return jax.lax.cond(on, with_guide, diffusion.denoise, x_t, t, cond)
        choose = lambda a, b: jnp.where(on.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
        return jax.tree.map(choose, with_guide(x_t, t, cond), diffusion.denoise(x_t, t, cond))

    return diffusion._replace(denoise=with_guide if interval is None else within)


def classifier_free(diffusion: Diffusion, scale: Array | float, null_label: int, *,
                    interval: Interval | None = None) -> Diffusion:
    """Classifier-free guidance (Ho & Salimans 2022): the rule `linear` on the labels and none."""
    return guided(diffusion, label_pair(diffusion, null_label), linear(scale), interval=interval)


def autoguidance(diffusion: Diffusion, guide: Diffusion, scale: Array | float, *,
                 interval: Interval | None = None) -> Diffusion:
    """Autoguidance (Karras et al. 2024, Eq. 4): D = D_guide + scale (D - D_guide), in two calls of two networks."""
    return guided(diffusion, model_pair(diffusion, guide), linear(scale), interval=interval)
