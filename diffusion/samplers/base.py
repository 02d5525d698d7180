"""The solver contract and the driver that runs the steps of a time grid in one compiled loop."""
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import grids, numerics
from diffusion.core.parameterization import Diffusion
from diffusion.core.processes import Process
from diffusion.typing import NO_COND, Array, Cond, Image, Keys, Time

Carry = Any  # a multistep solver's past values; () for a one-step solver


class Solver:
    """A method that steps from x at t to x at t_next < t. Times are scalars; keys [B] are fresh at each step.

    Members are frozen dataclasses of their settings; the process and the denoiser are passed to each step. The class
    attributes declare a member's abilities.
    """
    once_a_step = False     # calls the denoiser once a step, at the step's own x and t
    correctable = False     # a Langevin corrector may move x between its steps
    between_times = False   # calls the denoiser at times between the grid's
    adaptive = False        # chooses its own steps between the times of the grid
    from_pure_noise = True  # can start at alpha = 0
    largest_level = math.inf  # the largest noise level it can start from

    def init(self, x: Image) -> Carry:
        """The carry before the first step; () for a one-step solver."""
        return ()

    def step(self, carry: Carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys,
             cond: Cond) -> tuple[Carry, Image]:
        """x at t_next. At t_next = 0 it returns the solver's estimate of the data, without noise."""
        raise NotImplementedError

    def evaluations(self, steps: np.ndarray, carry: Carry) -> float:
        """Denoiser calls per image over all of `steps` [S, 2], given the final `carry`; by default one per step."""
        return len(steps)

    def pair_times(self, times: np.ndarray, t_max: int) -> np.ndarray:
        """Steps [S, 2] of decreasing times [S] in 1 .. t_max: each ends where the next begins, the last at the data."""
        return grids.pairs(times)


def draw_prior(process: Process, t: Time, keys: Keys, shape: tuple[int, ...]) -> Array:
    """x at the noisy time t, [B, *shape]: row i is a function of keys[i] only."""
    return process.prior_std(t) * numerics.normal(numerics.fold_in(keys, 0), shape, jnp.float32)


def sample(solver: Solver, diffusion: Diffusion, steps: Array, x: Image, keys: Keys, cond: Cond = NO_COND, *,
           first: Array | int = 0, last: Array | int | None = None, carry: Carry | None = None) -> tuple[Carry, Image]:
    """Runs x [B,H,W,C] through the rows first .. last - 1 of `steps` [S, 2], (t, t_next) each, in one compiled loop.

    The times are int32 for the steps of a DiscreteProcess's own chain, and float32 otherwise.

    Call it under jit, where steps, first and last may be traced: one program then serves any number of steps, and a
    chain may be cut into several calls, each given the previous (carry, x). keys [B] fix all noise: row i of the result
    depends only on x[i], keys[i] and cond[i].
    """
    steps, noise_keys = jnp.asarray(steps), numerics.fold_in(keys, 1)

    def body(index, state):
        t, t_next = steps[index]
        return solver.step(*state, t, t_next, diffusion, numerics.fold_in(noise_keys, index), cond)

    return jax.lax.fori_loop(first, len(steps) if last is None else last, body,
                             (solver.init(x) if carry is None else carry, x))
