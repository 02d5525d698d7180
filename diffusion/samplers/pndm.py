"""PNDM: Liu et al. (2022), "Pseudo Numerical Methods for Diffusion Models on Manifolds"."""
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import grids
from diffusion.core.parameterization import Diffusion
from diffusion.samplers import history, multistep
from diffusion.samplers.base import Solver
from diffusion.typing import Array, Cond, Image, Keys, Time

# Adams-Bashforth for equal steps, the newest value first, by the number of values; the paper's is the last row.
ADAMS = np.array([[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0],
                  [55 / 24, -59 / 24, 37 / 24, -9 / 24]])


class Carry(NamedTuple):
    history: history.History  # eps
    calls: Array              # of the denoiser, int32


@dataclass(frozen=True, kw_only=True)
class PNDM(Solver):
    """DDIM's step with a weighted mean of the last four eps in place of eps (Eq. 9), with weights for equal steps.

    The first steps, which have fewer than four values, use one of
      runge_kutta  three pseudo Runge-Kutta steps, four evaluations each: F-PNDM
      heun         one step with the mean of eps at its two ends, then all values so far (latent-diffusion's and
                   diffusers' PLMS, skip_prk_steps; the paper's S-PNDM continues with two)
    A step from pure noise or to t_next = 0 uses neither and takes one evaluation. The order is 2 for equal steps in t,
    and 4 with runge_kutta if t is also sigma / alpha.
    """
    start: Literal["runge_kutta", "heun"] = "runge_kutta"
    constant_stride: bool = False
    end: Literal[0, 1] = 0
    largest_level = 1e3  # it extrapolates eps, whose errors are this many times as large in x_0

    @property
    def between_times(self) -> bool:
        return self.start == "runge_kutta"

    def pair_times(self, times: np.ndarray, t_max: int) -> np.ndarray:
        return grids.constant_stride(times, t_max, self.end) if self.constant_stride else grids.pairs(times, self.end)

    def init(self, x: Image):
        return Carry(history.empty(x, 4), jnp.zeros((), jnp.int32))

    def step(self, carry: Carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion.process, diffusion.denoise
        x0, eps, _ = denoise(x, t, cond)
        level = process.noise_level(t)
        level = jnp.where(jnp.isfinite(level), level, 0)  # there `mean` is of eps at pure noise only

        def transfer(mean: Image, t: Time) -> Image:
            """Eq. 9: from x to t along `mean` instead of eps."""
            return process.alpha(t) * (x0 - level * (mean - eps)) + process.sigma(t) * mean

        def at(mean: Image, t: Time) -> Image:
            return denoise(transfer(mean, t), t, cond).eps.astype(x.dtype)

        def heun() -> Image:
            return (eps + at(eps, t_next)) / 2

        def runge_kutta() -> Image:
            middle = t - (t - t_next) // 2 if jnp.issubdtype(t.dtype, jnp.integer) else (t + t_next) / 2
            second = at(eps, middle)
            third = at(second, middle)
            return (eps + 2 * second + 2 * third + at(third, t_next)) / 6

        past = history.push(carry.history, eps, t)
        starting, method, calls = {"heun": (1, heun, 1), "runge_kutta": (3, runge_kutta, 3)}[self.start]
        more = (past.count <= starting) & (t_next > 0) & jnp.isfinite(process.log_snr(t))
        weights = jnp.asarray(ADAMS, x.dtype)[jnp.minimum(past.count, 4) - 1]
        mean = jax.lax.cond(more, method, lambda: eps + multistep.combine(weights, past.values, eps))
        return Carry(past, carry.calls + 1 + calls * more), transfer(mean, t_next)

    def evaluations(self, steps: np.ndarray, carry: Carry) -> float:
        return int(carry.calls)


def pndm(*, constant_stride: bool = False, end: Literal[0, 1] = 0) -> PNDM:
    """F-PNDM, which starts with pseudo Runge-Kutta steps (Liu et al. 2022)."""
    return PNDM(start="runge_kutta", constant_stride=constant_stride, end=end)


def plms(*, constant_stride: bool = False, end: Literal[0, 1] = 0) -> PNDM:
    """PNDM without Runge-Kutta steps, as in latent diffusion and diffusers."""
    return PNDM(start="heun", constant_stride=constant_stride, end=end)


SOLVERS = {"pndm": pndm, "plms": plms}
