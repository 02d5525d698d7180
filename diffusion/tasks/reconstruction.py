"""Guidance by the reconstruction of a known part: Ho et al. (2022), "Video Diffusion Models", Section 3.1."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.numerics import expand
from diffusion.core.parameterization import Diffusion, Prediction
from diffusion.samplers.base import Carry, Solver
from diffusion.tasks.measurements import Projection
from diffusion.typing import Array, Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction(Solver):
    """A solver whose predictions are guided by `reconstructing`; inside `Replacement`, which holds the known part."""
    solver: Solver
    known: Image         # [B, ...]
    project: Projection  # onto the measured part
    weight: Array | float = 1.0

    def init(self, x: Image) -> Carry:
        return self.solver.init(x)

    def step(self, carry: Carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        guided = reconstructing(diffusion, self.known, self.project, self.weight)
        return self.solver.step(carry, x, t, t_next, guided, keys, cond)

    def evaluations(self, steps: np.ndarray, carry: Carry) -> float:
        """Each is one of the network and one of its gradient."""
        return self.solver.evaluations(steps, carry)


def reconstructing(diffusion: Diffusion, known: Image, project: Projection, weight: Array | float) -> Diffusion:
    """x_0 of the unknown part minus weight alpha/2 grad_x ||P(known - x_0(x))||^2 (Eq. 7), with eps from it.

    With weight 1 this is the mean of x_0 given x and the known part, if that part is normal around its own prediction
    with the deviation sigma/alpha, which is too wide for large noise: the paper found weights above 1 better.
    """
    def denoise(x: Image, t: Time, cond: Cond) -> Prediction:
        def distance(x: Image) -> tuple[Array, Prediction]:
            found = diffusion.denoise(x, t, cond)
            return jnp.sum(project(known.astype(x.dtype) - found.x0) ** 2), found

        gradient, found = jax.grad(distance, has_aux=True)(x)
        alpha, sigma = (expand(f(t), x) for f in (diffusion.process.alpha, diffusion.process.sigma))
        x0 = found.x0 - weight * alpha / 2 * (gradient - project(gradient))
        return found._replace(x0=x0, eps=(x - alpha * x0) / sigma)
    return Diffusion(diffusion.process, denoise)
