"""The preconditionings of Karras et al. (2022), "EDM", Table 1: parameterizations that scale the network's input.

D = c_skip x + c_out F(c_in x; c_noise), with x = x_t / alpha and its noise level sigma / alpha, the paper's sigma.
"""
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from diffusion.core.parameterization import Parameterization
from diffusion.core.processes import Process
from diffusion.errors import require
from diffusion.typing import Array, Time


def edm(sigma_data: float) -> Parameterization:
    """Column "Ours". Raises FieldError for a sigma_data that is not above 0.

    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2), c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2), c_in = 1
    / sqrt(sigma^2 + sigma_data^2), c_noise = ln(sigma) / 4. The network's input and target have variance 1 if the data
    have variance sigma_data^2: F = (x_0 - c_skip (x_0 + sigma eps)) / c_out.
    """
    require(sigma_data > 0, "sigma_data", sigma_data, "must be positive (Karras et al. 2022: 0.5).")

    def spread(process: Process, t: Time) -> Array:
        """The standard deviation of x_t: alpha sqrt((sigma / alpha)^2 + sigma_data^2), finite where alpha is 0."""
        return jnp.sqrt(process.sigma(t) ** 2 + (process.alpha(t) * sigma_data) ** 2)

    def coefficients(process: Process, t: Time) -> tuple[Array, Array]:
        total = spread(process, t)
        return process.sigma(t) / (sigma_data * total), -sigma_data * process.alpha(t) / total

    return Parameterization(coefficients=coefficients, c_in=lambda process, t: 1 / spread(process, t),
                            c_noise=lambda process, t: -process.log_snr(t) / 8)


def vp(*, beta_min: float = 0.1, beta_d: float = 19.9, steps: int = 1000) -> Parameterization:
    """Column "VP": F = eps, c_noise = (M - 1) t, where t is the time of the same noise level in the VP SDE."""
    def time(level: Array) -> Array:
        total = jnp.log1p(level**2)
        return 2 * total / (beta_min + jnp.sqrt(beta_min**2 + 2 * beta_d * total))
    return _of_eps(lambda level: (steps - 1) * time(level))


def ve() -> Parameterization:
    """Column "VE": F = -eps, c_noise = ln(sigma / 2), input not scaled."""
    return _of_eps(lambda level: jnp.log(level / 2), sign=-1, scale_input=False)


def iddpm(*, c_1: float = 0.001, c_2: float = 0.008, steps: int = 1000) -> Parameterization:
    """Column "iDDPM": F = eps, c_noise = index of the nearest of the M levels of Improved DDPM's cosine schedule."""
    table = iddpm_levels(c_1, c_2, steps)

    def nearest(level: Array) -> Array:
        levels = jnp.asarray(table, level.dtype).reshape((1,) * level.ndim + (-1,))
        return jnp.argmin(jnp.abs(level[..., None] - levels), axis=-1)
    return _of_eps(lambda level: (steps - 1 - nearest(level)).astype(level.dtype))


def iddpm_levels(c_1: float = 0.001, c_2: float = 0.008, steps: int = 1000) -> np.ndarray:
    """u_0 .. u_M, float64, falling to 0: u_{j-1} = sqrt((u_j^2 + 1) / max(alpha_bar_{j-1} / alpha_bar_j, C_1) - 1).

    alpha_bar_j = sin^2(pi/2 j / (M (C_2 + 1))), M = `steps`.
    """
    alpha_bar = np.sin(np.pi / 2 * np.arange(steps + 1) / steps / (c_2 + 1)) ** 2
    log_kept = np.log(np.maximum(alpha_bar[:-1] / alpha_bar[1:], c_1))
    return np.sqrt(np.expm1(np.append(-np.cumsum(log_kept[::-1])[::-1], 0.0)))


def _of_eps(c_noise: Callable[[Array], Array], *, sign: int = 1, scale_input: bool = True) -> Parameterization:
    """D = x - sign sigma F(c_in x; c_noise), so that F = sign eps; c_in = 1 / sqrt(sigma^2 + 1), or 1."""
    def c_in(process: Process, t: Time) -> Array:
        level = process.noise_level(t) if scale_input else 0.0
        return 1 / (process.alpha(t) * jnp.sqrt(level**2 + 1))

    return Parameterization(coefficients=lambda process, t: (0, sign), c_in=c_in,
                            c_noise=lambda process, t: c_noise(process.noise_level(t)))


def edm_vp() -> Parameterization:
    """The column "VP" of Karras et al. (2022), Table 1, with the table's own constants."""
    return vp()


def edm_iddpm() -> Parameterization:
    """The column "iDDPM" of Karras et al. (2022), Table 1, with the table's own constants."""
    return iddpm()


PREDICTIONS = {"edm": edm, "edm_vp": edm_vp, "edm_ve": ve, "edm_iddpm": edm_iddpm}
