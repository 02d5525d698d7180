"""Every estimator on one law of known bits per dimension, with the exact denoiser: all give the same number.

Other probes than these are in test_ode.py, and more samples in test_dequantisation.py.
"""
import jax
import numpy as np
import pytest
from likelihood import exact
from scipy.special import ndtr

from diffusion.core import grids, schedules
from diffusion.core.continuous import VP
from diffusion.core.processes import DiscreteProcess
from diffusion.families import BY_NAME
from diffusion.likelihood.continuous import make_continuous_vlb
from diffusion.likelihood.dequantisation import dequantized, truncated_normal, uniform
from diffusion.likelihood.ode import make_adaptive, make_fixed
from diffusion.likelihood.vlb import make_vlb

CHAIN = DiscreteProcess(betas=schedules.linear(1000))
SDE = VP(t_min=1e-4)
FINE = make_fixed(64, uniform="log_snr")
# name: (process, estimator, what may be left above the exact value, and why)
ESTIMATORS = {
    "L_vlb, 1000 steps, large variance": (CHAIN, make_vlb(grids.pairs(np.arange(1000, 0, -1)), variance="large"),
                                          0.006),  # the chain's steps are not of zero length
    "continuous bound": (SDE, make_continuous_vlb(64), 0.02),  # its decoder takes all levels for equally likely
    "ODE, uniform": (SDE, dequantized(FINE, uniform), 0.002),  # the density is not quite flat in a cell
    "ODE, truncated normal": (SDE, dequantized(FINE, truncated_normal), 0.05),  # narrower than the density in the cell
    "ODE, adaptive": (SDE, dequantized(make_adaptive(rtol=1e-5, atol=1e-5), uniform), 0.002),
}

# The same members at the levels of 16-bit sound.
OF_SOUND = {"vlb": (CHAIN, dict(steps=1000, variance="large", variance_share=0.2), 0.006),
            "continuous_vlb": (SDE, dict(steps=64), 0.02),
            "ode": (SDE, dict(steps=100, tolerance=0.0, probes="rademacher", probe_count=1, dequantisation="uniform",
                              samples=1), 0.01)}


@pytest.mark.parametrize("name", [pytest.param("vlb", marks=pytest.mark.slow), "continuous_vlb", "ode"])
def test_bits_of_65536_levels(x64, name):
    process, keys, above = OF_SOUND[name]
    estimator = BY_NAME["estimator"].make({"estimator": name, **keys}, chosen=name, key=None, process=process,
                                          levels=65_536)
    levels, step = np.linspace(-1, 1, 65_536, retstep=True)
    x0 = levels[np.rint((exact.draw(exact.MIXTURE, (1000, 1, 2, 1)) + 1) / step).astype(int)]
    weights, means, stds = exact.MIXTURE
    above_edge, below_edge = (ndtr((x0[..., None] + side * step / 2 - means) / stds) for side in (1, -1))
    masses = (above_edge - below_edge) @ weights
    found = exact.program(estimator, process)(jax.random.split(jax.random.key(0), len(x0)), x0, exact.MIXTURE)
    gap = np.asarray(found.bits_per_dim) + np.log2(masses).mean((1, 2, 3))
    error = gap.std(ddof=1) / len(gap) ** 0.5
    assert -4 * error - 1e-4 < gap.mean() < 4 * error + above


@pytest.mark.parametrize("law", [pytest.param(exact.GAUSSIAN, id="gaussian", marks=pytest.mark.slow),
                                 pytest.param(exact.MIXTURE, id="mixture")])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_all_agree_with_the_known_bits(x64, name, law):
    """Against each example's own exact value, so that the data's spread does not hide a difference."""
    process, estimator, above = ESTIMATORS[name]
    x0 = exact.draw(law, (1000, 1, 2, 1))
    keys = jax.random.split(jax.random.key(0), len(x0))
    found = exact.program(estimator, process)(keys, x0, law)
    gap = np.asarray(found.bits_per_dim) - exact.bits(law, x0)
    error = gap.std(ddof=1) / len(gap) ** 0.5
    print(f"{name}: {gap.mean():.5f} +- {error:.5f}")
    assert -4 * error - 1e-4 < gap.mean() < 4 * error + above
