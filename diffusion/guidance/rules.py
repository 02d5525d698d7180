"""Published rules to combine a strong and a weak prediction at the same x_t, with one signature.

Scale 1 gives the strong prediction and 0 the weak one (except in `plus_plus`); a paper's w may be scale - 1. A learned
variance is the strong prediction's.
"""
from collections.abc import Callable

import jax.numpy as jnp

from diffusion.core.numerics import expand
from diffusion.core.parameterization import Parameterization, Prediction
from diffusion.core.processes import Process
from diffusion.typing import Array, Image, Time

# (process, strong, weak, x_t, t) -> the guided prediction
Rule = Callable[[Process, Prediction, Prediction, Image, Time], Prediction]


def linear(scale: Array | float) -> Rule:
    """eps = eps_weak + scale (eps_strong - eps_weak), and the same for x_0 (Ho & Salimans 2022, Eq. 6).

    The rule is the same in eps, x_0 or v, since x_t is the same.
    """
    def rule(process: Process, strong: Prediction, weak: Prediction, x_t: Image, t: Time) -> Prediction:
        return strong._replace(x0=_mix(weak.x0, strong.x0, scale), eps=_mix(weak.eps, strong.eps, scale))
    return rule


def plus_plus(scale: Array | float) -> Rule:
    """x_0 guided as in `linear`, with scale in [0, 1], and eps the weak one (Chung et al. 2024, "CFG++", Algorithm 2).

    For DDIM, whose step is alpha x_0 + sigma eps. A transform that recomputes eps from x_0, as clipping may, undoes it.
    """
    def rule(process: Process, strong: Prediction, weak: Prediction, x_t: Image, t: Time) -> Prediction:
        return strong._replace(x0=_mix(weak.x0, strong.x0, scale), eps=weak.eps)
    return rule


def projected(scale: Array | float, *, parallel: Array | float = 0.0,
              norm_threshold: Array | float = float("inf")) -> Rule:
    """Adaptive projected guidance (Sadat et al. 2024, "APG", Algorithm 1) without its momentum (guidance/momentum.py).

    x_0 = x_0_strong + (scale - 1) (d_orthogonal + parallel d_parallel), d = x_0_strong - x_0_weak, first shortened to
    the norm `norm_threshold` if longer, then split along x_0_strong. parallel = 1 without a threshold is `linear`.
    """
    def rule(process: Process, strong: Prediction, weak: Prediction, x_t: Image, t: Time) -> Prediction:
        d = strong.x0 - weak.x0
        d = d * jnp.minimum(1, norm_threshold / jnp.maximum(_norm(d), 1e-12))
        direction = strong.x0 / jnp.maximum(_norm(strong.x0), 1e-12)
        along = _total(d * direction) * direction
        change = (scale - 1) * (d + (parallel - 1) * along)
        return shift_x0(process, strong, change, t)
    return rule


def rescaled(rule: Rule, share: Array | float, space: Parameterization) -> Rule:
    """The result of `rule`, rescaled towards the standard deviation of the strong prediction, per image.

    Lin et al. (2024), "Common Diffusion Noise Schedules ... Are Flawed", Eqs. 14-16: F share std(F_strong) / std(F) +
    (1 - share) F, with F the network's prediction (`space`); the paper's share is 0.7. Linear rules only: a difference
    between eps and x_0 (`plus_plus`) is lost.
    """
    def rescaling(process: Process, strong: Prediction, weak: Prediction, x_t: Image, t: Time) -> Prediction:
        prediction = rule(process, strong, weak, x_t, t)
        f_strong, f = (space.target(process, p.x0, p.eps, t) for p in (strong, prediction))
        axes = tuple(range(1, f.ndim))
        ratio = f_strong.std(axis=axes, keepdims=True) / f.std(axis=axes, keepdims=True)
        x0, eps, _ = space.predict(process, f * (share * ratio + 1 - share), x_t, t)
        return prediction._replace(x0=x0, eps=eps)
    return rescaling


def shift_x0(process: Process, prediction: Prediction, change: Image, t: Time) -> Prediction:
    """Adds `change` to x_0 and the matching difference to eps, which keeps eps precise."""
    return prediction._replace(x0=prediction.x0 + change,
                               eps=prediction.eps - change / expand(process.noise_level(t), change))


def _mix(weak: Image, strong: Image, scale: Array | float) -> Image:
    return weak + scale * (strong - weak)


def _total(x: Image) -> Array:
    return x.sum(axis=tuple(range(1, x.ndim)), keepdims=True)


def _norm(x: Image) -> Array:
    return jnp.sqrt(_total(x**2))
