"""In few steps, a solver of higher order is no worse than that of first order of its kind: DDIM for the ODE, ancestral
steps (DDIM with eta 1) for the SDE. On exact denoisers, by config, on the grids that each process is sampled on."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import build
from diffusion import config as config_lib
from diffusion.build import processes, sampling
from diffusion.core.numerics import expand
from diffusion.core.parameterization import X0, Diffusion
from diffusion.errors import ConfigError
from diffusion.families import BY_NAME
from diffusion.samplers.base import sample
from diffusion.samplers.dpm_multistep import DPMSolverMultistep

PROCESSES = {
    "flow": {"process.name": "flow", "sample.spacing": "uniform"},
    "edm": {"process.name": "edm", "sample.spacing": "karras"},
    "shifted cosine": {"process.name": "shifted_cosine", "sample.spacing": "uniform"},
    "vp": {"process.name": "vp", "sample.spacing": "log_snr"},
    "vp, uniform": {"process.name": "vp", "sample.spacing": "uniform"},
    "linear, leading": {"sample.spacing": "leading"},
    "zero terminal SNR": {"process.zero_terminal_snr": True, "sample.spacing": "trailing"},
}
MEAN, STD, STEPS = 0.3, 0.25, (5, 10, 20)
KEYS = jax.vmap(jax.random.key)(np.arange(2048))


def of_higher_order():
    """Solvers whose order can be chosen, at the usual one and at the third."""
    found = {}
    for name, member in BY_NAME["solver"].members().items():
        if "order" in member.keys:
            found[name] = {"solver": name, "between_times": True}
            if 3 in member.keys["order"].choices and member.keys["order"].default < 3:
                found[f"{name} 3"] = found[name] | {"order": 3}
    return found


HIGHER = of_higher_order()


def denoiser(process, centres):
    """Of an even mixture of normal distributions of the standard deviation STD."""
    centres = jnp.asarray(centres)[None, None]

    def denoise(x, t, cond=None):
        a, b = expand(process.alpha(t), x), expand(process.sigma(t), x)
        spread = a**2 * STD**2 + b**2
        each = centres + a * STD**2 * (x[..., None] - a * centres) / spread
        share = jax.nn.softmax(-((x[..., None] - a * centres) ** 2) / (2 * spread))
        return X0.predict(process, jnp.sum(share * each, axis=-1), x, t)
    return Diffusion(process, denoise)


@functools.cache
def draws_noise(name):
    """Whether the solver's step depends on the keys: of the SDE, and not the ODE."""
    solver, process = sampling.solver(config_lib.base(solver=name).sample), processes.process(
        config_lib.base(process="vp").process)
    x, both = jnp.ones((2, 1)), denoiser(process, (MEAN,))
    out = solver.step(solver.init(x), x, jnp.float32(0.5), jnp.float32(0.4), both, KEYS[:2], None)[1]
    return bool(out[0, 0] != out[1, 0])


@functools.cache
def errors(process_name, solver, centres):
    """Of 5, 10 and 20 steps: to the ODE's own end from the same noise, or for the SDE in mean and deviation."""
    keys = PROCESSES[process_name] | {"sample.clip": False} | {f"sample.{k}": v for k, v in solver}
    process = processes.process(config_lib.override(config_lib.base(), keys).process)
    run = jax.jit(lambda grid, x, count: sample(one, diffusion, grid, x, KEYS, last=count)[1])
    diffusion, found = denoiser(process, centres), []
    for steps in STEPS:
        c = config_lib.override(config_lib.base(), keys | {"sample.steps": steps}).sample
        grid, one = build.grid(c, process), sampling.solver(c)
        z = process.prior_std(grid[0, 0]) * jax.random.normal(jax.random.key(1), (2048, 1))
        x = np.asarray(run(np.resize(grid, (20, 2)), z, steps))
        if draws_noise(dict(solver)["solver"]):
            std = np.sqrt(STD**2 + np.var(centres))
            found.append(np.hypot(x.mean() - np.mean(centres), x.std() - std))
        else:
            found.append(np.sqrt(np.mean((x - end(process, grid[0, 0], z, centres)) ** 2)))
    return np.array(found)


def end(process, t, z, centres):
    """Where the ODE leads x = z at t: the quantile of the data that z has at t."""
    from scipy.stats import norm
    a, b = float(process.alpha(t)), float(process.sigma(t))
    law = lambda x, a, b: np.mean([norm.cdf(x, a * m, np.hypot(a * STD, b)) for m in centres], axis=0)  # noqa: E731
    points = np.linspace(min(centres) - 6 * STD, max(centres) + 6 * STD, 20001)
    return np.interp(law(np.asarray(z, np.float64), a, b), law(points, 1, 0), points)


def check(process, centres, names):
    for name in names:
        solver, sde = HIGHER[name], draws_noise(HIGHER[name]["solver"])
        first = {"solver": "euler_ancestral" if sde else "ddim"}
        worst = errors(process, tuple(first.items()), centres)
        found = errors(process, tuple(solver.items()), centres)
        # 2,048 chains give a mean and a deviation to about 0.01.
        allowed = 1.05 * worst + (0.01 if sde else 0.002)
        assert np.all(found <= allowed), f"{name} on {process}: {found}, first order {worst}"


@pytest.mark.slow
def test_no_solver_of_higher_order_is_worse_than_first_order():
    check("flow", (MEAN,), HIGHER)
    check("edm", (MEAN,), ["dpm_solver++m 3", "sa_solver"])


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_none_is_worse_on_any_process_nor_on_a_mixture(process):
    check(process, (MEAN,), HIGHER)
    if process in ("edm", "vp"):
        check(process, (-0.6, 0.6), [name for name in HIGHER if not draws_noise(HIGHER[name]["solver"])])


def test_as_authors_code_has_it_the_order_never_falls():
    """And by config the third order is k-diffusion's dpmpp_3m_sde (test_golden_k_diffusion.py)."""
    c = config_lib.override(config_lib.base(), {"sample.solver": "dpm_solver++sde", "sample.order": 3,
                                                "sample.reach": float("inf")}).sample
    assert sampling.solver(c) == DPMSolverMultistep(order=3, eta=1.0, kind="heun")
    assert np.any(errors("flow", (("solver", "sa_solver"), ("reach", float("inf")), ("t_min", 1e-3)), (MEAN,)) > 1)


@pytest.mark.slow
def test_every_solver_starts_at_pure_noise_or_says_why_not():
    """Zero terminal SNR (Lin et al. 2024): the first step is its limit, or the solver is refused."""
    refused, unable = set(), {"euler_maruyama", "reverse_diffusion", "adaptive_sde"}
    for name in BY_NAME["solver"].members():
        if not sampling.solver(config_lib.base(solver=name).sample).from_pure_noise:
            unable.add(name)
        solver = (("solver", name), ("between_times", True))
        try:
            assert np.isfinite(errors("zero terminal SNR", solver, (MEAN,))).all(), name
        except ConfigError as error:
            assert "no data is left" in str(error), name
            refused.add(name)
    assert refused == unable
