"""The solver contract and the driver that runs a whole time grid in one compiled loop."""
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import numerics
from diffusion.core.parameterization import Denoise
from diffusion.core.processes import Process
from diffusion.typing import Array, Cond, Image, Keys, Time

Carry = Any  # what a multistep solver remembers; () for a one-step solver


class Solver(Protocol):
    """One way to go from x at t to x at t_next < t. Times are scalars; keys [B] are fresh at each step."""

    def init(self, x: Image) -> Carry:
        """The carry before the first step."""

    def step(self, carry: Carry, x: Image, t: Time, t_next: Time, denoise: Denoise, keys: Keys,
             cond: Cond) -> tuple[Carry, Image]:
        """x at t_next. At t_next = 0 it returns the solver's estimate of the data, without noise."""


def draw_prior(process: Process, keys: Keys, shape: tuple[int, ...]) -> Array:
    """x at t_max, [B, *shape]: row i is a function of keys[i] alone."""
    return process.prior_std * numerics.normal(numerics.fold_in(keys, 0), shape, jnp.float32)


def sample(solver: Solver, denoise: Denoise, grid: np.ndarray, x: Image, keys: Keys, cond: Cond = None) -> Image:
    """Runs x [B,H,W,C] from time grid[0] down to grid[-1] = 0 in one `lax.scan`; call it under jit.

    keys [B] fix all noise: row i of the result depends on x[i], keys[i] and cond[i] alone.
    """
    noise_keys = numerics.fold_in(keys, 1)

    def body(state, step):
        carry, x = state
        index, t, t_next = step
        return solver.step(carry, x, t, t_next, denoise, numerics.fold_in(noise_keys, index), cond), None

    steps = (jnp.arange(len(grid) - 1), jnp.asarray(grid[:-1]), jnp.asarray(grid[1:]))
    (_, x), _ = jax.lax.scan(body, (solver.init(x), x), steps)
    return x
