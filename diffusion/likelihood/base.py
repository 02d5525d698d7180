"""What every estimator of -log p(x_0) is: a function of single examples, in bits per dimension."""
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from diffusion.core.parameterization import Diffusion
from diffusion.core.processes import Process
from diffusion.core.time_densities import clean_end
from diffusion.typing import Array, Cond, Image, Keys, Time

HALF = 1 / 255  # half the distance between two levels of a byte, as numbers in [-1, 1]


class Estimate(NamedTuple):
    """What is known of each example; means over a data set are the caller's."""
    bits_per_dim: Array           # [B]
    terms: dict[str, Array] = {}  # what it is made of, and more: [B], or [B, S] with one column for each time


# (keys [B], diffusion, x0 [B,H,W,C] on the levels of a byte in [-1, 1], cond) -> Estimate. Row i depends on keys[i],
# x0[i] and cond[i] alone.
Estimator = Callable[[Keys, Diffusion, Image, Cond], Estimate]


def ends(process: Process) -> tuple[Time, Time]:
    """The least noisy time and the noisiest, as floats."""
    return clean_end(process), jnp.asarray(process.t_max, float)
