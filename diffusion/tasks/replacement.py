"""Sampling with a part of the image known, as a solver wrapper."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import numerics
from diffusion.core.parameterization import Diffusion
from diffusion.core.processes import Process
from diffusion.samplers.base import Carry, Solver
from diffusion.tasks.measurements import Projection
from diffusion.typing import Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True, eq=False)
class Replacement(Solver):
    """After each step, replaces the measured part of x by the known image's, noised to the time reached.

    Song et al. (2021), "Score SDE", Appendix I.2; at t = 0 the measured part is exactly the known one. The rest follows
    its conditional distribution only approximately. Rows of the step table that go up add noise, x_t ~ q(x_t | x_s) for
    t > s: with the rows of `repaint` this is Lugmayr et al. (2022), "RePaint", Algorithm 1, which harmonises the two
    parts. After such a row the solver restarts.
    """
    solver: Solver
    known: Image         # [B, H, W, C]
    project: Projection  # onto the measured part

    def init(self, x: Image) -> Carry:
        return self.solver.init(x)

    def step(self, carry: Carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        own = numerics.normal(numerics.fold_in(keys, 1), x.shape[1:], x.dtype)

        def down(carry, x):
            carry, x = self.solver.step(carry, x, t, t_next, diffusion, numerics.fold_in(keys, 0), cond)
            known = diffusion.process.diffuse(self.known.astype(x.dtype), t_next, own)
            return carry, x + self.project(known - x)

        def up(carry, x):
            return self.solver.init(x), renoise(diffusion.process, x, t, t_next, own)

        carry, x = jax.lax.cond(t_next > t, up, down, carry, x)
        return carry, jnp.where(t_next > 0, x, self.exact(x))

    def exact(self, x: Image) -> Image:
        """x with the measured part of the known image, exact to the bit if the projection selects pixels."""
        return x - self.project(x) + self.project(self.known.astype(x.dtype))

    def evaluations(self, steps: np.ndarray, carry: Carry) -> float:
        return self.solver.evaluations(steps[steps[:, 1] < steps[:, 0]], carry)


def renoise(process: Process, x: Image, s: Time, t: Time, noise: Image) -> Image:
    """x_t ~ q(x_t | x_s) for t > s: alpha_t/alpha_s x_s + sigma_t sqrt(1 - SNR_t/SNR_s) noise (VDM, Eqs. 23-24)."""
    added = jnp.maximum(process.noise_added_fraction(s, t), 0)  # negative in a branch that is not taken
    std = process.sigma(t) * jnp.sqrt(added)
    return process.alpha(t) / process.alpha(s) * x + std * noise


def repaint(steps: np.ndarray, *, jump: int, repeats: int) -> np.ndarray:
    """The steps [S, 2] of a decreasing grid with RePaint's jumps back (Lugmayr et al. 2022, Section 4.2, Appendix B).

    Each time that is jump, 2 jump, ... steps before the last noisy time is revisited repeats - 1 times, in one row up
    from `jump` steps further down. The paper's jump and repeats are both 10 on 250 steps; repeats = 1 is the grid
    itself. Each repetition costs `jump` evaluations more.
    """
    times = np.append(steps[:, 0], steps[-1, 1])
    if jump < 1 or repeats < 1 or np.any(steps[1:, 0] != steps[:-1, 1]):
        raise ValueError(f"RePaint needs jump and repeats of 1 or more and contiguous steps, got {jump}, {repeats}")
    index, rows, last = 0, [], len(steps) - 1  # last: the index of the last noisy time
    left = {last - below: repeats - 1 for below in range(0, len(steps) - jump, jump)}
    while index < len(steps):
        rows.append((times[index], times[index + 1]))
        index += 1
        if left.get(index, 0):
            left[index] -= 1
            rows.append((times[index], times[index - jump]))
            index -= jump
    return np.asarray(rows, steps.dtype)
