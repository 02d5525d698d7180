"""Classifier-free guidance against what it is on Gaussians: a chain that goes to a Gaussian one can write down."""
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import schedules
from diffusion.core.parameterization import Diffusion, Prediction
from diffusion.core.processes import DiscreteProcess
from diffusion.guidance import classifier_free

PROCESS = DiscreteProcess(betas=schedules.cosine(50))
MEANS = np.array([-1.0, 2.0, 0.5])  # of the data of classes 0 and 1, and of all of it, label 2
CALLS = []


def gaussian(x_t, t, cond):
    """The exact denoiser of x_0 ~ N(mean of the class, 1)."""
    CALLS.append(x_t.shape)
    alpha, sigma = (a.reshape(-1, 1, 1, 1) for a in (PROCESS.alpha(t), PROCESS.sigma(t)))
    mean = jnp.asarray(MEANS)[cond["label"]].reshape(-1, 1, 1, 1)
    x0 = mean + alpha / (alpha**2 + sigma**2) * (x_t - alpha * mean)
    return Prediction(x0, (x_t - alpha * x0) / sigma, jnp.broadcast_to(mean, x_t.shape))


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("t", [1, 20, 50])
def test_the_guided_score_is_that_of_the_product(x64, scale, t):
    """p(x|c)^w p(x)^(1-w) of Gaussians of one variance is a Gaussian of mean w m_c + (1-w) m (Ho & Salimans 2022, Eq.
    6)."""
    x, labels = np.random.default_rng(0).normal(size=(4, 2, 2, 1)), np.array([0, 1, 1, 0])
    out = classifier_free(Diffusion(PROCESS, gaussian), scale, {"label": 2}).denoise(x, t, {"label": labels})
    alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
    mean = (scale * MEANS[labels] + (1 - scale) * MEANS[2]).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(out.eps, sigma * (x - alpha * mean), atol=1e-9)  # -sigma score; alpha^2 + sigma^2 = 1
    np.testing.assert_allclose(alpha * out.x0 + sigma * out.eps, x, atol=1e-9)
    np.testing.assert_array_equal(out.variance_fraction[:, 0, 0, 0], MEANS[labels])  # the conditional one


def test_the_network_is_called_once_on_both(x64):
    CALLS.clear()
    guided = classifier_free(Diffusion(PROCESS, gaussian), 2.0, {"label": 2})
    guided.denoise(np.zeros((3, 2, 2, 1)), 5, {"label": np.zeros(3, int)})
    assert CALLS == [(6, 2, 2, 1)]
