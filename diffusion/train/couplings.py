"""Couplings: which noise meets which example of the batch. By default each example has its own independent noise."""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.typing import Array, Cond, Image

# (x0 [B, ...], noise [B, ...], cond) -> the same, paired anew over the whole global batch.
Coupling = Callable[[Image, Image, Cond], tuple[Image, Image, Cond]]


def minibatch_ot() -> Coupling:
    """Noise and data of a batch paired at the least squared distance (Pooladian et al. 2023; Tong et al. 2024)."""
    return _optimal_transport


def _optimal_transport(x0: Image, noise: Image, cond: Cond) -> tuple[Image, Image, Cond]:
    """The permutation of the noise with the least total squared distance to the data: Pooladian et al. (2023),
    "Multisample Flow Matching", Section 4; Tong et al. (2024), "OT-CFM", Section 3.3. It is exact, on the host."""
    a, b = (x.reshape(len(x), -1) for x in (x0, noise))
    # The squares of |a - b|^2 are the same for all permutations; products in full precision, so that devices agree.
    cost = -jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    rows = jax.pure_callback(_assign, jax.ShapeDtypeStruct((len(x0),), jnp.int32), cost)
    return x0, noise[rows], cond


def _assign(cost: Array) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment  # half a second that only its users pay
    return linear_sum_assignment(np.asarray(cost, np.float64))[1].astype(np.int32)


# Members of loss.coupling; None: independent noise.
COUPLINGS = {"independent": None, "minibatch_ot": minibatch_ot}
