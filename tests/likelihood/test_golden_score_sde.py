"""The probability-flow ODE's likelihood against score_sde's, with its probes, in float64 at a tolerance of 1e-10.

tests/golden/score_sde_pc.npz, made by make_score_sde_pc.py. Its bits per dimension are those of x at t = 1e-5 taken for
the data, plus 7: the 256 levels, 2/256 apart.
"""
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.test_golden_score_sde import diffusion, golden

from diffusion.core.continuous import VE, VP, SubVP
from diffusion.likelihood import ode

PROCESSES = {"vp": VP(), "subvp": SubVP(), "ve": VE(sigma_min=0.01, sigma_max=50.0)}


@functools.cache
def program(name):
    """(x, probe) -> log p(x) of rows, each with the steps of its own, as an adaptive solver has them."""
    def run(x, probe):
        with mock.patch.object(ode, "_draw_probes", lambda *_: probe[None, None]):
            log_density = ode.make_adaptive(rtol=1e-10, atol=1e-10, max_steps=100_000)
            return log_density(jnp.zeros(1), diffusion(PROCESSES[name]), x[None])[0][0]
    return jax.jit(jax.vmap(run))


@pytest.mark.parametrize("kind", ["Rademacher", "Gaussian"])
@pytest.mark.parametrize("name", PROCESSES)
def test_bits_per_dimension(x64, name, kind):
    g = golden()
    found = program(name)(g["data"], g[f"{name}_{kind}_probe"].astype(float))
    np.testing.assert_allclose(-np.array(found) / np.log(2) / 4 + 7, g[f"{name}_{kind}_bits"], rtol=1e-6)
