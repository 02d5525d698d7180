"""Each weight of the error in eps against what it means on x_0 and on v."""
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import schedules, weightings
from diffusion.core.parameterization import EPS, X0, V
from diffusion.core.processes import DiscreteProcess

BETAS = {"linear": schedules.linear(1000), "cosine": schedules.cosine(1000)}

# Name -> (weight of the squared error in eps, weight of the squared error in x_0 by the papers).
MEANINGS = {
    "simple": (weightings.simple, lambda snr: snr),
    "truncated_snr": (weightings.truncated_snr, lambda snr: np.maximum(snr, 1)),
    "snr_plus_one": (weightings.snr_plus_one, lambda snr: snr + 1),
    "min_snr": (weightings.min_snr, lambda snr: np.minimum(snr, 5)),
    "min_snr, gamma 1": (partial(weightings.min_snr, gamma=1.0), lambda snr: np.minimum(snr, 1)),
}


@pytest.fixture(params=list(BETAS))
def errors(request):
    """Squared errors in x_0, eps and v of one wrong guess at each t, and alpha^2 and sigma^2 as [T]."""
    process = DiscreteProcess(betas=BETAS[request.param])
    alpha_bar = np.cumprod(1 - BETAS[request.param])
    alpha, sigma = np.sqrt(alpha_bar)[:, None], np.sqrt(1 - alpha_bar)[:, None]
    x0, eps, guess = np.random.default_rng(0).normal(size=(3, 1000, 6))
    x_t = alpha * x0 + sigma * eps
    wrong = X0.predict(guess, x_t, alpha, sigma)
    error = {name: ((pair.target(x0, eps, alpha, sigma) - pair.target(*wrong[:2], alpha, sigma)) ** 2).sum(1)
             for name, pair in {"x0": X0, "eps": EPS, "v": V}.items()}
    return process, error, alpha_bar / (1 - alpha_bar)


@pytest.mark.parametrize("name", MEANINGS)
def test_a_weight_on_eps_is_the_papers_weight_on_x0(x64, errors, name):
    process, error, snr = errors
    weighting, on_x0 = MEANINGS[name]
    weight = weighting(process.log_snr(jnp.arange(1, 1001)))
    assert weight.shape == (1000,)
    np.testing.assert_allclose(weight * error["eps"], on_x0(snr) * error["x0"], rtol=1e-8)


def test_snr_plus_one_is_the_plain_error_of_v(x64, errors):
    process, error, _ = errors
    weight = weightings.snr_plus_one(process.log_snr(jnp.arange(1, 1001)))
    np.testing.assert_allclose(weight * error["eps"], error["v"], rtol=1e-8)


@pytest.mark.parametrize("name", MEANINGS)
def test_weights_are_finite_where_there_is_noise(name):
    for betas in BETAS.values():
        weight = MEANINGS[name][0](DiscreteProcess(betas=betas).log_snr(jnp.arange(1, 1001)))
        assert weight.dtype == jnp.float32 and np.all(np.isfinite(weight)) and np.all(weight > 0)
