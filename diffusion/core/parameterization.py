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
    """The two unknowns of x_t = alpha x_0 + sigma eps, each [B, H, W, C], and what a second head says of the
    variance."""
    x0: Image
    eps: Image
    variance_fraction: Image | None = None  # v in Nichol & Dhariwal (2021), Eq. 15: 0 the small variance, 1 the large


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


def make_denoiser(process: Process, parameterization: Parameterization, network: NetworkApply, *,
                  learned_range: bool = False) -> Denoiser:
    """The only place where a network meets the process: losses, samplers and guidance see the Denoise alone.

    learned_range: the network gives 2C channels, the second half of which is 2v - 1 (Nichol & Dhariwal 2021, Eq. 15).
    """
    def bind(params: Params, keys: Keys | None = None) -> Denoise:
        def denoise(x_t: Image, t: Time, cond: Cond = None) -> Prediction:
            t = jnp.broadcast_to(t, x_t.shape[:1])
            f = network(params, x_t, process.label(t), cond, keys)
            f, head = jnp.split(f, 2, axis=-1) if learned_range else (f, None)
            prediction = parameterization.predict(f, x_t, expand(process.alpha(t), x_t), expand(process.sigma(t), x_t))
            return prediction if head is None else prediction._replace(variance_fraction=(head + 1) / 2)
        return denoise
    return bind


def map_x0(denoise: Denoise, process: Process, change: Callable[[Image], Image], *, rederive_eps: bool) -> Denoise:
    """Denoise -> Denoise: x_0 changed, and eps made consistent with it and x_t, or left as the network gave it."""
    def changed(x_t: Image, t: Time, cond: Cond = None) -> Prediction:
        prediction = denoise(x_t, t, cond)
        x0, eps = change(prediction.x0), prediction.eps
        if rederive_eps:
            eps = X0.predict(x0, x_t, expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)).eps
        return prediction._replace(x0=x0, eps=eps)
    return changed


def clip_x0(denoise: Denoise, process: Process, bound: float = 1.0, *, rederive_eps: bool = True) -> Denoise:
    """x_0 clipped to [-bound, bound].

    Ho et al. (2020) clip in their code at each sampling step; eps is recomputed as in improved-diffusion's DDIM.
    """
    return map_x0(denoise, process, lambda x0: jnp.clip(x0, -bound, bound), rederive_eps=rederive_eps)


def dynamic_threshold(denoise: Denoise, process: Process, quantile: float, largest: float, *,
                      rederive_eps: bool = True) -> Denoise:
    """x_0 of each example clipped to [-s, s] and divided by s, the `quantile` of |x_0|, kept within [1, largest].

    Saharia et al. (2022), "Imagen", Section 2.3.
    """
    def threshold(x0: Image) -> Image:
        s = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), quantile, axis=1)
        s = expand(jnp.clip(s, 1.0, largest), x0)
        return jnp.clip(x0, -s, s) / s
    return map_x0(denoise, process, threshold, rederive_eps=rederive_eps)
