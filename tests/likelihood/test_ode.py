"""The ODE's log-density against the exact one of q(x_t) at t_min."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from likelihood import exact

from diffusion.core import schedules
from diffusion.core.continuous import VE, VP, Cosine, Flow, SubVP, VarianceExploding
from diffusion.core.processes import DiscreteProcess
from diffusion.likelihood import ode
from diffusion.likelihood.base import ends

METHODS = {uniform: ode.make_fixed(400, uniform=uniform, probes="exact") for uniform in ("time", "log_snr")}
PROCESSES = {  # with a grid of fixed steps that suits each
    "vp": (VP(), "time"), "subvp": (SubVP(), "time"), "flow": (Flow(), "time"), "cosine": (Cosine(), "log_snr"),
    "ve": (VE(), "log_snr"), "edm": (VarianceExploding(), "log_snr"),
    "discrete": (DiscreteProcess(betas=schedules.linear(100, beta_start=1e-3, beta_end=0.2)), "log_snr")}


def noisy(law, process, t):
    """The law of x_t."""
    weights, means, stds = law
    alpha, sigma = np.asarray(process.alpha(t)), np.asarray(process.sigma(t))
    return weights, alpha * means, np.sqrt(alpha**2 * stds**2 + sigma**2)


def at_t_min(process, law, shape):
    """x and what the model says its log-density is: q(x_t)'s, but with the prior at t_max in place of q."""
    start = ends(process)[0]
    x = np.asarray(process.alpha(start)) * exact.draw(law, shape)
    return x, exact.log_density(noisy(law, process, start), x).reshape(len(x), -1).sum(1)


@pytest.mark.parametrize("law", [exact.GAUSSIAN, exact.MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("name", PROCESSES)
def test_log_density_is_exact(x64, name, law):
    """Exact trace and fine steps: what is left is the prior's mismatch at t_max, bounded by the data's share there."""
    process, uniform = PROCESSES[name]
    x, expected = at_t_min(process, law, (16, 1, 2, 1))
    keys = jax.random.split(jax.random.key(0), len(x))
    found, evaluations = exact.program(METHODS[uniform], process)(keys, x, law)
    snr = np.exp(float(process.log_snr(jnp.asarray(process.t_max, float))))
    tolerance = 2e-5 + 10 * np.sqrt(snr)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    print(name, np.abs(found - expected).max(), tolerance)
    assert np.all(evaluations == 1600)


def test_order(x64):
    process = VP(t_min=0.05)
    x, _ = at_t_min(process, exact.MIXTURE, (8, 1, 1, 1))
    keys, diffusion = jax.random.split(jax.random.key(0), len(x)), exact.diffusion(process, exact.MIXTURE)

    @jax.jit
    def evaluate(x):
        of = lambda steps, method: ode.make_fixed(steps, method=method, probes="exact")(keys, diffusion, x)[0]  # noqa: E731
        return {method: [of(100, method), of(200, method)] for method in ("heun", "rk4")}, of(1600, "rk4")

    found, fine = jax.tree.map(np.asarray, evaluate(x))
    for method, order in [("heun", 2), ("rk4", 4)]:
        errors = [np.abs(value - fine).mean() for value in found[method]]
        np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.35, err_msg=method)


def test_hutchinson_is_unbiased(x64):
    """With a velocity whose Jacobian is not diagonal, its error over many probes is within 4 standard errors."""
    process = VP(t_min=0.05)
    mixing = np.random.default_rng(0).normal(size=(4, 4)) / 2
    base = exact.diffusion(process, exact.GAUSSIAN)

    def denoise(x, t, cond=None):
        turned = (x.reshape(-1, 4) @ mixing).reshape(x.shape)
        return base.denoise(turned, t)
    diffusion = base._replace(denoise=denoise)
    x = np.broadcast_to(at_t_min(process, exact.GAUSSIAN, (1, 2, 2, 1))[0], (600, 2, 2, 1))
    keys = jax.random.split(jax.random.key(1), len(x))

    @jax.jit
    def evaluate(keys, x):
        of = lambda keys, x, **probes: ode.make_fixed(30, **probes)(keys, diffusion, x)[0]  # noqa: E731
        return ({kind: of(keys, x, probes=kind) for kind in ("rademacher", "gaussian")},
                of(keys, x, probes="gaussian", probe_count=4), of(keys[:1], x[:1], probes="exact"))

    by_kind, of_four, expected = jax.tree.map(np.asarray, evaluate(keys, x))
    for kind, found in by_kind.items():
        error = np.std(found, ddof=1) / np.sqrt(len(found))
        assert error > 1e-3 and abs(np.mean(found) - expected[0]) < 4 * error, kind
    np.testing.assert_allclose(np.std(of_four) / np.std(by_kind["gaussian"]), 0.5, rtol=0.15)
