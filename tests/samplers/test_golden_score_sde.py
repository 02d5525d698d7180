"""Predictor and corrector steps against score_sde's, with its noise, in float64.

tests/golden/score_sde_pc.npz, made by make_score_sde_pc.py, which has the network too. Its reverse diffusion of the
sub-VP SDE is Euler's step, and so not one of ours; its correctors there take the VP chain's alpha.
"""
import functools
import pathlib
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import numerics
from diffusion.core.continuous import VE, VP, SubVP
from diffusion.core.numerics import expand
from diffusion.core.parameterization import EPS, Diffusion
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.ancestral import Ancestral
from diffusion.samplers.sde import EulerMaruyama, PredictorCorrector, ReverseDiffusion

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from make_score_sde_pc import INDEX, SNR, N, eps_hat  # noqa: E402

CONTINUOUS = {"vp": VP(), "subvp": SubVP(), "ve": VE(sigma_min=0.01, sigma_max=50.0)}
TABLE = DiscreteProcess(betas=np.linspace(0.1 / N, 20 / N, N))


@functools.cache
def golden():
    with np.load(GOLDEN / "score_sde_pc.npz") as file:
        return dict(file)


def diffusion(process):
    def denoise(x, t, cond=None):
        return EPS.predict(process, eps_hat(jnp, x, expand(process.alpha(t), x), expand(process.sigma(t), x)), x, t)
    return Diffusion(process, denoise)


@functools.partial(jax.jit, static_argnums=(0, 1))
def compiled(solver, process, x, noise, t, t_next):
    with (mock.patch.object(numerics, "fold_in", lambda keys, index: index),
          mock.patch.object(numerics, "normal", lambda index, *_: noise[0 if index is None else index])):
        return solver.step((), x, t, t_next, diffusion(process), None, None)[1]


def step(solver, process, t, t_next, case):
    return compiled(solver, process, golden()[f"{case}_x"], golden()[f"{case}_noise"], t, t_next)


@pytest.mark.parametrize("index", INDEX)
@pytest.mark.parametrize("name", CONTINUOUS)
def test_euler_maruyama(x64, name, index):
    case = f"{name}_euler_maruyama_none_{index}"
    out = step(EulerMaruyama(), CONTINUOUS[name], (index + 1) / N, index / N, case)
    np.testing.assert_allclose(out, golden()[f"{case}_out"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("index", INDEX)
@pytest.mark.parametrize("corrector", ["none", "langevin", "ald"])
@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral_sampling"])
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_predictor_and_corrector(x64, name, predictor, corrector, index):
    """Two corrections, then the prediction; on the VP chain's table, and on the VE chain's levels."""
    ancestral = Ancestral(variance="large" if name == "vp" else "small")
    solver = ReverseDiffusion() if predictor == "reverse_diffusion" else ancestral
    if corrector != "none":
        solver = PredictorCorrector(predictor=solver, snr=SNR, corrections=2, annealed=corrector == "ald")
    case = f"{name}_{predictor}_{corrector}_{index}"
    if name == "vp":
        out = step(solver, TABLE, index + 1, index, case)
    else:  # theirs asks the score 1e-9 away from the level's time
        out = step(solver, VE(sigma_min=0.01, sigma_max=50.0), index / (N - 1), (index - 1) / (N - 1), case)
    expected = golden()[f"{case}_out"]
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
