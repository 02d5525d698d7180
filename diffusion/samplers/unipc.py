"""UniPC: Zhao et al. (2023), "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models"."""
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from diffusion.core.parameterization import Diffusion
from diffusion.samplers import multistep
from diffusion.typing import Cond, Image, Keys, Time

# B(h) / h, by the signed step.
B = {"B1": jnp.ones_like, "B2": lambda h: jnp.expm1(h) / h}


@dataclass(frozen=True, kw_only=True)
class UniPC(multistep.Multistep):
    """UniP-p and UniC-p, multistep: global order p + 1 with the corrector, p without, at one evaluation a step.

    With three or more values, exact interpolation solves the paper's linear system, whatever B. With two (the predictor
    of order 2 and the corrector of order 1), the authors' code sets the coefficient to 1/2, and B(h) matters: h (B1,
    which they advise for unconditional models) or e^h - 1 (B2, for guided ones).
    """
    order: int = 2
    variant: Literal["B1", "B2"] = "B2"
    predict: Literal["x0", "eps"] = "x0"
    corrector: bool = True

    def init(self, x: Image):
        return multistep.init(x, self.order + 1)

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        return multistep.step(carry, x, t, t_next, diffusion, keys, cond, predictor=self.order,
                              corrector=self.order + 1 if self.corrector else 0, data=self.predict == "x0",
                              mean_density=B[self.variant], reach=self.reach)


def unipc(*, order: Literal[1, 2, 3] = 2,
          unipc_variant: Literal["B1", "B2"] = "B2",  # B(h): B1 for unconditional models, B2 for guided ones (Zhao et
                                                      # al. 2023)
          reach: float = 4.0, end: Literal[0, 1] = 0) -> UniPC:
    """UniPC (Zhao et al. 2023), multistep predictor and corrector."""
    return UniPC(order=order, variant=unipc_variant, reach=reach, end=end)


SOLVERS = {"unipc": unipc}
