"""Dequantisation: the probability P(x_0) of levels, the integral of a density p over the cell of x_0.

The cell is x_0 + u with |u| < h in each coordinate, h = 1/(n - 1) for n levels (`half`).
For any density q(u | x_0) on it

  -log P(x_0) <= -E log (1/K sum_k p(x_0 + u_k) / q(u_k | x_0)),  u_k ~ q

(Theis et al. 2016 with the uniform q and K = 1; Ho et al. 2019, "Flow++", any q; Burda et al. 2016, K > 1). The bound
tightens as q approaches p in the cell and as K grows.
"""
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion.core import numerics
from diffusion.core.processes import Process
from diffusion.likelihood.base import Estimate, Estimator, LogDensity, ends, half
from diffusion.typing import NO_COND, Array, Cond, Image, Keys

# (keys [B], process, x0) -> (u [B, ...] within +-h, log q(u | x_0) [B] in nats)
Dequantizer = Callable[[Keys, Process, Image], tuple[Image, Array]]


def uniform(keys: Keys, process: Process, x0: Image, levels: int = 256) -> tuple[Image, Array]:
    """Uniform in the cell: log q = -log(2 h) for each coordinate."""
    h = half(levels)
    u = jax.vmap(lambda key: jax.random.uniform(key, x0.shape[1:], x0.dtype, -h, h))(keys)
    return u, jnp.full(x0.shape[0], -x0[0].size * math.log(2 * h), x0.dtype)


def truncated_normal(keys: Keys, process: Process, x0: Image, levels: int = 256) -> tuple[Image, Array]:
    """N(0, (sigma/alpha)^2) at t_min, truncated to the cell: the noise of the model's training, with nothing to learn.

    Zheng et al. (2023), "Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs", Section 4.2.
    """
    std = process.noise_level(ends(process)[0]).astype(x0.dtype)
    h = half(levels)
    edge = h / std
    z = jax.vmap(lambda key: jax.random.truncated_normal(key, -edge, edge, x0.shape[1:], x0.dtype))(keys)
    log_mass = jnp.log(jax.lax.erf(edge / math.sqrt(2)))
    log_q = -0.5 * z**2 - 0.5 * math.log(2 * math.pi) - jnp.log(std) - log_mass
    return jnp.clip(std * z, -h, h), _per_example(log_q)


def dequantized(log_density: LogDensity, dequantizer: Dequantizer, *, samples: int = 1) -> Estimator:
    """The bound above as an estimator, with K = `samples`, from a log-density of x at t_min.

    p is the density of x / alpha at t_min, on the data's scale, so that VP processes' shrinking cancels. Term:
    evaluations [B], denoiser calls for all samples.
    """
    def estimate(keys: Keys, diffusion, x0: Image, cond: Cond = NO_COND, mask: Array | None = None) -> Estimate:
        require_unmasked(mask)
        process, size = diffusion.process, x0[0].size
        alpha = process.alpha(ends(process)[0]).astype(x0.dtype)

        def draw(index: Array) -> tuple[Array, Array]:
            here = numerics.fold_in(keys, index)
            u, log_q = dequantizer(numerics.fold_in(here, 0), process, x0)
            log_p, evaluations = log_density(numerics.fold_in(here, 1), diffusion, alpha * (x0 + u), cond)
            return log_p + size * jnp.log(alpha) - log_q, evaluations

        ratios, evaluations = jax.lax.map(draw, jnp.arange(samples))
        log_probability = jax.nn.logsumexp(ratios, axis=0) - math.log(samples)
        return Estimate(-log_probability / (size * math.log(2)), {"evaluations": jnp.sum(evaluations, 0)})
    return estimate


def require_unmasked(mask: Array | None) -> None:
    """Raises ValueError for masked levels: the dequantisers' densities are of whole examples."""
    if mask is not None:
        raise ValueError("dequantisation has no mask")


def density(log_density: LogDensity) -> Estimator:
    """-log p(x_0) of real numbers, in nats, from a log-density of x at t_min. p is the density of x / alpha at t_min,
    on the data's scale. Term: evaluations [B]."""
    def estimate(keys: Keys, diffusion, x0: Image, cond: Cond = NO_COND, mask: Array | None = None) -> Estimate:
        alpha = diffusion.process.alpha(ends(diffusion.process)[0]).astype(x0.dtype)
        log_p, evaluations = log_density(numerics.fold_in(keys, 1), diffusion, alpha * x0, cond, mask)
        return Estimate(None, {"evaluations": evaluations},
                        -log_p - numerics.count_over(x0, mask) * jnp.log(alpha))
    return estimate


def _per_example(x: Array) -> Array:
    return jnp.sum(x.reshape(x.shape[0], -1), 1)
