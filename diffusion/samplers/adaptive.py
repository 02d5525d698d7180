"""Adaptive integration of the probability-flow ODE by diffrax, with step sizes per example."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.parameterization import Diffusion
from diffusion.errors import ConfigError, require
from diffusion.samplers.base import Solver
from diffusion.typing import Array, Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class AdaptiveODE(Solver):
    """Dormand and Prince's method of order 5(4), "RK45" (Song et al. 2021, Appendix D.4: rtol = atol = 1e-5).

    Each row (t, t_next) of the grid is integrated as a whole; a row that ends at 0 returns the denoiser's x_0. Each
    example has its own steps, so its result does not depend on the batch, which runs until its slowest example is done.
    An example that takes more than max_steps becomes NaN. The carry counts evaluations [B]. Raises ConfigError without
    diffrax.
    """
    tolerance: float = 1e-5
    max_steps: int = 4096
    between_times = adaptive = True

    def init(self, x: Image) -> Array:
        return jnp.zeros(len(x), jnp.int32)

    def step(self, carry: Array, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        try:
            import diffrax
        except ImportError as error:
            raise ConfigError("The adaptive ODE needs diffrax, which is not installed. Install the extra: "
                              "pip install 'diffusion[ode]'.") from error
        process, denoise = diffusion.process, diffusion.denoise
        t, t_next = jnp.asarray(t, x.dtype), jnp.asarray(t_next, x.dtype)

        def one(x, cond):
            def slope(s, x, _):
                x0, eps, _ = denoise(x[None], s, jax.tree.map(lambda c: c[None], cond))
                return process.velocity(x0, eps, s)[0]

            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(slope), diffrax.Dopri5(), t, t_next, None, x, max_steps=self.max_steps, throw=False,
                stepsize_controller=diffrax.PIDController(rtol=self.tolerance, atol=self.tolerance))
            done = solution.result == diffrax.RESULTS.successful
            # Six new slopes a step (the seventh is the previous step's last), and two for the first step's size.
            return jnp.where(done, solution.ys[0], jnp.nan), (6 * solution.stats["num_steps"] + 2).astype(jnp.int32)

        def integrate(x):
            return jax.vmap(one)(x, cond)

        def finish(x):
            return denoise(x, t, cond).x0, jnp.ones(len(x), jnp.int32)

        x, calls = jax.lax.cond(t_next > 0, integrate, finish, x)
        return carry + calls, x

    def evaluations(self, steps: np.ndarray, carry: Array) -> float:
        return float(np.mean(carry))


def adaptive_ode(*,
                 tolerance: float = 1e-5,  # of a step's error: relative and absolute; for adaptive_sde relative only
                 ) -> AdaptiveODE:
    """The probability-flow ODE with adaptive steps, RK45 (Song et al. 2021, Appendix D.4)."""
    require(tolerance > 0, "tolerance", tolerance, "must be positive (Song et al. 2021: 1e-5).")
    return AdaptiveODE(tolerance=tolerance)


SOLVERS = {"adaptive_ode": adaptive_ode}
