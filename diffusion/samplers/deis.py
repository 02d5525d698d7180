"""DEIS: Zhang & Chen (2023), "Fast Sampling of Diffusion Models with Exponential Integrator"."""
from dataclasses import dataclass
from typing import Literal

from diffusion.core.parameterization import Diffusion
from diffusion.samplers import multistep
from diffusion.typing import Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class DEIS(multistep.Multistep):
    """tAB-DEIS of global order `order` (Eqs. 14-15), with eps a polynomial in the logarithm of rho = sigma / alpha.

    The paper's variable is t, which for the VP SDE's linear beta is near log(rho); diffusers uses log(rho) too
    ("logrho"). Order 1 is DDIM.
    """
    order: int = 3
    once_a_step = True

    def init(self, x: Image):
        return multistep.init(x, self.order)

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        return multistep.step(carry, x, t, t_next, diffusion, keys, cond, predictor=self.order, corrector=0, data=False,
                              reach=self.reach)


def deis(*, order: Literal[1, 2, 3, 4] = 3, reach: float = 4.0, end: Literal[0, 1] = 0) -> DEIS:
    """DEIS (Zhang & Chen 2023), exponential integration of eps, multistep."""
    return DEIS(order=order, reach=reach, end=end)


SOLVERS = {"deis": deis}
