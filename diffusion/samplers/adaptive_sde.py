"""Adaptive integration of the reverse-time SDE: Jolicoeur-Martineau et al. (2021), "Gotta Go Fast"."""
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import numerics
from diffusion.core.numerics import expand, mean_flat
from diffusion.core.parameterization import Diffusion
from diffusion.errors import require
from diffusion.samplers.base import Solver
from diffusion.typing import Array, Cond, Image, Keys, Time


class Path(NamedTuple):
    """The progress of each example; all fields but x, before and tries are [B]."""
    x: Image
    before: Image  # the Euler-Maruyama x' of the last accepted step, which scales the error
    t: Array
    h: Array       # the next step's size; 0: done
    calls: Array
    tries: Array   # attempts so far in this row


@dataclass(frozen=True, kw_only=True)
class AdaptiveSDE(Solver):
    """Euler-Maruyama's step x' and the stochastic Heun step x'', with the same noise (Algorithm 1).

    The error is |x' - x''| / max(absolute, relative max(|x'|, |x'_before|)), its root mean square over the pixels. x''
    is accepted if it is at most 1; the next step is `safety` error^-exponent times as long. A rejected step draws new
    noise, as in the authors' code, which makes accepted paths slightly smoother than they should be.

    The defaults are the paper's for images in [-1, 1]; absolute is one byte level, and the first step is t / 100. Each
    row (t, t_next) of the grid is integrated as a whole; a row that ends at 0 returns the denoiser's x_0. Each example
    has its own steps, so its result does not depend on the batch, which runs until its slowest example is done. An
    example that takes more than max_steps becomes NaN. The carry counts evaluations [B].
    """
    relative: float = 0.02
    absolute: float = 2 / 256
    safety: float = 0.9
    exponent: float = 0.9
    max_steps: int = 4096
    between_times = adaptive = True
    from_pure_noise = False

    def init(self, x: Image) -> Array:
        return jnp.zeros(len(x), jnp.int32)

    def step(self, carry: Array, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion.process, diffusion.denoise
        t, t_next = jnp.asarray(t, x.dtype), jnp.asarray(t_next, x.dtype)

        def change(x: Image, t: Array, h: Array, z: Image) -> Image:
            """The change of x over a step h, with the slope at (x, t)."""
            eps = denoise(x, t, cond).eps
            f, g = (expand(rate, x) for rate in process.drift_and_diffusion(t))
            h = expand(h, x)
            return -h * (f * x + g**2 / expand(process.sigma(t), x) * eps) + jnp.sqrt(h) * g * z

        def attempt(path: Path) -> Path:
            x, t, h = path.x, path.t, path.h
            z = numerics.normal(numerics.fold_in(keys, path.tries), x.shape[1:], x.dtype)
            first = change(x, t, h, z)
            second = change(x + first, t - h, h, z)
            allowed = jnp.maximum(self.absolute,
                                  self.relative * jnp.maximum(jnp.abs(path.before), jnp.abs(x + first)))
            error = jnp.sqrt(mean_flat((0.5 * (second - first) / allowed) ** 2))
            accepted = error <= 1
            taken = expand(accepted, x)
            t = jnp.where(accepted, jnp.where(h < t - t_next, t - h, t_next), t)  # exactly the row's end
            longer = self.safety * h * jnp.maximum(error, 1e-10) ** -self.exponent
            return Path(x=jnp.where(taken, x + 0.5 * (first + second), x), t=t,
                        before=jnp.where(taken, x + first, path.before),
                        h=jnp.where(h > 0, jnp.clip(longer, 0, t - t_next), 0),
                        calls=path.calls + 2 * (h > 0), tries=path.tries + 1)

        def integrate(x: Image) -> tuple[Image, Array]:
            ones = jnp.ones(len(x), x.dtype)
            start = Path(x, x, t * ones, jnp.minimum(0.01 * t, t - t_next) * ones, carry, jnp.int32(0))
            unfinished = lambda path: jnp.any(path.h > 0) & (path.tries < self.max_steps)  # noqa: E731
            path = jax.lax.while_loop(unfinished, attempt, start)
            return jnp.where(expand(path.t <= t_next, x), path.x, jnp.nan), path.calls

        def finish(x: Image) -> tuple[Image, Array]:
            return denoise(x, t, cond).x0, carry + 1

        x, carry = jax.lax.cond(t_next > 0, integrate, finish, x)
        return carry, x

    def evaluations(self, steps: np.ndarray, carry: Array) -> float:
        return float(np.mean(carry))


def adaptive_sde(*, tolerance: float = 0.02) -> AdaptiveSDE:
    """The reverse SDE with adaptive steps per example (Jolicoeur-Martineau et al. 2021), at a relative tolerance."""
    require(tolerance > 0, "tolerance", tolerance, "must be positive (Jolicoeur-Martineau et al. 2021: 0.01 to 0.5).")
    return AdaptiveSDE(relative=tolerance)


SOLVERS = {"adaptive_sde": adaptive_sde}
