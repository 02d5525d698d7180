"""Multistep DPM-Solver++ of the diffusion ODE and SDE: Lu et al. (2022b), Algorithm 2, and k-diffusion's SDE forms."""
import dataclasses
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from diffusion.core import numerics
from diffusion.core.parameterization import Diffusion
from diffusion.errors import require
from diffusion.samplers import multistep
from diffusion.samplers.history import History, empty, push
from diffusion.typing import Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class DPMSolverMultistep(multistep.Multistep):
    """DPM-Solver++(2M) and (3M), and with eta > 0 their SDE forms, at one evaluation a step.

    With h the step in lambda / 2 and k = (1 + eta) h: x_next = sigma_next/sigma e^(-eta h) x + alpha_next ((1 - e^-k)
    x_0 + c_1 d_1 - c_2 d_2) + sigma_next sqrt(1 - e^(-2 eta h)) z, with d_1 and d_2 the divided differences of the last
    x_0 by h. order 2 has c_1 = (1 - e^-k) / 2 ("midpoint") or (e^-k - 1)/k + 1 ("heun"); order 3 the latter and c_2 =
    c_1/k - 1/2. eta = 0 is the ODE and eta = 1 the reverse SDE. The first steps use fewer values, as do long ones
    (`multistep.within_reach`); a step from pure noise or to the data is of first order.
    """
    order: Literal[1, 2, 3] = 2
    eta: float = 0.0
    kind: Literal["midpoint", "heun"] = "midpoint"
    once_a_step = True

    def init(self, x: Image) -> History:
        return empty(x, self.order)

    def step(self, carry: History, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion.process, diffusion.denoise
        x0, eps, _ = denoise(x, t, cond)
        begin, end = process.log_snr(t) / 2, process.log_snr(t_next) / 2
        history = push(carry, x0, begin)
        h = end - begin
        proper = jnp.isfinite(h)
        h = jnp.where(proper, h, 1.0)
        k = (1 + self.eta) * h
        # sigma_next/sigma e^(-eta h) x + alpha_next (1 - e^-k) x_0, written in x_0 and eps: finite for any step.
        kept = jnp.where(proper, jnp.exp(-self.eta * h), 1.0 if self.eta == 0 else 0.0)
        alpha, sigma = process.alpha(t_next), process.sigma(t_next)
        result = alpha * x0 + sigma * kept * eps
        if self.eta > 0:
            share = jnp.where(proper, -jnp.expm1(-2 * self.eta * h), 1.0)
            result += sigma * jnp.sqrt(share) * numerics.normal(keys, x.shape[1:], x.dtype)
        if self.order == 1:
            return history, result

        phi = jnp.expm1(-k) / k + 1
        near = multistep.within_reach(history.times, h, k, self.reach)
        usable = lambda n: proper & (history.count > n) & jnp.isfinite(history.times[n]) & near[n]  # noqa: E731

        def difference(n):
            """x_0's n-th first difference, per unit of h, and its step as a share of h; 0 where there is none."""
            share = (history.times[n] - history.times[n + 1]) / h
            share = jnp.where(usable(n + 1), share, 1.0)
            return jnp.where(usable(n + 1), (history.values[n] - history.values[n + 1]) / share, 0), share

        newest, share = difference(0)
        second_order = phi if self.kind == "heun" else -jnp.expm1(-k) / 2
        if self.order == 2:
            return history, result + alpha * second_order * newest
        older, share_older = difference(1)
        curvature = (newest - older) / (share + share_older)
        third_order = phi * (newest + curvature * share) - (phi / k - 0.5) * curvature
        change = jnp.where(usable(2), third_order, second_order * newest)
        return history, result + alpha * change


def multistep_ode(*,
                  order: Literal[1, 2, 3] = 2,  # order of accuracy for a smooth denoiser
                  solver_type: Literal["midpoint", "heun"] | None = None,  # None: heun for order 3, as in k-diffusion's
                                                                           # 3M SDE, and midpoint otherwise
                  reach: float = 4.0,  # the order is lowered where a step in log-SNR is this many times the previous
                                       # one, or is long; inf: never, as in the papers' code
                  end: Literal[0, 1] = 0,
                  ) -> DPMSolverMultistep:
    """Multistep DPM-Solver++ of the diffusion ODE (Lu et al. 2022b)."""
    return DPMSolverMultistep(order=order, kind=solver_type or ("heun" if order == 3 else "midpoint"), reach=reach,
                              end=end)


def multistep_sde(*, order: Literal[1, 2, 3] = 2, solver_type: Literal["midpoint", "heun"] | None = None,
                  reach: float = 4.0, end: Literal[0, 1] = 0, eta: float = 1.0) -> DPMSolverMultistep:
    """Multistep DPM-Solver++ of the diffusion SDE (Lu et al. 2022b)."""
    require(0 <= eta <= 1, "eta", eta, "must lie in [0, 1]: 0 is deterministic, 1 has all the noise of the reverse "
            "SDE.")
    return dataclasses.replace(multistep_ode(order=order, solver_type=solver_type, reach=reach, end=end), eta=eta)


SOLVERS = {"dpm_solver++m": multistep_ode, "dpm_solver++sde": multistep_sde}
