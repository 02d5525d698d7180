"""DDIM inversion, from an image to its noise, and interpolation between two noises."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.numerics import expand
from diffusion.core.parameterization import Diffusion
from diffusion.samplers.base import Solver
from diffusion.typing import Array, Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class Inversion(Solver):
    """The inverse of DDIM's deterministic step from t_next > t to t: a solver whose steps go up.

    Song et al. (2021), "DDIM", Section 4.3: x_next = alpha_next/alpha x + (sigma_next - alpha_next/alpha sigma)
    eps(x_next, t_next), solved by fixed-point iteration: the first guess for x_next on the right side is x, and the
    result is substituted `iterations` - 1 times (Pan et al. 2023, "AIDI"). Many iterations give DDIM's exact inverse;
    one leaves an error that decreases with the number of steps.
    """
    iterations: int = 1

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion.process, diffusion.denoise
        ratio = process.alpha(t_next) / process.alpha(t)
        of_eps = process.sigma(t_next) - ratio * process.sigma(t)
        improve = lambda _, guess: ratio * x + of_eps * denoise(guess, t_next, cond).eps  # noqa: E731
        return carry, jax.lax.fori_loop(0, self.iterations, improve, x)

    def evaluations(self, steps: np.ndarray, carry) -> float:
        return len(steps) * self.iterations


def reverse_grid(steps: np.ndarray) -> np.ndarray:
    """The steps [S, 2] of a decreasing grid in reverse order, each with its two times swapped."""
    return steps[::-1, ::-1]


def slerp(a: Array, b: Array, share: Array) -> Array:
    """Spherical interpolation from a [B, ...] to b, `share` [B] or scalar in [0, 1] of the way along the great circle.

    Song et al. (2021), "DDIM", Appendix D.5 (Shoemake 1985). It keeps the norm of normal noise, which a straight line
    would shorten. Where a and b are parallel, it is the straight line.
    """
    flat = lambda x: x.reshape(len(x), -1)  # noqa: E731
    norm = jnp.linalg.norm(flat(a), axis=1) * jnp.linalg.norm(flat(b), axis=1)
    angle = jnp.arccos(jnp.clip(jnp.sum(flat(a) * flat(b), axis=1) / norm, -1, 1))
    share = jnp.broadcast_to(share, angle.shape)
    straight = jnp.sin(angle) < 1e-6
    safe = jnp.where(straight, 1, angle)
    of_a = jnp.where(straight, 1 - share, jnp.sin((1 - share) * safe) / jnp.sin(safe))
    of_b = jnp.where(straight, share, jnp.sin(share * safe) / jnp.sin(safe))
    return expand(of_a, a) * a + expand(of_b, b) * b
