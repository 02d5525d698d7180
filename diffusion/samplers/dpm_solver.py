"""Single-step exponential integrators: DPM-Solver and DPM-Solver++ (Lu et al. 2022a, 2022b)."""
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.parameterization import Diffusion
from diffusion.samplers.base import Solver
from diffusion.samplers.multistep import check_reach
from diffusion.typing import Array, Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class DPMSolver(Solver):
    """DPM-Solver-k (predict "eps": Lu et al. 2022a, Algorithms 1-2) and DPM-Solver++(kS) ("x0": 2022b, Algorithm 1).

    A step of h in lambda / 2 takes `order` evaluations: order 1 is DDIM, order 2 adds one in the middle, order 3 two at
    1/3 and 2/3. A step is DDIM's plus a correction. Steps from pure noise (infinite h) and the last step, to the data,
    have no correction; nor has order 2 for eps where h > reach / 2, since it grows as e^h. The carry counts
    evaluations.
    """
    order: Literal[1, 2, 3] = 2
    predict: Literal["eps", "x0"] = "eps"
    reach: float = np.inf

    def init(self, x: Image) -> Array:
        return jnp.zeros((), jnp.int32)

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion.process, diffusion.denoise
        x0, eps, _ = denoise(x, t, cond)
        ddim = lambda s: process.alpha(s) * x0 + process.sigma(s) * eps  # noqa: E731
        if self.order == 1:
            return carry + 1, ddim(t_next)
        begin = process.log_snr(t)
        span = process.log_snr(t_next) - begin
        proper = jnp.isfinite(span) & jnp.isfinite(begin)
        if self.order == 2 and self.predict == "eps":
            proper &= span <= self.reach
        span, begin = jnp.where(proper, span, 1.0), jnp.where(proper, begin, 0.0)
        of_x0 = self.predict == "x0"
        h = -span / 2 if of_x0 else span / 2  # the sign of the exponent
        scale = process.alpha if of_x0 else process.sigma

        def model(x, s):
            prediction = denoise(x, s, cond)
            return prediction.x0 if of_x0 else prediction.eps

        def corrected(x):
            start = x0 if of_x0 else eps
            if self.order == 2:
                middle = process.time_of_log_snr(begin + span / 2)
                change = model(ddim(middle), middle) - start
                return ddim(t_next) - scale(t_next) * jnp.expm1(h) * change
            third, two_thirds = process.time_of_log_snr(begin + span / 3), process.time_of_log_snr(begin + span * 2 / 3)
            change = model(ddim(third), third) - start
            phi = lambda h: jnp.expm1(h) / h - 1  # noqa: E731
            x_two = ddim(two_thirds) - scale(two_thirds) * 2 * phi(h * 2 / 3) * change
            change = model(x_two, two_thirds) - start
            return ddim(t_next) - scale(t_next) * 1.5 * phi(h) * change

        return (carry + jnp.where(proper, self.order, 1),
                jax.lax.cond(proper, corrected, lambda x: ddim(t_next), x))

    def evaluations(self, steps: np.ndarray, carry: Array) -> float:
        return int(carry)


def dpm_solver(*, order: Literal[1, 2, 3] = 2, reach: float = 4.0) -> DPMSolver:
    """DPM-Solver, single-step, of eps (Lu et al. 2022a)."""
    check_reach(reach)
    return DPMSolver(order=order, predict="eps", reach=reach)


def dpm_solver_plus_plus(*, order: Literal[1, 2, 3] = 2) -> DPMSolver:
    """DPM-Solver++, single-step, of x_0 (Lu et al. 2022b)."""
    return DPMSolver(order=order, predict="x0")


SOLVERS = {"dpm_solver": dpm_solver, "dpm_solver++": dpm_solver_plus_plus}
