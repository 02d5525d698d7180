"""Each weight of the error in eps against the papers' formulas, on x_0, v and EDM's F; the table of Kingma & Gao."""
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import continuous, losses, preconditioning, schedules, weightings
from diffusion.core import time_densities as td
from diffusion.core.parameterization import EPS, SCORE, VELOCITY, X0, V
from diffusion.core.processes import DiscreteProcess

BETAS = {"linear": schedules.linear(1000), "cosine": schedules.cosine(1000)}

# Name -> (weight of the squared error in eps, weight of the squared error in x_0 by the papers).
MEANINGS = {
    "snr": (weightings.snr, lambda snr: snr),
    "truncated_snr": (weightings.truncated_snr, lambda snr: np.maximum(snr, 1)),
    "snr_plus_one": (weightings.snr_plus_one, lambda snr: snr + 1),
    "min_snr": (weightings.min_snr, lambda snr: np.minimum(snr, 5)),
    "min_snr, gamma 1": (partial(weightings.min_snr, gamma=1.0), lambda snr: np.minimum(snr, 1)),
    # 1 / (sigma^2 + 1/gamma), sigma^2 = 1/SNR
    "soft_min_snr": (weightings.soft_min_snr, lambda snr: 1 / (1 / snr + 1 / 4)),
    "p2": (weightings.p2, lambda snr: snr / (1 + snr)),
    "p2, gamma 1/2": (partial(weightings.p2, k=2.0, gamma=0.5), lambda snr: snr / (2 + snr) ** 0.5),
    # (sigma^2 + sigma_data^2) / (sigma sigma_data)^2
    "edm": (weightings.edm, lambda snr: (1 / snr + 0.25) / (0.25 / snr)),
    "edm, sigma_data 1": (partial(weightings.edm, sigma_data=1.0), lambda snr: 1 + snr),
    "sigmoid": (weightings.sigmoid, lambda snr: snr / (1 + snr * np.exp(-2))),
    "likelihood": (weightings.likelihood, lambda snr: snr),
}
SPACES = {"eps": EPS, "x0": X0, "v": V, "score": SCORE, "edm": preconditioning.edm(0.5)}


@pytest.fixture(params=list(BETAS))
def errors(request):
    """Squared errors of one wrong guess at each t in every space, and the SNR [T]."""
    process = DiscreteProcess(betas=BETAS[request.param])
    t = jnp.arange(1, 1001)
    alpha_bar = np.cumprod(1 - BETAS[request.param])
    x0, eps, guess = np.random.default_rng(0).normal(size=(3, 1000, 6))
    x_t = process.diffuse(x0, t, eps)
    wrong = X0.predict(process, guess, x_t, t)
    error = {name: ((space.target(process, x0, eps, t) - space.target(process, *wrong[:2], t)) ** 2).sum(1)
             for name, space in SPACES.items()}
    return process, t, error, alpha_bar / (1 - alpha_bar)


@pytest.mark.parametrize("name", MEANINGS)
def test_a_weight_on_eps_is_the_papers_weight_on_x0(x64, errors, name):
    process, t, error, snr = errors
    weighting, on_x0 = MEANINGS[name]
    weight = weighting(process.log_snr(t))
    assert weight.shape == (1000,)
    np.testing.assert_allclose(weight * error["eps"], on_x0(snr) * error["x0"], rtol=1e-8)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", MEANINGS)
def test_a_weight_means_the_same_in_every_space(x64, errors, name, space):
    process, t, error, snr = errors
    weighting, on_x0 = MEANINGS[name]
    weight = weightings.in_space(weighting, SPACES[space])(process, td.Times(t, jnp.full(1000, 1e-3)))
    np.testing.assert_allclose(weight * error[space], on_x0(snr) * error["x0"], rtol=1e-8)


@pytest.mark.parametrize("space, weighting", [("v", weightings.snr_plus_one), ("edm", weightings.edm),
                                              ("eps", weightings.snr)])
def test_the_plain_error_of_a_space_as_a_weight(x64, errors, space, weighting):
    """SNR + 1 is the plain error in v (Salimans & Ho 2022), EDM's weight that of its F (Karras et al. 2022)."""
    process, t, error, _ = errors
    np.testing.assert_allclose(weighting(process.log_snr(t)) * error["eps"], error[space], rtol=1e-8)
    plain = weightings.in_space(None, SPACES[space])(process, td.Times(t, jnp.full(1000, 1e-3)))
    np.testing.assert_array_equal(plain, np.ones(1000))


@pytest.mark.parametrize("space, expected", [
    ("x0", lambda snr: np.minimum(snr, 5)), ("eps", lambda snr: np.minimum(snr, 5) / snr),
    ("v", lambda snr: np.minimum(snr, 5) / (snr + 1))])
def test_min_snr_for_each_prediction(x64, errors, space, expected):
    """Hang et al. (2023), Section 3.4."""
    process, t, _, snr = errors
    weight = weightings.in_space(weightings.min_snr, SPACES[space])(process, td.Times(t, jnp.full(1000, 1e-3)))
    np.testing.assert_allclose(weight, expected(snr), rtol=1e-8)


@pytest.mark.parametrize("name", MEANINGS)
def test_weights_are_finite_where_there_is_noise(name):
    for betas in BETAS.values():
        weight = MEANINGS[name][0](DiscreteProcess(betas=betas).log_snr(jnp.arange(1, 1001)))
        assert weight.dtype == jnp.float32 and np.all(np.isfinite(weight)) and np.all(weight > 0)


def sech(x):
    return 1 / np.cosh(x)


LAMBDA_EDM = 2.4  # of EDM's noise levels, ln(sigma) ~ N(-1.2, 1.2^2): lambda = -2 ln(sigma) ~ N(2.4, 2.4^2)
# Kingma & Gao (2023), Table 1: objective -> (process, density, weighting, space, per log-SNR, w(lambda) but for a
# factor). The cosine schedule is cut far out here, at +-40.
COSINE = continuous.Cosine(log_snr_min=-40.0, log_snr_max=40.0)
TABLE = {
    "elbo (VDM)": (COSINE, td.Uniform(), weightings.likelihood, EPS, True, lambda x: np.ones_like(x)),
    "elbo, log-normal": (COSINE, td.LogNormal(), weightings.likelihood, X0, True, lambda x: np.ones_like(x)),
    "iddpm (eps, cosine)": (COSINE, td.Uniform(), None, EPS, False, lambda x: sech(x / 2)),
    "sd (eps, cosine of log-SNR)": (continuous.VP(t_min=1e-6), td.CosineLogSnr(), None, EPS, False,
                                    lambda x: sech(x / 2)),
    "v, cosine": (COSINE, td.Uniform(), None, V, False, lambda x: np.exp(-x / 2)),
    "fm-ot": (continuous.Flow(t_min=1e-6), td.Uniform(), None, VELOCITY, False, lambda x: np.exp(-x / 2)),
    "indi": (continuous.Flow(t_min=1e-6), td.Uniform(), None, X0, False,
             lambda x: np.exp(-x) * sech(x / 4) ** 2),
    "edm": (continuous.VarianceExploding(sigma_min=1e-4, sigma_max=1e4), td.LogNormal(), weightings.edm,
            preconditioning.edm(0.5), False,
            lambda x: np.exp(-((x - LAMBDA_EDM) / 2.4) ** 2 / 2) * (np.exp(-x) + 0.5**2)),
    "edm, plain F": (continuous.VarianceExploding(sigma_min=1e-4, sigma_max=1e4), td.LogNormal(), None,
                     preconditioning.edm(0.5), False,
                     lambda x: np.exp(-((x - LAMBDA_EDM) / 2.4) ** 2 / 2) * (np.exp(-x) + 0.5**2)),
    "min-snr, cosine": (COSINE, td.Uniform(), weightings.min_snr, X0, False,
                        lambda x: sech(x / 2) * np.minimum(1, 5 * np.exp(-x))),
    "p2, cosine": (COSINE, td.Uniform(), weightings.p2, EPS, False, lambda x: sech(x / 2) / (1 + np.exp(x))),
    "sigmoid": (COSINE, td.Uniform(), weightings.sigmoid, EPS, True, lambda x: 1 / (1 + np.exp(x - 2))),
    "sigmoid on EDM's times": (continuous.VarianceExploding(), td.LogNormal(), weightings.sigmoid, X0, True,
                               lambda x: 1 / (1 + np.exp(x - 2))),
}


@pytest.mark.parametrize("name", TABLE)
def test_effective_weights_are_those_of_kingma_and_gao(x64, name):
    process, density, weighting, space, per_log_snr, expected = TABLE[name]
    weight = weightings.in_space(weighting, space, per_log_snr=per_log_snr)
    curve = losses.effective_weight(weight, density, process, space=space, points=4001)
    assert np.all(np.diff(curve["log_snr"]) > 0) and len(curve["log_snr"]) == 4001
    inner = (np.abs(curve["log_snr"]) < 9)
    assert inner.sum() > 1500
    ratio = curve["effective_weight"][inner] / expected(curve["log_snr"][inner])
    np.testing.assert_allclose(ratio / np.median(ratio), 1, rtol=1e-4)
