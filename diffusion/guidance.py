"""Guidance: functions Denoise -> Denoise. They compose with clipping and with each other."""
import jax
import jax.numpy as jnp

from diffusion.core.parameterization import Denoise, Prediction
from diffusion.typing import Cond, Image, Time


def classifier_free(denoise: Denoise, scale: float, null_label: int) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022), in one call of the network on a doubled batch.

    eps = eps(null) + scale (eps(label) - eps(null)), and x_0 alike, which is the same for any fixed x_t. scale = 1 is
    the conditional model and 0 the unconditional one; the paper's w is scale - 1. null_label: what training had for "no
    class". A learned variance is the conditional one.
    """
    def guided(x_t: Image, t: Time, cond: Cond = None) -> Prediction:
        both = denoise(jnp.concatenate([x_t, x_t]), jnp.tile(jnp.broadcast_to(t, x_t.shape[:1]), 2),
                       jnp.concatenate([cond, jnp.full_like(cond, null_label)]))
        labelled, null = (jax.tree.map(lambda y: y[part], both)
                          for part in (slice(None, len(x_t)), slice(len(x_t), None)))
        mix = lambda name: getattr(null, name) + scale * (getattr(labelled, name) - getattr(null, name))  # noqa: E731
        return labelled._replace(x0=mix("x0"), eps=mix("eps"))
    return guided
