"""What the network predicts, and the denoiser that this makes of it.

With x_t = alpha x_0 + sigma eps, any one of the targets and x_t give x_0 and eps:
  eps  Ho et al. (2020), Section 3.2
  x0   Ho et al. (2020), Section 3.2 (there found worse than eps)
  v    = alpha eps - sigma x_0, Salimans & Ho (2022), Section 4 and Appendix D
"""
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax.numpy as jnp

from diffusion.core.numerics import expand
from diffusion.core.processes import Process
from diffusion.typing import Array, Cond, Image, Keys, NetworkApply, Params, Time


class Prediction(NamedTuple):
    """The two unknowns of x_t = alpha x_0 + sigma eps, each [B, H, W, C]."""
    x0: Image
    eps: Image


# denoise(x_t [B,H,W,C], t scalar or [B], cond) -> Prediction
Denoise = Callable[[Image, Time, Cond], Prediction]


class Parameterization(NamedTuple):
    """A pair of inverse functions. All arguments broadcast against each other."""
    target: Callable[[Image, Image, Array, Array], Array]         # (x0, eps, alpha, sigma) -> what F should be
    predict: Callable[[Array, Image, Array, Array], Prediction]   # (F, x_t, alpha, sigma) -> x0 and eps


def _eps_predict(f, x_t, alpha, sigma):
    return Prediction((x_t - sigma * f) / alpha, f)


def _x0_predict(f, x_t, alpha, sigma):
    return Prediction(f, (x_t - alpha * f) / sigma)


def _v_predict(f, x_t, alpha, sigma):
    # The inverse of [x_t; v] = [[alpha, sigma], [-sigma, alpha]] [x0; eps], for any alpha and sigma.
    norm = alpha**2 + sigma**2
    return Prediction((alpha * x_t - sigma * f) / norm, (sigma * x_t + alpha * f) / norm)


EPS = Parameterization(lambda x0, eps, alpha, sigma: eps, _eps_predict)
X0 = Parameterization(lambda x0, eps, alpha, sigma: x0, _x0_predict)
V = Parameterization(lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0, _v_predict)


class Denoiser(Protocol):
    """Binds parameters to a Denoise; with `keys` [B] given, the network drops out by them (training)."""
    def __call__(self, params: Params, keys: Keys | None = None) -> Denoise: ...


def make_denoiser(process: Process, parameterization: Parameterization, network: NetworkApply) -> Denoiser:
    """The only place where a network meets the process: losses, samplers and guidance see the Denoise alone."""
    def bind(params: Params, keys: Keys | None = None) -> Denoise:
        def denoise(x_t: Image, t: Time, cond: Cond = None) -> Prediction:
            t = jnp.broadcast_to(t, x_t.shape[:1])
            f = network(params, x_t, process.label(t), cond, keys)
            return parameterization.predict(f, x_t, expand(process.alpha(t), x_t), expand(process.sigma(t), x_t))
        return denoise
    return bind


def clip_x0(denoise: Denoise, process: Process, bound: float = 1.0) -> Denoise:
    """Denoise -> Denoise: x_0 clipped to [-bound, bound], and eps made consistent with it and x_t.

    Ho et al. (2020) clip in their code at each sampling step; eps is recomputed as in improved-diffusion's DDIM.
    """
    def clipped(x_t: Image, t: Time, cond: Cond = None) -> Prediction:
        x0 = jnp.clip(denoise(x_t, t, cond).x0, -bound, bound)
        return X0.predict(x0, x_t, expand(process.alpha(t), x_t), expand(process.sigma(t), x_t))
    return clipped
