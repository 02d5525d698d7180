"""DDIM: Song, Meng & Ermon (2021), "Denoising Diffusion Implicit Models", Eqs. 12 and 16."""
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np

from diffusion.core import grids, numerics
from diffusion.core.parameterization import Diffusion
from diffusion.errors import require
from diffusion.samplers.base import Solver
from diffusion.typing import Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class DDIM(Solver):
    """DDIM (Song et al. 2021).

    x_s = alpha_s x_0_hat + sqrt(sigma_s^2 - std^2) eps_hat + std z, std = eta sigma_s sqrt(1 - SNR_t/SNR_s).

    eta = 0 is deterministic; eta = 1 is the ancestral sampler with the small variance.
    """
    eta: float = 0.0               # share of the reverse SDE's noise, 0 .. 1
    constant_stride: bool = False  # each step goes down by T // steps, whatever the next time
    end: Literal[0, 1] = 0         # where the last step ends: 0, clean data, or 1, the least noisy time
    once_a_step = correctable = True

    def __post_init__(self):
        require(0 <= self.eta <= 1, "eta", self.eta, "must lie in [0, 1]: 0 is deterministic, 1 is ancestral sampling "
                "(Song et al. 2021, DDIM, Eq. 16).")

    def pair_times(self, times: np.ndarray, t_max: int) -> np.ndarray:
        return grids.constant_stride(times, t_max, self.end) if self.constant_stride else grids.pairs(times, self.end)

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion.process, diffusion.denoise
        x0, eps, _ = denoise(x, t, cond)
        sigma = process.sigma(t_next)
        share = self.eta**2 * process.noise_added_fraction(t_next, t)  # of sigma^2 that is new noise
        x = process.alpha(t_next) * x0 + sigma * jnp.sqrt(1 - share) * eps
        if self.eta > 0:
            x += sigma * jnp.sqrt(share) * numerics.normal(keys, x.shape[1:], x.dtype)
        return carry, x


def euler_ancestral() -> DDIM:
    """DDIM with all the noise of the reverse SDE, under k-diffusion's name."""
    return DDIM(eta=1.0)


SOLVERS = {"ddim": DDIM, "euler_ancestral": euler_ancestral}
