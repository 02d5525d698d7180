"""The terms of the bound against guided-diffusion's calc_bpd_loop, with its noise, in float64.

tests/golden/guided_vlb.npz, made by make_guided_vlb.py, which has the network too.
"""
import functools
import pathlib
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import grids, numerics, schedules
from diffusion.core.parameterization import EPS, Diffusion, clip_x0
from diffusion.core.processes import DiscreteProcess
from diffusion.likelihood.vlb import make_vlb

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from make_guided_vlb import SPACED, STEPS, network  # noqa: E402

# Its linear schedule is that of 1000 steps, scaled; its cosine is the paper's.
BETAS = {"linear": schedules.linear(STEPS, beta_start=1000 / STEPS * 1e-4, beta_end=1000 / STEPS * 0.02),
         "cosine": schedules.cosine(STEPS)}


@functools.cache
def golden():
    with np.load(GOLDEN / "guided_vlb.npz") as file:
        return dict(file)


# Any two of the four settings meet in all their values.
@pytest.mark.parametrize("schedule, kind, clip, spaced", [
    ("linear", "small", False, False), ("cosine", "small", True, True), ("linear", "large", True, False),
    ("cosine", "large", False, True), ("linear", "learned_range", False, True),
    ("cosine", "learned_range", True, False)])
def test_terms_are_guided_diffusions(x64, schedule, kind, clip, spaced):
    g, process = golden(), DiscreteProcess(betas=BETAS[schedule])

    def denoise(x, t, cond=None):
        t = jnp.broadcast_to(t, len(x))
        f, head = jnp.split(network(jnp, x, t - 1.0), 2, axis=-1)
        return EPS.predict(process, f, x, t)._replace(variance_fraction=(head + 1) / 2)
    diffusion = Diffusion(process, denoise)
    diffusion = clip_x0(diffusion) if clip else diffusion
    times = np.array(SPACED if spaced else range(STEPS))[::-1] + 1
    noise = jnp.asarray(g["noise"])
    with (mock.patch.object(numerics, "fold_in", lambda keys, index: index),
          mock.patch.object(numerics, "normal", lambda index, *_: noise[index])):
        found = jax.jit(lambda x0: make_vlb(grids.pairs(times), variance=kind)(None, diffusion, x0))(g["x0"])
    prefix = f"{schedule}_{kind}_{'clip' if clip else 'plain'}_{'spaced' if spaced else 'all'}_"
    # 1e-7: theirs adds up 1 - e^-x where ours does not cancel. Levels whose mass is below their floor of 1e-12 are its
    # rounding there.
    for name, theirs in (("vlb", "vb"), ("prior", "prior_bpd"), ("x0_mse", "xstart_mse"), ("eps_mse", "mse")):
        np.testing.assert_allclose(found.terms[name], g[prefix + theirs], rtol=1e-7, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(found.bits_per_dim, g[prefix + "total_bpd"], rtol=1e-7)
    assert jax.tree.leaves(found.terms)[0].dtype == jnp.float64
