"""SA-Solver: Xue et al. (2023), "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models"."""
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np

from diffusion.core.parameterization import Diffusion
from diffusion.errors import require
from diffusion.samplers import multistep
from diffusion.samplers.base import Solver
from diffusion.typing import Array, Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class SASolver(Solver):
    """The SDE with tau times the reverse SDE's noise, by Adams-Bashforth and Adams-Moulton steps (Algorithm 1).

    predictor: number of x_0 values in the predictor. corrector: the same for the corrector, with the value at the
    step's end included; 0: no corrector. With two values, the weight of their difference is UniPC's with B(h) = h, as
    in the authors' code.

    tau applies where sigma / alpha at the step's start is in [noise_min, noise_max], and is 0 elsewhere. The paper's
    interval is 0.05 .. 1 on CIFAR10 and ImageNet 64. tau = 0 is the ODE, 1 the reverse SDE.
    """
    predictor: int = 2
    corrector: int = 2
    tau: float = 1.0
    noise_min: float = 0.0
    noise_max: float = np.inf
    reach: float = np.inf

    def init(self, x: Image):
        return multistep.init(x, max(self.predictor, self.corrector, 2))  # the corrector starts from the second

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        return multistep.step(carry, x, t, t_next, diffusion, keys, cond, predictor=self.predictor,
                              corrector=self.corrector, data=True, tau=self.amount,
                              mean_density=jnp.ones_like, reach=self.reach)

    def amount(self, half_log_snr: Array) -> Array:
        level = jnp.exp(-half_log_snr)
        return jnp.where((level >= self.noise_min) & (level <= self.noise_max), self.tau, 0.0)


def sa_solver(*, order: Literal[1, 2, 3] = 2, eta: float = 1.0, reach: float = 4.0) -> SASolver:
    """SA-Solver (Xue et al. 2023), its predictor and corrector of the same order; eta is the paper's tau."""
    require(0 <= eta <= 1, "eta", eta, "must lie in [0, 1]: 0 is deterministic, 1 has all the noise of the reverse "
            "SDE.")
    multistep.check_reach(reach)
    return SASolver(predictor=order, corrector=order, tau=eta, reach=reach)


SOLVERS = {"sa_solver": sa_solver}
