"""Common parts of the linear multistep solvers of the diffusion ODE and SDE in log-SNR.

From s to t < s, with m the prediction (of x_0 or eps) along the way and L = lambda / 2,
    x_t = alpha_t x_0(s) + k sigma_t eps(s) + noise + C int_0^1 w(u) (m(L_s + u h) - m(s)) du,  h = L_t - L_s:
DDIM's step (with less of eps if there is noise) plus the rest of an integral that is exact except for m. A solver
replaces m by a polynomial through its past values.
"""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion.core import grids, numerics
from diffusion.core.parameterization import Diffusion
from diffusion.errors import require
from diffusion.samplers.base import Solver
from diffusion.samplers.history import History, empty, push
from diffusion.typing import Array, Cond, Image, Keys, Time

# Gauss-Legendre on [0, 1]: exact for polynomials of degree 31, and to 1e-10 for the exponentials here, |rate| <= 20.
# Unlike the recursion over phi functions it loses no digits where the step is short.
POINTS, SHARES = (np.polynomial.legendre.leggauss(16)[0] + 1) / 2, np.polynomial.legendre.leggauss(16)[1] / 2


def weights(nodes: Array, valid: Array, density: Callable[[Array], Array]) -> Array:
    """int_0^1 density(u) l_j(u) du [K], l_j the Lagrange polynomials through the `valid` ones of the nodes [K].

    0 for nodes that are not valid, whatever their value.
    """
    u = jnp.asarray(POINTS, nodes.dtype)
    nodes = jnp.where(valid, nodes, 0)
    j, k = nodes[:, None, None], nodes[None, :, None]
    used = (valid[:, None] & valid[None] & ~np.eye(len(nodes), dtype=bool))[:, :, None]
    basis = jnp.prod(jnp.where(used, (u[None, None] - k) / jnp.where(used, j - k, 1), 1), axis=1)
    return jnp.where(valid, jnp.sum((jnp.asarray(SHARES, nodes.dtype) * density(u))[None] * basis, axis=1), 0)


def combine(weights: Array, values: Array, origin: Image) -> Image:
    """sum_j weights_j (values_j - origin); no matrix product, which accelerators round to bfloat16."""
    return sum(w * (value - origin) for w, value in zip(weights, values))


def within_reach(times: Array, h: Array, rate: Array, reach: float) -> Array:
    """Mask of the values at `times` [K], newest first, to use in a step of h whose density is e^(rate (1 - u)).

    Uses the values up to the first gap shorter than |h| / reach and, in a long step, where a polynomial through many
    values oscillates, only the first k with k (k - 1) |rate| <= 3 reach / 4. All if reach is infinite.
    """
    if reach == np.inf:
        return jnp.ones(len(times), bool)
    far = jnp.abs(h) > reach * jnp.abs(times[:-1] - times[1:])
    older = np.arange(1, len(times))
    far |= older * (older + 1) * jnp.abs(rate) > 0.75 * reach
    return jnp.concatenate([jnp.ones(1, bool), jnp.cumsum(far) == 0])


def check_reach(reach: float) -> None:
    require(reach > 0, "reach", reach, "must be positive; inf: the order is never lowered.")


@dataclass(frozen=True, kw_only=True)
class Multistep(Solver):
    """A solver with a history, which may end at the least noisy time as diffusers' do. Raises FieldError for a reach
    that is not positive."""
    reach: float = np.inf   # the order is lowered where a step in log-SNR is this many times the previous one, or long
    end: Literal[0, 1] = 0  # where the last step ends

    def __post_init__(self):
        check_reach(self.reach)

    def pair_times(self, times: np.ndarray, t_max: int) -> np.ndarray:
        # A step from the least noisy time to itself is empty, which only DDIM's formula allows.
        return grids.pairs(times, self.end if times[-1] > self.end else 0)


class Carry(NamedTuple):
    history: History  # m, and L = lambda / 2 as its times
    base: Image       # x at t by the last step's formula, without its integral


def init(x: Image, length: int) -> Carry:
    return Carry(empty(x, length), jnp.zeros_like(x))


def step(carry: Carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond, *,
         predictor: int, corrector: int, data: bool, tau: Callable[[Array], Array] | None = None,
         mean_density: Callable[[Array], Array] | None = None, reach: float = np.inf) -> tuple[Carry, Image]:
    """A predictor through `predictor` values and, before it, a corrector of x through `corrector` values (0: none).

    The corrector repeats the last step with the value at its end included, at no extra evaluation. The first steps use
    fewer values. A value at lambda = -inf (pure noise) is infinitely far away and is not used: the step from pure noise
    is DDIM's and is not corrected. At t_next = 0 the integral is left out, and the result is the x_0 of the corrected
    x.

    data: m is x_0, else eps. tau: L -> the amount of noise at the step's start (Xue et al. 2023). mean_density: rate ->
    a constant that replaces the integral's density where only two values are used (see UniPC); None: the exact density.
    reach: values are left out, which lowers the order, where the step is long (`within_reach`); mean_density is then
    used in short steps only.
    """
    process, denoise = diffusion.process, diffusion.denoise
    prediction = denoise(x, t, cond)
    x0, eps = prediction.x0, prediction.eps
    alpha, sigma = process.alpha(t), process.sigma(t)
    begin, end = process.log_snr(t) / 2, process.log_snr(t_next) / 2
    history = push(carry.history, x0 if data else eps, begin)
    amount = tau or (lambda level: jnp.zeros_like(level))

    def integral(origin: int, end: Array, scale: Array, count: int) -> Image:
        """The integral from the L of value number `origin` to `end`, through the first `count` values."""
        start = history.times[origin]
        h = end - start
        proper = jnp.isfinite(h) & (history.count > origin)
        h = jnp.where(proper, h, 1)
        rate = -(1 + amount(start) ** 2) * h if data else h
        used = (np.arange(len(history.times)) < jnp.minimum(count, history.count)) & jnp.isfinite(history.times)
        used &= within_reach(history.times, h, rate, reach)

        def density(u: Array) -> Array:
            exact = jnp.exp(rate * (1 - u))
            two = (used.sum() == 2) & (jnp.abs(rate) <= reach / 4)
            return exact if mean_density is None else jnp.where(two, mean_density(rate), exact)

        w = weights((history.times - jnp.where(proper, start, 0)) / h, used, density)
        return combine(jnp.where(proper, -rate * scale * w, 0), history.values, history.values[origin])

    if corrector:
        correct = history.count > 1
        change = jnp.where(correct, carry.base + integral(1, begin, alpha if data else sigma, corrector) - x, 0)
        change = jnp.where(jnp.isfinite(history.times[1]), change, 0)
        if data:
            eps = eps + change / sigma
        else:
            x0 = x0 + change / jnp.where(correct, alpha, 1)

    alpha, sigma = process.alpha(t_next), process.sigma(t_next)
    base = alpha * x0
    if tau is None:
        base += sigma * eps
    else:
        exponent = amount(begin) ** 2 * (end - begin)
        exponent = jnp.where(jnp.isnan(exponent), 0, exponent)  # tau = 0 and an infinite step
        base += sigma * (jnp.exp(-exponent) * eps
                         + jnp.sqrt(-jnp.expm1(-2 * exponent)) * numerics.normal(keys, x.shape[1:], x.dtype))
    return Carry(history, base), base + integral(0, end, alpha if data else sigma, predictor)
