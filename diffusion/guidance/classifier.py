"""Guidance by a classifier of noisy images."""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion.core.numerics import expand
from diffusion.core.parameterization import Diffusion, Prediction
from diffusion.guidance.rules import shift_x0
from diffusion.typing import NO_COND, Array, Cond, Image, Time

LogProbability = Callable[[Image, Time, Cond], Array]  # (x_t, t, cond) -> log p(label | x_t) [B]


def classifier(diffusion: Diffusion, log_probability: LogProbability, scale: Array | float, *,
               conditional: bool = True) -> Diffusion:
    """eps = eps - sigma scale grad log p(label | x_t): Dhariwal & Nichol (2021), Algorithm 2.

    With the exact classifier and scale 1 an unconditional model becomes the conditional one, whatever the solver (the
    paper's Algorithm 1, which shifts the mean of an ancestral step, is this to first order). conditional: whether the
    denoiser gets the conditions too.
    """
    def with_gradient(x_t: Image, t: Time, cond: Cond = NO_COND) -> Prediction:
        process = diffusion.process
        prediction = diffusion.denoise(x_t, t, cond if conditional else NO_COND)
        gradient = jax.grad(lambda x: jnp.sum(log_probability(x, t, cond)))(x_t)
        factor = process.sigma(t) * process.noise_level(t)
        factor = jnp.where(jnp.isfinite(factor), factor, 0)  # where alpha is 0, x_t does not depend on the label
        return shift_x0(process, prediction, expand(factor * scale, x_t) * gradient, t)
    return Diffusion(diffusion.process, with_gradient)
