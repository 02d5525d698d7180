"""The variational bound in continuous time: Kingma et al. (2021), "Variational Diffusion Models" (VDM)."""
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import numerics
from diffusion.core.parameterization import Diffusion
from diffusion.core.processes import Process
from diffusion.core.variational import prior_term, reconstruction_term
from diffusion.likelihood.base import Estimate, Estimator, check_steps, ends
from diffusion.typing import NO_COND, Array, Cond, Image, Keys


def make_continuous_vlb(samples: int, *, uniform: Literal["log_snr", "time"] = "log_snr",
                        levels: int = 256) -> Estimator:
    """-log p(x_0) <= prior + 1/2 int ||eps - eps_hat||^2 d lambda + reconstruction (VDM, Eqs. 4, 11 and 17).

    The integral is over t_min .. t_max of the process, with `samples` draws per example, one in each of `samples`
    strata of equal width in lambda or in t. In lambda the weight is constant, and the value is the same for all
    processes (VDM, Section 5.1); t is for processes with infinite lambda at t_max. Terms: prior, diffusion and
    reconstruction [B], which add up to the bound, and eps_mse [B, samples], the mean square error of eps_hat in each
    stratum, from noise to data.
    """
    def estimate(keys: Keys, diffusion: Diffusion, x0: Image, cond: Cond = NO_COND,
                 mask: Array | None = None) -> Estimate:
        process, denoise = diffusion.process, diffusion.denoise
        data, noise = ends(process)
        first, last = (process.log_snr(noise), process.log_snr(data)) if uniform == "log_snr" else (noise, data)

        def stratum(_, index):
            here = numerics.fold_in(keys, index)
            place = jax.vmap(jax.random.uniform)(numerics.fold_in(here, 0)).astype(x0.dtype)
            value = first + (last - first) * (index + place) / samples
            t = process.time_of_log_snr(value) if uniform == "log_snr" else value
            eps = numerics.normal(numerics.fold_in(here, 1), x0.shape[1:], x0.dtype)
            x_t = numerics.masked(process.diffuse(x0, t, eps), mask)
            error = numerics.mean_over((denoise(x_t, t, cond).eps - eps) ** 2, mask)
            weight = 1.0 if uniform == "log_snr" else process.log_rates(t)[1]
            return None, (error, weight * (last - first) * error)

        _, (eps_mse, integrand) = jax.lax.scan(stratum, None, jnp.arange(samples))
        eps = numerics.normal(numerics.fold_in(keys, samples), x0.shape[1:], x0.dtype)
        terms = dict(prior=prior_term(process, x0, mask), diffusion=jnp.mean(integrand, 0) / (2 * math.log(2)),
                     reconstruction=reconstruction_term(process, x0, eps, mask, levels))
        return Estimate(sum(terms.values()), terms | {"eps_mse": eps_mse.T})
    return estimate


def continuous_vlb(*, process: Process, levels: int = 256, steps: int = 1000) -> Estimator:
    """The bound in continuous time (Kingma et al. 2021), over log-SNR, or over t if the log-SNR is infinite."""
    check_steps(steps)
    finite = np.isfinite(float(process.log_snr(process.t_max)))
    return make_continuous_vlb(steps, uniform="log_snr" if finite else "time", levels=levels)


ESTIMATORS = {"continuous_vlb": continuous_vlb}
continuous_vlb.of_chain = False
