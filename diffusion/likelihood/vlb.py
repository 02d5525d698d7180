"""The variational bound of a chain, term by term: Ho et al. (2020), Eqs. 5 and 13, and its rate and distortion."""
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import grids, numerics
from diffusion.core.parameterization import Diffusion
from diffusion.core.processes import Process
from diffusion.core.variational import Variance, prior_term, variance_of, vlb_of_prediction
from diffusion.errors import require
from diffusion.likelihood.base import Estimate, Estimator, check_steps
from diffusion.typing import NO_COND, Array, Cond, Image, Keys


def make_vlb(steps: np.ndarray, *, variance: Variance, levels: int = 256) -> Estimator:
    """-log p(x_0) <= prior + sum of L over `steps` [S, 2], rows (t, s) from t_max to 0, each ending where the next
    begins; S denoiser calls, in one compiled loop.

    The chain may have all times or some: a respaced chain is a chain of its own (Nichol & Dhariwal 2021, Section 4).
    One draw of x_t ~ q(x_t | x_0) per term. Terms, in the order of `steps`:

      prior     [B]     L_T
      vlb       [B, S]  L_{t-1}, the last being the decoder's -log p(x_0 | x_1): with `prior` they add up to the bound
      x0_mse    [B, S]  mean square error of x_0_hat
      eps_mse   [B, S]  mean square error of eps_hat

    The caller clips x_0_hat if wanted (`clip_x0` of the diffusion) and checks that the model was trained at these
    times. Raises ValueError if the steps are not a chain down to 0.
    """
    steps = np.asarray(steps)
    if not (len(steps) and np.all(steps[:-1, 1] == steps[1:, 0]) and steps[-1, 1] == 0
            and np.all(steps[:, 1] < steps[:, 0])):
        raise ValueError(f"a bound needs a chain of times down to 0, each step ending where the next begins: {steps}")
    rows = np.column_stack([steps, np.append(steps[:1, 0], steps[:-1, 0])])  # with the time before t

    def estimate(keys: Keys, diffusion: Diffusion, x0: Image, cond: Cond = NO_COND,
                 mask: Array | None = None) -> Estimate:
        process, denoise = diffusion.process, diffusion.denoise

        def term(_, row):
            index, (t, s, t_previous) = row
            eps = numerics.normal(numerics.fold_in(keys, index), x0.shape[1:], x0.dtype)
            x_t = numerics.masked(process.diffuse(x0, t, eps), mask)
            prediction = denoise(x_t, t, cond)
            return None, (vlb_of_prediction(process, prediction, x0, x_t, t, variance, s, t_previous, mask,
                                            levels),
                          numerics.mean_over((prediction.x0 - x0) ** 2, mask),
                          numerics.mean_over((prediction.eps - eps) ** 2, mask))

        _, terms = jax.lax.scan(term, None, (jnp.arange(len(rows)), jnp.asarray(rows)))
        vlb, x0_mse, eps_mse = (term.T for term in terms)
        prior = prior_term(process, x0, mask)
        return Estimate(prior + jnp.sum(vlb, 1), dict(prior=prior, vlb=vlb, x0_mse=x0_mse, eps_mse=eps_mse))
    return estimate


def rate_distortion(prior: float, vlb: np.ndarray, x0_mse: np.ndarray, levels: int = 256
                    ) -> tuple[np.ndarray, np.ndarray]:
    """The progressive code of Ho et al. (2020), Section 4.3, Fig. 5: rate and distortion [S + 1] after each part.

    prior, vlb [S] and x0_mse [S]: means over examples of `make_vlb`'s terms. rate, bits per dimension: the bits sent
    once x_t is known, i.e. the prior and all L of greater times; the last is the total. distortion: the root mean
    square error of x_0_hat(x_t), in levels (0..255 of a byte); the last is 0, since x_0 is then known.
    """
    rate = prior + np.concatenate([[0.0], np.cumsum(vlb)])
    return rate, np.append((levels - 1) / 2 * np.sqrt(x0_mse), 0.0)


def vlb(*, process: Process, levels: int = 256,
        steps: int = 1000,  # times of the chain; draws of continuous_vlb; steps of ode without tolerance
        variance: Literal["large", "small", "learned_range", "mixed"] = "large",  # as sample.variance of ancestral
        variance_share: float = 0.2,  # mixed: share of the large variance, in logarithms
        ) -> Estimator:
    """The variational bound of the model's chain, or of a respaced one (Ho et al. 2020)."""
    check_steps(steps)
    require(steps <= process.t_max, "steps", steps, f"must be at most {process.t_max}, the number of the model's "
            "times: the chain of all of them, or a respaced one.")
    return make_vlb(chain_of(process, steps), variance=variance_of(variance, variance_share), levels=levels)


def chain_of(process: Process, steps: int) -> np.ndarray:
    """The steps [S, 2] of the bound: the model's chain, or a respaced one."""
    return grids.pairs(grids.linspace(process.t_max, steps))


ESTIMATORS = {"vlb": vlb}
vlb.of_chain = True
