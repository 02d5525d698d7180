"""The interface of the estimators of -log p(x_0): functions of single examples, in bits per dimension."""
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from diffusion.core.processes import Process
from diffusion.core.time_densities import clean_end
from diffusion.errors import require
from diffusion.typing import Array, Time


def half(levels: int) -> float:
    """Half the distance between two of `levels` even levels in [-1, 1]."""
    return 1 / (levels - 1)

class Estimate(NamedTuple):
    """Per-example estimates. Averaging over the data set is up to the caller."""
    bits_per_dim: Array | None    # [B], for data on levels; None for real numbers
    terms: dict[str, Array] = {}  # its parts and other values: [B], or [B, S] with one column per time
    nats: Array | None = None     # [B], for real numbers: -log of the density of the whole example


# (keys [B], diffusion, x0 [B, ...] on even levels in [-1, 1], cond, mask=None) -> Estimate. Row i depends
# only on keys[i], x0[i], cond[i] and mask[i], which is true where x0 is valid.
Estimator = Callable[..., Estimate]

# (keys [B], diffusion, x at t_min [B,H,W,C], cond, mask=None) -> (log p(x) [B] in nats, evaluations of the denoiser)
LogDensity = Callable[..., tuple[Array, Array]]


def ends(process: Process) -> tuple[Time, Time]:
    """The least noisy time and the noisiest, as floats."""
    return clean_end(process), jnp.asarray(process.t_max, float)


def check_steps(steps: int) -> None:
    """Raises FieldError for a number of steps below 1."""
    require(steps >= 1, "steps", steps, "must be 1 or more.")
