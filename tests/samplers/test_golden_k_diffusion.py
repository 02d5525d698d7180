"""Our solvers on EDM's process against k-diffusion's samplers of the same name, with the same noise, in float64.

The chains are in tests/golden/k_one_step.npz. rtol 1e-9: the log-SNR of ours and the sigma of theirs round apart.
"""
import functools
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.exact import pairs

from diffusion.core import numerics
from diffusion.core.continuous import VarianceExploding
from diffusion.core.parameterization import Diffusion, Prediction
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.dpm_multistep import DPMSolverMultistep
from diffusion.samplers.dpm_solver import DPMSolver
from diffusion.samplers.heun import Heun

PROCESS = VarianceExploding()


@functools.cache
def golden():
    with np.load(pathlib.Path(__file__).parent.parent / "golden" / "k_one_step.npz") as file:
        return dict(file)


def denoise(x, t, cond=None):
    """The denoiser of make_k_multistep.py."""
    sigma = PROCESS.sigma(t)
    x0 = jnp.tanh(0.8 * x / (1 + 0.1 * sigma)) + 0.1 * jnp.sin(3 * x) / (1 + sigma)
    return Prediction(x0, (x - x0) / sigma)


@functools.partial(jax.jit, static_argnums=0)
def step(solver, carry, x, t, t_next, z):
    with mock.patch.object(numerics, "normal", lambda *_: z):
        return solver.step(carry, x, t, t_next, Diffusion(PROCESS, denoise), None, None)


def chain(solver, steps, x, noise):
    """Step by step, the i-th of which draws noise[i]."""
    carry = jax.jit(solver.init)(x)
    for (t, t_next), z in zip(steps, noise):
        carry, x = step(solver, carry, x, t, t_next, z)
    return x


def churned(order, steps):
    return Heun(order=order, churn=3.0 / steps, churn_min=0.05, churn_max=50.0, churn_noise=1.003)


SOLVERS = {  # of the number of steps
    "euler": lambda steps: Heun(order=1), "euler_churn": lambda steps: churned(1, steps),
    "heun": lambda steps: Heun(), "heun_churn": lambda steps: churned(2, steps),
    "euler_ancestral": lambda steps: DDIM(eta=1.0),
    "dpmpp_2s": lambda steps: DPMSolver(order=2, predict="x0"),
    "dpmpp_2m": lambda steps: DPMSolverMultistep(),
    "dpmpp_3m": lambda steps: DPMSolverMultistep(order=3, kind="heun"),  # which the second step has there
    "dpmpp_3m_sde": lambda steps: DPMSolverMultistep(order=3, eta=1.0, kind="heun"),
    "dpmpp_3m_sde_half": lambda steps: DPMSolverMultistep(order=3, eta=0.5, kind="heun"),
    "dpmpp_2m_sde_midpoint": lambda steps: DPMSolverMultistep(eta=1.0),
    "dpmpp_2m_sde_midpoint_half": lambda steps: DPMSolverMultistep(eta=0.5),
    "dpmpp_2m_sde_heun": lambda steps: DPMSolverMultistep(eta=1.0, kind="heun"),
    "dpmpp_2m_sde_heun_half": lambda steps: DPMSolverMultistep(eta=0.5, kind="heun"),
}


@pytest.mark.parametrize("grid", ["karras", "exponential", "vp"])
@pytest.mark.parametrize("name", SOLVERS)
def test_chains_are_k_diffusions(x64, name, grid):
    g = golden()
    steps = pairs(g[f"sigmas_{grid}"])
    out = chain(SOLVERS[name](len(steps)), steps, steps[0, 0] * g["x"], g["noise"])
    expected = g[f"{name}_{grid}"]
    np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("grid", ["karras", "exponential", "vp"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_is_k_diffusions(x64, order, grid):
    """But for the step to 0, which theirs does not take."""
    g = golden()
    steps = pairs(g[f"sigmas_{grid}"])[:-1]
    out = chain(DPMSolver(order=order), steps, steps[0, 0] * g["x"], g["noise"])
    expected = g[f"dpm_solver_{order}_{grid}"]
    np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("grid", ["karras", "exponential"])
def test_the_chains_differ_from_one_another(grid):
    """Else these would hold for any of them."""
    chains = np.stack([golden()[f"{name}_{grid}"].ravel() for name in SOLVERS])
    apart = np.abs(chains[:, None] - chains[None]).max(-1) + np.eye(len(chains))
    assert apart.min() > 1e-4
