"""The solver contract and the driver that runs the steps of a time grid in one compiled loop."""
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import grids, numerics
from diffusion.core.parameterization import Diffusion
from diffusion.core.processes import Process
from diffusion.typing import Array, Cond, Image, Keys, Time

Carry = Any  # what a multistep solver remembers; () for a one-step solver


class Solver:
    """One way to go from x at t to x at t_next < t. Times are scalars; keys [B] are fresh at each step.

    Members are frozen dataclasses of their settings; the process and the denoiser come with each step. The class
    attributes are what a member is able to do.
    """
    once_a_step = False     # asks the denoiser once a step, at the step's own x and t
    correctable = False     # a Langevin corrector may move x between its steps
    between_times = False   # asks for times between those of the grid
    adaptive = False        # chooses its own steps between the times of the grid
    from_pure_noise = True  # can start where nothing of the data is left
    largest_level = math.inf  # the noise level from which it can start at most

    def init(self, x: Image) -> Carry:
        """The carry before the first step; () for a one-step solver."""
        return ()

    def step(self, carry: Carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys,
             cond: Cond) -> tuple[Carry, Image]:
        """x at t_next. At t_next = 0 it returns the solver's estimate of the data, without noise."""
        raise NotImplementedError

    def evaluations(self, steps: np.ndarray, carry: Carry) -> float:
        """Calls of the denoiser for an image by all of `steps` [S, 2], after which the carry is `carry`; one a step
        unless a member says otherwise."""
        return len(steps)

    def pair_times(self, times: np.ndarray, t_max: int) -> np.ndarray:
        """The steps [S, 2] of a chain's falling times [S], of 1 .. t_max: each ends where the next begins, and the last
        at the data."""
        return grids.pairs(times)


def draw_prior(process: Process, t: Time, keys: Keys, shape: tuple[int, ...]) -> Array:
    """x at the noisy time t, [B, *shape]: row i is a function of keys[i] alone."""
    return process.prior_std(t) * numerics.normal(numerics.fold_in(keys, 0), shape, jnp.float32)


def sample(solver: Solver, diffusion: Diffusion, steps: Array, x: Image, keys: Keys, cond: Cond = None, *,
           first: Array | int = 0, last: Array | int | None = None, carry: Carry | None = None) -> tuple[Carry, Image]:
    """Runs x [B,H,W,C] through the rows first .. last - 1 of `steps` [S, 2], (t, t_next) each, in one compiled loop.

    The times are int32 for the steps of a DiscreteProcess's own chain, and float32 otherwise.

    Call it under jit, where steps, first and last may be traced: one program then serves every number of steps, and a
    chain cut into several calls, each given the (carry, x) of the one before. keys [B] fix all noise: row i of the
    result depends on x[i], keys[i] and cond[i] alone.
    """
    steps, noise_keys = jnp.asarray(steps), numerics.fold_in(keys, 1)

    def body(index, state):
        t, t_next = steps[index]
        return solver.step(*state, t, t_next, diffusion, numerics.fold_in(noise_keys, index), cond)

    return jax.lax.fori_loop(first, len(steps) if last is None else last, body,
                             (solver.init(x) if carry is None else carry, x))
