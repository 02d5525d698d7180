"""Two classes of data, each a mixture of Gaussians in two dimensions, and everything about them that is exact."""
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.numerics import expand
from diffusion.core.parameterization import Diffusion, Prediction
from diffusion.typing import NO_COND

PRIOR = np.array([0.35, 0.65])  # of the classes
WEIGHTS = np.array([[0.4, 0.6], [0.8, 0.2]])                            # [class, mode]
CENTERS = np.array([[[-0.8, -0.5], [0.7, 0.9]], [[0.8, -0.5], [-0.6, 0.6]]])  # [class, mode, coordinate]
STDS = np.array([[0.2, 0.3], [0.25, 0.15]])
NULL = 2


def log_densities(process, x, t):
    """log p(x_t | class) [B, 2]."""
    alpha, sigma = (jnp.asarray(a, x.dtype) for a in (process.alpha(t), process.sigma(t)))
    alpha, sigma = (expand(jnp.broadcast_to(a, x.shape[:1]), jnp.zeros((1, 1, 1))) for a in (alpha, sigma))
    variance = alpha**2 * STDS[None]**2 + sigma**2
    offset = x[:, None, None] - alpha[..., None] * CENTERS[None]
    each = jnp.log(WEIGHTS)[None] - jnp.sum(offset**2, -1) / variance / 2 - jnp.log(2 * np.pi * variance)
    return jax.nn.logsumexp(each, axis=-1)


def log_joint(process, x, t):
    """log p(x_t, class) [B, 2]."""
    return jnp.log(PRIOR)[None] + log_densities(process, x, t)


def log_density(process, x, t, label):
    """log p(x_t | label) [B], and log p(x_t) for the label NULL."""
    table = jnp.concatenate([log_densities(process, x, t), jax.nn.logsumexp(log_joint(process, x, t), -1)[:, None]], 1)
    return jnp.take_along_axis(table, jnp.broadcast_to(jnp.asarray(label), x.shape[:1])[:, None], 1)[:, 0]


def log_classifier(process):
    """(x_t, t, cond) -> log p(label | x_t) [B]."""
    def log_probability(x, t, cond):
        label = jnp.asarray(cond["label"])
        return jnp.take_along_axis(jax.nn.log_softmax(log_joint(process, x, t)), label[:, None], 1)[:, 0]
    return log_probability


def score(function, x):
    """The gradient by each row of x of function(x) [B]."""
    return jax.grad(lambda x: jnp.sum(function(x)))(x)


def diffusion(process):
    """The exact denoiser, of the classes and of the label NULL (also without a label)."""
    def denoise(x, t, cond=NO_COND):
        label = cond["label"] if cond else jnp.full(len(x), NULL)
        sigma, alpha = expand(process.sigma(t), x), expand(process.alpha(t), x)
        eps = -sigma * score(lambda x: log_density(process, x, t, label), x)
        return Prediction((x - sigma * eps) / alpha, eps, jnp.broadcast_to(expand(label / 4, x), x.shape))
    return Diffusion(process, denoise)
