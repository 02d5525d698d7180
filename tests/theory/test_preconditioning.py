"""The preconditionings against NVlabs/edm's in float32, of tests/golden/edm_sampler.npz, and against formulas."""
import functools
import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import preconditioning
from diffusion.core.continuous import VP, VarianceExploding
from diffusion.core.parameterization import make_denoiser
from diffusion.core.processes import DiscreteProcess

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from make_edm_sampler import LEVELS, PRECONDITIONINGS, network  # noqa: E402

MEMBERS = {"edm": preconditioning.edm(0.5), "edm_vp": preconditioning.vp(), "edm_ve": preconditioning.ve(),
           "edm_iddpm": preconditioning.iddpm()}


@functools.cache
def golden():
    with np.load(GOLDEN / "edm_sampler.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", PRECONDITIONINGS)
@pytest.mark.parametrize("process", [VarianceExploding(), VP()], ids=["EDM", "VP"])
def test_the_denoiser_and_c_noise_are_nvlabs(name, process):
    """On EDM's process, and on another one, where x is scaled and at the time of the same noise level."""
    g, told = golden(), []

    def toy(params, x, c_noise, cond, keys):
        told.append(c_noise)
        return network(jnp, x, c_noise)
    t = process.time_of_log_snr(-2 * jnp.log(LEVELS.astype(np.float32)))
    x = process.alpha(t)[:, None] * g["noisy"]
    found = make_denoiser(lambda params: process, MEMBERS[name], toy)(None).denoise(x, t)
    # c_noise is a number up to 1000 of the cosine's argument in `network` / 50: its rounding is the rest.
    np.testing.assert_allclose(told[0], g[f"{name}_c_noise"], rtol=3e-6, atol=3e-4)
    np.testing.assert_allclose(found.x0, g[f"{name}_denoised"], rtol=2e-5, atol=2e-5 * LEVELS.max())


def test_the_levels_of_iddpm_are_those_of_its_cosine_schedule(x64):
    """u_j is sigma / alpha at t = M - j of the chain, but for the cut at C_1 = 0.001 and the scale at t = 0."""
    alpha_bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    chain = DiscreteProcess(betas=betas)
    levels = preconditioning.iddpm_levels()
    assert len(levels) == 1001 and levels[-1] == 0 and np.all(np.diff(levels) < 0)
    np.testing.assert_allclose(levels[:-1], chain.noise_level(np.arange(1000, 0, -1)), rtol=1e-9)


def test_the_weights_of_their_losses_are_ours():
    """VPLoss and VELoss weigh ||D - y||^2 by 1 / sigma^2, which is 1 on F; EDMLoss by 1 / c_out^2, 1 on its F."""
    t = jnp.asarray(LEVELS, jnp.float32)
    process = VarianceExploding()
    for name, weight in {"edm_vp": 1 / t**2, "edm_ve": 1 / t**2, "edm_iddpm": 1 / t**2,
                         "edm": (t**2 + 0.25) / (t * 0.5) ** 2}.items():
        on_x0 = (MEMBERS[name].determinant(process, t) / process.sigma(t)) ** 2
        np.testing.assert_allclose(on_x0, weight, rtol=1e-5)
