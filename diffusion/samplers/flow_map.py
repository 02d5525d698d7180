"""Steps by a flow map, for models whose network has two times. From the library only: no network of the configs has."""
from dataclasses import dataclass

from diffusion.core.parameterization import Diffusion
from diffusion.samplers.base import Carry, Solver
from diffusion.typing import Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class FlowMap(Solver):
    """x_r = flow_map(x_t, t, r): the probability flow from t to r in one call (Geng et al. 2025, "Mean Flows", Eq. 12;
    Kim et al. 2024, "CTM", Eq. 4)."""
    once_a_step = True

    def step(self, carry: Carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys,
             cond: Cond) -> tuple[Carry, Image]:
        if diffusion.flow_map is None:
            raise ValueError("This solver needs a flow map, which the model has not, or which a transform such as "
                             "clipping or guidance left out: its network must have two times (two_times=True).")
        return carry, diffusion.flow_map(x, t, t_next, cond)
