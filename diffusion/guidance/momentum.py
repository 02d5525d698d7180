"""Guidance with momentum, implemented as a solver wrapper because only solvers carry state."""
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion.core.parameterization import Diffusion
from diffusion.guidance.pairs import Pair
from diffusion.guidance.rules import Rule, shift_x0
from diffusion.samplers.base import Carry, Solver
from diffusion.typing import NO_COND, Array, Cond, Image, Keys, Time


class Remembered(NamedTuple):
    solver: Carry   # the wrapped solver's carry
    average: Image  # d with momentum, of the steps so far


@dataclass(frozen=True, kw_only=True)
class Momentum(Solver):
    """d = x_0_strong - x_0_weak becomes d + momentum d_before, where d_before is the previous step's result.

    Sadat et al. (2024), "APG", Algorithm 1, where a negative momentum pushes each step away from the directions of
    earlier steps. The rule gets a weak prediction that differs from the strong one by this d. Only for solvers that
    call the denoiser once a step, at the step's (x, t): the prediction is computed here and passed to the solver.
    """
    solver: Solver
    momentum: Array | float
    pair: Callable[[Diffusion], Pair]
    rule: Rule
    finish: Callable[[Diffusion], Diffusion] = lambda diffusion: diffusion  # applied after guidance, such as clipping

    def init(self, x: Image) -> Remembered:
        return Remembered(self.solver.init(x), jnp.zeros_like(x))

    def step(self, carry: Remembered, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process = diffusion.process
        strong, weak = self.pair(diffusion)(x, t, cond)
        average = strong.x0 - weak.x0 + self.momentum * carry.average
        weak = shift_x0(process, weak, strong.x0 - average - weak.x0, t)
        prediction = self.rule(process, strong, weak, x, t)
        known = Diffusion(process, lambda x_t, t, cond=NO_COND: prediction)
        inner, x = self.solver.step(carry.solver, x, t, t_next, self.finish(known), keys, cond)
        return Remembered(inner, average), x

    def evaluations(self, steps: np.ndarray, carry: Remembered) -> float:
        return self.solver.evaluations(steps, carry.solver)
