"""The log-density of the probability-flow ODE: Song et al. (2021), "Score SDE", Section 4.3 and Appendix D.2.

With dx/dt = v(x, t), log p(x at t_min) = log p(x at t_max) + the integral of div v over the path between them.
"""
import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from diffusion.core import numerics
from diffusion.core.parameterization import Diffusion
from diffusion.errors import ConfigError, require
from diffusion.likelihood.base import Estimator, LogDensity, check_steps, ends
from diffusion.likelihood.dequantisation import density, dequantized, truncated_normal, uniform
from diffusion.typing import NO_COND, Array, Cond, Image, Keys, Time

# dynamics(t, x) -> (v, div v [B])
Dynamics = Callable[[Time, Image], tuple[Array, Array]]

Probes = Literal["rademacher", "gaussian", "exact"]


def make_dynamics(diffusion: Diffusion, probes: Array | None, cond: Cond, mask: Array | None = None) -> Dynamics:
    """The velocity and its divergence: the mean of e . (dv/dx) e over the probes e [K, B, H, W, C] (Hutchinson; Song et
    al. 2021, Eq. 40) or, without probes, the exact trace, from one derivative per number in x. Entries that are false
    in `mask` stay where they are, are 0 for the network and have no part in the divergence."""
    process, denoise = diffusion.process, diffusion.denoise

    def dynamics(t: Time, x: Image) -> tuple[Array, Array]:
        def velocity(x: Image) -> Array:
            prediction = denoise(numerics.masked(x, mask), t, cond)
            v = process.velocity(prediction.x0, prediction.eps, t)
            return numerics.masked(v, mask)

        v, derivative = jax.linearize(velocity, x)
        per_example = lambda a: jnp.sum(a.reshape(a.shape[0], -1), 1)  # noqa: E731
        if probes is not None:
            return v, jnp.mean(jax.lax.map(lambda e: per_example(e * derivative(e)), probes), 0)

        def diagonal(total: Array, i: Array) -> tuple[Array, None]:
            e = jax.nn.one_hot(i, x[0].size, dtype=x.dtype).reshape(1, *x.shape[1:])
            return total + per_example(e * derivative(jnp.broadcast_to(e, x.shape))), None

        return v, jax.lax.scan(diagonal, jnp.zeros(x.shape[0], x.dtype), jnp.arange(x[0].size))[0]
    return dynamics


def _draw_probes(keys: Keys, kind: Probes, count: int, x: Image) -> Array | None:
    """[K, B, H, W, C], the same along the whole path, so that the integrand is smooth."""
    if kind == "exact":
        return None
    draw = jax.random.rademacher if kind == "rademacher" else jax.random.normal
    return jnp.stack([jax.vmap(lambda key: draw(key, x.shape[1:], x.dtype))(numerics.fold_in(keys, k))
                      for k in range(count)])


def _log_prior(diffusion: Diffusion, x: Image, mask: Array | None = None) -> Array:
    """log N(x; 0, prior_std^2) of the entries that are true in `mask`, [B]."""
    std = diffusion.process.prior_std(ends(diffusion.process)[1])
    size = x[0].size if mask is None else numerics.count_over(x, mask)
    return -0.5 * numerics.sum_over((x / std) ** 2, mask) - size * (jnp.log(std) + 0.5 * math.log(2 * math.pi))


def make_fixed(steps: int, *, method: Literal["heun", "rk4"] = "rk4", uniform: Literal["log_snr", "time"] = "time",
               probes: Probes = "rademacher", probe_count: int = 1) -> LogDensity:
    """The log-density by `steps` steps of Heun's method (2 evaluations each) or the classical Runge-Kutta method (4),
    of equal width in t or in log-SNR; differentiable. The discretisation error is not estimated: double the steps to
    see it."""
    def log_density(keys: Keys, diffusion: Diffusion, x: Image, cond: Cond = NO_COND,
                    mask: Array | None = None) -> tuple[Array, Array]:
        dynamics = make_dynamics(diffusion, _draw_probes(keys, probes, probe_count, x), cond, mask)
        process, (start, end) = diffusion.process, ends(diffusion.process)
        share = jnp.arange(steps + 1) / steps
        if uniform == "log_snr":
            times = process.time_of_log_snr((1 - share) * process.log_snr(start) + share * process.log_snr(end))
        else:
            times = (1 - share) * start + share * end
        times = times.at[0].set(start).at[-1].set(end)
        advance = _heun if method == "heun" else _rk4

        def step(state, times):
            return advance(lambda t, state: dynamics(t, state[0]), state, *times), None

        state = (x, jnp.zeros(x.shape[0], x.dtype))
        (x, change), _ = jax.lax.scan(step, state, (times[:-1], times[1:]))
        evaluations = steps * (2 if method == "heun" else 4)
        return _log_prior(diffusion, x, mask) + change, jnp.full(x.shape[0], evaluations)
    return log_density


def _along(state, h: Array, rate):
    return jax.tree.map(lambda a, b: a + h * b, state, rate)


def _heun(f: Callable, state, t: Array, t_next: Array):
    h = t_next - t
    first = f(t, state)
    second = f(t_next, _along(state, h, first))
    return _along(_along(state, h / 2, first), h / 2, second)


def _rk4(f: Callable, state, t: Array, t_next: Array):
    h, middle = t_next - t, (t + t_next) / 2
    k1 = f(t, state)
    k2 = f(middle, _along(state, h / 2, k1))
    k3 = f(middle, _along(state, h / 2, k2))
    k4 = f(t_next, _along(state, h, k3))
    for weight, k in ((1, k1), (2, k2), (2, k3), (1, k4)):
        state = _along(state, h * weight / 6, k)
    return state


def make_adaptive(*, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 4096, probes: Probes = "rademacher",
                  probe_count: int = 1) -> LogDensity:
    """The log-density by Dormand and Prince's method of order 5(4), "RK45", with step sizes per example (diffrax).

    Each example has its own steps, so its result does not depend on the batch, which runs until its slowest example is
    done. NaN for an example that takes more than max_steps. Raises ConfigError without diffrax.
    """
    try:
        import diffrax
    except ImportError:
        raise ConfigError("The adaptive ODE needs diffrax, which is not installed. Install the extra: "
                          "pip install 'diffusion[ode]', or choose a number of fixed steps.") from None

    def one(key: Array, diffusion: Diffusion, x: Array, cond: Cond, mask: Array | None) -> tuple[Array, Array]:
        keys, x = key[None], x[None]
        mask = None if mask is None else mask[None]
        dynamics = make_dynamics(diffusion, _draw_probes(keys, probes, probe_count, x),
                                 jax.tree.map(lambda c: c[None], cond), mask)
        start, end = ends(diffusion.process)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, state, _: dynamics(t, state[0])), diffrax.Dopri5(), start, end, None,
            (x, jnp.zeros(1, x.dtype)), stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            max_steps=max_steps, throw=False)
        x, change = (value[-1] for value in solution.ys)
        done = solution.result == diffrax.RESULTS.successful
        log_p = jnp.where(done, _log_prior(diffusion, x, mask) + change, jnp.nan)
        # Six new stages per attempted step, the very first stage, and two more for the first step's size.
        return log_p[0], 6 * solution.stats["num_steps"] + 3

    def log_density(keys: Keys, diffusion: Diffusion, x: Image, cond: Cond = NO_COND,
                    mask: Array | None = None) -> tuple[Array, Array]:
        solve = lambda key, x, cond, mask: one(key, diffusion, x, cond, mask)  # noqa: E731
        return jax.vmap(solve)(keys, x, cond, mask)
    return log_density


def ode(*, levels: int | None = 256,
        steps: int = 1000,
        tolerance: float = 0.0,  # error tolerance of adaptive steps (1e-5; needs the extra "ode"); 0: equal steps
        probes: Probes = "rademacher",  # estimate of the trace: rademacher, gaussian (Hutchinson), exact
        probe_count: int = 1,
        dequantisation: Literal["uniform", "truncated_normal"] = "uniform",
        samples: int = 1,        # K of the importance-weighted bound (Burda et al. 2016)
        ) -> Estimator:
    """The density of the probability-flow ODE (Song et al. 2021): of levels, dequantised, in bits per dimension; of
    real numbers (`levels` None) in nats."""
    check_steps(steps)
    require(samples >= 1, "samples", samples, "must be 1 or more.")
    require(probe_count >= 1, "probe_count", probe_count, "must be 1 or more.")
    require(tolerance >= 0, "tolerance", tolerance, "must be positive, or 0 for likelihood.steps equal steps.")
    log_density = (make_adaptive(rtol=tolerance, atol=tolerance, probes=probes, probe_count=probe_count)
                   if tolerance else make_fixed(steps, probes=probes, probe_count=probe_count))
    if levels is None:
        return density(log_density)
    dequantizer = {"uniform": uniform, "truncated_normal": truncated_normal}[dequantisation]
    return dequantized(log_density, functools.partial(dequantizer, levels=levels), samples=samples)


ESTIMATORS = {"ode": ode}
ode.between_times = True
ode.needs_jvp = True
ode.of_densities = True
