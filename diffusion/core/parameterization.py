"""Parameterizations (the network predicts eps, x_0, v, ...), and the denoiser built from one and a network.

Every parameterization predicts F = a x_0 + b eps, with functions a and b of t. Since x_t = alpha x_0 + sigma eps, F and
x_t determine x_0 and eps. Errors transform by the same formula, so a loss may be measured in any parameterization's
space.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from diffusion.core.numerics import expand
from diffusion.core.processes import Process
from diffusion.typing import NO_COND, Array, Cond, Image, Keys, NetworkApply, Params, Time


class Prediction(NamedTuple):
    """The two unknowns of x_t = alpha x_0 + sigma eps, each [B, H, W, C], and the second head's variance output."""
    x0: Image
    eps: Image
    variance_fraction: Image | None = None  # v in Nichol & Dhariwal (2021), Eq. 15: 0 the small variance, 1 the large


# denoise(x_t [B,H,W,C], t scalar or [B], cond) -> Prediction
Denoise = Callable[[Image, Time, Cond], Prediction]
# network(x_t, t, cond, r=None) -> heads by name: "f", and "variance" where there is one
Network = Callable[..., Mapping[str, Array]]
# flow_map(x_t, t, r, cond) -> x_r
FlowMap = Callable[[Image, Time, Time, Cond], Image]


class Diffusion(NamedTuple):
    """A process and its denoiser with their parameters bound: the interface of losses, samplers and likelihoods.

    network: the raw output at x_t, and flow_map: the solution at time r of the probability flow through x_t, for a
    network of two times. A transform of a Diffusion changes all three functions, or leaves out those that it cannot
    change: None.
    """
    process: Process
    denoise: Denoise
    network: Network | None = None
    flow_map: FlowMap | None = None


@dataclass(frozen=True, kw_only=True)
class Parameterization:
    """The network takes c_in x_t and c_noise and predicts F = a x_0 + b eps (EDM, Eq. 7: its c_skip and c_out are
    equivalent to a and b). A coefficient that is 0 for all t is the Python number 0."""
    coefficients: Callable[[Process, Time], tuple[Array | float, Array | float]]      # -> (a, b), of the shape of t
    c_in: Callable[[Process, Time], Array | float] = lambda process, t: 1.0           # of the shape of t
    c_noise: Callable[[Process, Time], Array] = lambda process, t: process.c_noise(t)   # [B]
    both: bool = False           # two heads predict x_0 and eps (`x0_and_eps`); the coefficients are unused
    of_steps: bool = False       # defined by the step from t to t - 1 of a discrete chain
    at_pure_noise: bool = False  # it determines x_0 where alpha is 0

    def target(self, process: Process, x0: Image, eps: Image, t: Time) -> Array:
        """a x_0 + b eps."""
        a, b = self.coefficients(process, t)
        return expand(a, x0) * x0 + expand(b, x0) * eps

    def predict(self, process: Process, f: Array, x_t: Image, t: Time) -> Prediction:
        """x_0 and eps of F and x_t: the inverse of [x_t; F] = [[alpha, sigma], [a, b]] [x_0; eps]."""
        a, b = self.coefficients(process, t)
        alpha, sigma = expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)
        if _is_zero(a):  # F itself, to the last bit, and also where alpha is 0
            eps = f / expand(b, x_t)
            return Prediction((x_t - sigma * eps) / alpha, eps)
        if _is_zero(b):
            x0 = f / expand(a, x_t)
            return Prediction(x0, (x_t - alpha * x0) / sigma)
        a, b, determinant = (expand(c, x_t) for c in (a, b, self.determinant(process, t)))
        return Prediction((b * x_t - sigma * f) / determinant, (alpha * f - a * x_t) / determinant)

    def determinant(self, process: Process, t: Time) -> Array:
        """alpha b - sigma a, [B]: at fixed x_t, alpha times the error in F divided by the error in eps."""
        a, b = self.coefficients(process, t)
        return process.alpha(t) * b if _is_zero(a) else process.alpha(t) * b - process.sigma(t) * a


def _is_zero(c: Array | float) -> bool:
    return isinstance(c, int | float) and c == 0


# Ho et al. (2020), Section 3.2: the noise, and the data (which they found worse).
EPS = Parameterization(coefficients=lambda process, t: (0, 1))
X0 = Parameterization(coefficients=lambda process, t: (1, 0), at_pure_noise=True)
# v = alpha eps - sigma x_0 (Salimans & Ho 2022, Section 4 and Appendix D).
V = Parameterization(coefficients=lambda process, t: (-process.sigma(t), process.alpha(t)), at_pure_noise=True)
# The score of q(x_t), -eps / sigma (Song et al. 2021, "Score SDE", Eq. 7).
SCORE = Parameterization(coefficients=lambda process, t: (0, -1 / process.sigma(t)))
# dx_t / dt = alpha' x_0 + sigma' eps (Lipman et al. 2023; Ma et al. 2024, "SiT"); eps - x_0 for the flow process.
VELOCITY = Parameterization(coefficients=lambda process, t: process.alpha_sigma_derivatives(t), at_pure_noise=True)
# The mean of q(x_{t-1} | x_t, x_0), of a table (Ho et al. 2020, Section 3.2 and Table 2, which they found worse).
MEAN = Parameterization(coefficients=lambda process, t: process.posterior_coefficients(t - 1, t), of_steps=True)
# Both x_0 and eps, by two heads (Salimans & Ho 2022, Section 4).
X0_AND_EPS = Parameterization(coefficients=lambda process, t: (0, 1), both=True)

PREDICTIONS = {"eps": EPS, "x0": X0, "v": V, "score": SCORE, "velocity": VELOCITY, "mean": MEAN,
               "x0_and_eps": X0_AND_EPS}


def x0_and_eps(process: Process, f: Array, x_t: Image, t: Time) -> Prediction:
    """x_0 and eps from two heads of C channels: Salimans & Ho (2022), Section 4, "(x, eps)".

    x_0 = sigma^2 x_0' + alpha (x_t - sigma eps'), and eps follows from x_0 and x_t. Both squares are divided by alpha^2
    + sigma^2 where that is not 1.
    """
    by_x0, by_eps = (p.predict(process, head, x_t, t) for p, head in zip((X0, EPS), jnp.split(f, 2, axis=-1)))
    share = expand(jax.nn.sigmoid(-process.log_snr(t)), x_t)
    return Prediction(*(share * one + (1 - share) * other for one, other in zip(by_x0[:2], by_eps[:2])))


class Denoiser(Protocol):
    """Binds parameters; `keys` [B], given in training, are the keys of the network's dropout."""
    def __call__(self, params: Params, keys: Keys | None = None) -> Diffusion: ...


def make_denoiser(process_of: Callable[[Params], Process], parameterization: Parameterization,
                  network: NetworkApply, *, two_times: bool = False) -> Denoiser:
    """A Denoiser from a process and a network; losses, samplers and guidance use only the Diffusion that it returns.

    process_of: params -> the process, which depends on them only if it is learned. The network returns heads by name:
    "f", the prediction F, of C channels, or 2C if the parameterization has `both`; and "variance" if it has such a
    head: 2v - 1 (Nichol & Dhariwal 2021, Eq. 15), of C channels. A network of one head may return F itself.

    two_times: the network's c_noise is [B, 2], of t and of a second time r <= t. Its prediction then describes the
    step to x_r, which is alpha(r) x_0 + sigma(r) eps: for the velocity it is the mean velocity over [r, t] (Geng et al.
    2025, "Mean Flows", Eqs. 3 and 12), for EDM's parameterization the G of Kim et al. (2024), "CTM", Eq. 4; at r = t it
    is the denoiser.
    """
    def bind(params: Params, keys: Keys | None = None) -> Diffusion:
        process = process_of(params)

        def heads(x_t: Image, t: Time, cond: Cond = NO_COND, r: Time | None = None) -> Mapping[str, Array]:
            t = jnp.broadcast_to(t, x_t.shape[:1])
            c_noise = parameterization.c_noise(process, t)
            if two_times:
                r = t if r is None else jnp.broadcast_to(r, x_t.shape[:1])
                c_noise = jnp.stack([c_noise, parameterization.c_noise(process, r)], axis=1)
            elif r is not None:
                raise ValueError("The network has one time: make its denoiser with two_times=True to give it r, too.")
            found = network(params, expand(parameterization.c_in(process, t), x_t) * x_t, c_noise, cond, keys)
            return found if isinstance(found, Mapping) else {"f": found}

        def predict(x_t: Image, t: Time, cond: Cond, r: Time | None = None) -> Prediction:
            found, t = heads(x_t, t, cond, r), jnp.broadcast_to(t, x_t.shape[:1])
            of = x0_and_eps if parameterization.both else parameterization.predict
            prediction, variance = of(process, found["f"], x_t, t), found.get("variance")
            return prediction if variance is None else prediction._replace(variance_fraction=(variance + 1) / 2)

        def denoise(x_t: Image, t: Time, cond: Cond = NO_COND) -> Prediction:
            return predict(x_t, t, cond)

        def flow_map(x_t: Image, t: Time, r: Time, cond: Cond = NO_COND) -> Image:
            found = predict(x_t, t, cond, r)
            return process.diffuse(found.x0, r, found.eps)
        return Diffusion(process, denoise, heads, flow_map if two_times else None)
    return bind


def on_process(diffusion: Diffusion, target: Process) -> Diffusion:
    """The same denoiser on another process: its x at t is, up to scale, this process's x at the time of equal log-SNR.

    A model can thus be sampled with any schedule and scaling (Karras et al. 2022, Section 3 and Table 1).
    """
    source, denoise, network, flow_map = diffusion

    def ours(x_t: Image, t: Time) -> tuple[Image, Array]:
        here = source.time_of_log_snr(target.log_snr(t))
        return expand(source.alpha(here) / target.alpha(t), x_t) * x_t, here

    def denoise_there(x_t: Image, t: Time, cond: Cond = NO_COND) -> Prediction:
        return denoise(*ours(x_t, t), cond)

    def network_there(x_t: Image, t: Time, cond: Cond = NO_COND, r: Time | None = None) -> Mapping[str, Array]:
        return network(*ours(x_t, t), cond, None if r is None else ours(x_t, r)[1])

    def flow_map_there(x_t: Image, t: Time, r: Time, cond: Cond = NO_COND) -> Image:
        end = ours(x_t, r)[1]
        return expand(target.alpha(r) / source.alpha(end), x_t) * flow_map(*ours(x_t, t), end, cond)
    return Diffusion(target, denoise_there, network and network_there, flow_map and flow_map_there)


def map_x0(diffusion: Diffusion, change: Callable[[Image], Image], *, rederive_eps: bool) -> Diffusion:
    """Applies `change` to x_0; eps is recomputed from x_0 and x_t if `rederive_eps`, else kept as predicted."""
    def changed(x_t: Image, t: Time, cond: Cond = NO_COND) -> Prediction:
        prediction = diffusion.denoise(x_t, t, cond)
        x0, eps = change(prediction.x0), prediction.eps
        if rederive_eps:
            eps = X0.predict(diffusion.process, x0, x_t, t).eps
        return prediction._replace(x0=x0, eps=eps)
    return Diffusion(diffusion.process, changed)


def clip_x0(diffusion: Diffusion, bound: float = 1.0, *, rederive_eps: bool = True) -> Diffusion:
    """x_0 clipped to [-bound, bound].

    Ho et al. (2020) clip in their code at each sampling step; eps is recomputed as in improved-diffusion's DDIM.
    """
    return map_x0(diffusion, lambda x0: jnp.clip(x0, -bound, bound), rederive_eps=rederive_eps)


def least_noise(diffusion: Diffusion, least: float) -> Diffusion:
    """x_0 moved to x_t + min(1, (1 - alpha) / least) (x_0 - x_t), and eps recomputed: the velocity (x_t - x_0) /
    (1 - alpha) of the flow process with a denominator of at least `least`.

    Li & He (2025), "JiT", Section 4.3: 0.05. A chain then ends with part of its last noise.
    """
    def denoise(x_t: Image, t: Time, cond: Cond = NO_COND) -> Prediction:
        prediction = diffusion.denoise(x_t, t, cond)
        share = jnp.minimum(1.0, (1 - diffusion.process.alpha(t)) / least)
        x0 = x_t + expand(share, x_t) * (prediction.x0 - x_t)
        return prediction._replace(x0=x0, eps=X0.predict(diffusion.process, x0, x_t, t).eps)
    return Diffusion(diffusion.process, denoise)


def dynamic_threshold(diffusion: Diffusion, quantile: float, largest: float, *, rederive_eps: bool = True) -> Diffusion:
    """x_0 of each example clipped to [-s, s] and divided by s, the `quantile` of |x_0|, kept within [1, largest].

    Saharia et al. (2022), "Imagen", Section 2.3.
    """
    def threshold(x0: Image) -> Image:
        s = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), quantile, axis=1)
        s = expand(jnp.clip(s, 1.0, largest), x0)
        return jnp.clip(x0, -s, s) / s
    return map_x0(diffusion, threshold, rederive_eps=rederive_eps)
