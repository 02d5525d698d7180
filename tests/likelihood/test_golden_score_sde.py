"""The probability-flow ODE's likelihood against score_sde's, with its probes, in float64 at a tolerance of 1e-10.

tests/golden/score_sde_pc.npz, made by make_score_sde_pc.py. Its bits per dimension are those of x at t = 1e-5 taken for
the data, plus 7: the 256 levels, 2/256 apart.
"""
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from samplers.test_golden_score_sde import diffusion, golden

from diffusion.core.continuous import VE, VP, SubVP
from diffusion.likelihood import ode

PROCESSES = {"vp": VP(t_min=1e-5), "subvp": SubVP(t_min=1e-5), "ve": VE(t_min=1e-5)}


@pytest.mark.parametrize("kind", ["Rademacher", "Gaussian"])
@pytest.mark.parametrize("name", PROCESSES)
def test_bits_per_dimension(x64, name, kind):
    g = golden()
    data, probes = jnp.asarray(g["data"]), jnp.asarray(g[f"{name}_{kind}_probe"], float)
    rows = iter(range(len(data)))
    found = []
    for row in rows:  # an adaptive solver has the steps of each example's own
        with mock.patch.object(ode, "_draw_probes", lambda *_: probes[None, row:row + 1]):
            log_density = ode.make_adaptive(rtol=1e-10, atol=1e-10, max_steps=100_000)
            found.append(log_density(jnp.zeros(1), diffusion(PROCESSES[name]), data[row:row + 1])[0][0])
    np.testing.assert_allclose(-np.array(found) / np.log(2) / 4 + 7, g[f"{name}_{kind}_bits"], rtol=1e-6)
