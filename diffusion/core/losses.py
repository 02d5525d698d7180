"""Training losses: loss(params, diffusion, x0, cond, times, keys, mask=None) -> (per_example [B], aux), never reduced
over the batch; means over an example are over its valid entries (`numerics.mean_over`)."""
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import numerics, variational, weightings
from diffusion.core.parameterization import EPS, Diffusion, Parameterization, Prediction
from diffusion.core.processes import Process
from diffusion.core.time_densities import TimeDensity, Times
from diffusion.core.uncertainty import Uncertainty
from diffusion.core.weightings import Weight
from diffusion.errors import require
from diffusion.typing import Array, Cond, Image, Keys, Params

NATS = 1 / math.log(2)  # in bits


class LossAux(NamedTuple):
    """Per-example values for the log and for the time density, [B]."""
    t: Array
    log_snr: Array
    weight: Array  # of the squared error in eps, times the importance; its sum over a log-SNR bin estimates w p
    term: Array    # the loss without importance weight


# params: all parameters (the diffusion binds those of network and process already); keys [B] for the noise; a mask of
# the valid entries may follow.
Loss = Callable[..., tuple[Array, LossAux]]


class Sample(NamedTuple):
    """A draw x_t and the denoiser's prediction for it."""
    eps: Image
    x_t: Image
    prediction: Prediction


def draw(diffusion: Diffusion, x0: Image, cond: Cond, t: Array, keys: Keys) -> Sample:
    eps = numerics.normal(keys, x0.shape[1:], x0.dtype)
    x_t = diffusion.process.diffuse(x0, t, eps)
    return Sample(eps, x_t, diffusion.denoise(x_t, t, cond))


def make_denoising_loss(weight: Weight, space: Parameterization = EPS,
                        uncertainty: Callable[[Params, Array], Array] | None = None) -> Loss:
    """E_{t, eps} w ||F - F_hat||^2 / (H W C), F = a x_0 + b eps of `space`, with one draw of eps per example.

    weight: of the squared error in that space (`weightings.in_space`); 1 in eps is L_simple (Ho et al. 2020, Eq. 14,
    Algorithm 1). The network may predict another F, since the loss compares the denoiser's x_0 and eps. uncertainty:
    (params["uncertainty"], lambda) -> u [B], which turns the loss L into L e^-u + u (`Uncertainty`).
    """
    def loss(params: Params, diffusion: Diffusion, x0: Image, cond: Cond, times: Times, keys: Keys,
             mask: Array | None = None):
        process, t = diffusion.process, times.t
        eps, _, prediction = draw(diffusion, x0, cond, t, keys)
        error = space.target(process, x0 - prediction.x0, eps - prediction.eps, t)
        w, log_snr = weight(process, times), process.log_snr(t)
        term = w * numerics.mean_over(error**2, mask)
        on_eps = weightings.on_eps(w, space, process, t) * times.importance
        if uncertainty is not None:
            u = uncertainty(params["uncertainty"], log_snr)
            term, on_eps = term * jnp.exp(-u) + u, on_eps * jnp.exp(-u)
        return times.importance * term, LossAux(t, log_snr, on_eps, term)
    return loss


def bound_weight(process: Process, times: Times) -> Array:
    """The bound's weight on the squared error in eps in continuous time, in bits: 1 / (2 p(lambda)).

    Kingma et al. (2021), VDM, Section 5. The discrete bound's weight tends to it for large T.
    """
    return NATS / 2 / times.log_snr_density(process)


def _bound_aux(process: Process, times: Times, term: Array) -> LossAux:
    return LossAux(times.t, process.log_snr(times.t), bound_weight(process, times) * times.importance, term)


def make_vlb_loss(variance: variational.Variance) -> Loss:
    """L_vlb (Nichol & Dhariwal 2021, Eq. 4) without the prior term, in bits per dimension, from one L_t per example.

    For the integer times of a DiscreteProcess: E_p[L_t / p(t)], the sum over t for any density. variance: of p(x_{t-1}
    | x_t), as in `variational.reverse_log_variance`.
    """
    def loss(params: Params, diffusion: Diffusion, x0: Image, cond: Cond, times: Times, keys: Keys,
             mask: Array | None = None):
        process = diffusion.process
        _, x_t, prediction = draw(diffusion, x0, cond, times.t, keys)
        term = variational.vlb_of_prediction(process, prediction, x0, x_t, times.t, variance, mask=mask)
        term = term / times.p
        return times.importance * term, _bound_aux(process, times, term)
    return loss


def make_hybrid_loss(variance: variational.Variance, weight: Weight, space: Parameterization = EPS,
                     scale: float = 0.001) -> Loss:
    """L_simple + scale * L_vlb, where L_vlb trains only the variance: Nichol & Dhariwal (2021), Eq. 16.

    The mean is held fixed in L_vlb. L_simple is the denoising loss with `weight` and `space`; aux is L_simple's, but
    its `term` includes L_vlb.
    """
    denoising, bound = make_denoising_loss(weight, space), make_vlb_loss(variance)

    def loss(params: Params, diffusion: Diffusion, x0: Image, cond: Cond, times: Times, keys: Keys,
             mask: Array | None = None):
        _, _, prediction = draw(diffusion, x0, cond, times.t, keys)  # one call of the network serves both
        held = jax.lax.stop_gradient(prediction)._replace(variance_fraction=prediction.variance_fraction)
        simple, aux = denoising(params, _answering(diffusion, prediction), x0, cond, times, keys, mask)
        vlb, vlb_aux = bound(params, _answering(diffusion, held), x0, cond, times, keys, mask)
        return simple + scale * vlb, aux._replace(term=aux.term + scale * vlb_aux.term)
    return loss


def _answering(diffusion: Diffusion, prediction: Prediction) -> Diffusion:
    """The diffusion with a denoiser that returns this prediction."""
    return diffusion._replace(denoise=lambda x_t, t, cond: prediction)


def make_continuous_vlb_loss(*, learned: bool = False) -> Loss:
    """The variational bound in continuous time, in bits per dimension: Kingma et al. (2021), VDM, Eqs. 3, 11 and 17.

    E_t[-lambda'(t)/(2 p(t)) ||eps - eps_hat||^2] + KL(q(x_1 | x_0) || N(0, prior_std^2)) - E[log p(x_0 | x_{t_min})].
    Requires a process with finite log-SNRs at both ends.

    learned: the process is a LearnedProcess. Its ends, if they are parameters, minimise the bound, which does not
    depend on the interior. The interior minimises the variance of the bound's estimate (VDM, Appendix I.2): with gamma
    = -lambda held fixed, -L^2 log p(gamma) has the gradient of E[L^2], where L is the diffusion term of an example.
    This needs no second network evaluation and adds a gradient but no value to the loss.
    """
    def loss(params: Params, diffusion: Diffusion, x0: Image, cond: Cond, times: Times, keys: Keys,
             mask: Array | None = None):
        process, t = diffusion.process, times.t
        eps, _, prediction = draw(diffusion, x0, cond, t, numerics.fold_in(keys, 0))
        error = numerics.mean_over((eps - prediction.eps) ** 2, mask)
        diffusion_term = -process.log_rates(t)[1] / (2 * times.p) * error * NATS
        plain = numerics.normal(numerics.fold_in(keys, 1), x0.shape[1:], x0.dtype)
        term = (diffusion_term + variational.prior_term(process, x0, mask)
                + variational.reconstruction_term(process, x0, plain, mask))
        per_example = times.importance * term
        if learned:
            surrogate = -jax.lax.stop_gradient(diffusion_term**2) * process.log_density(t)
            per_example = per_example + surrogate - jax.lax.stop_gradient(surrogate)
        return per_example, _bound_aux(process, times, term)
    return loss


def effective_weight(weight: Weight, density: TimeDensity, process: Process, state: Any = (), *,
                     space: Parameterization = EPS, points: int = 1000) -> dict[str, np.ndarray]:
    """The effective weight w(lambda) p(lambda) of an objective (Kingma & Gao 2023), as a curve over ascending log-SNR.

    {"log_snr": [N], "effective_weight": [N]} for the squared error in eps, where both are finite, N <= points; `weight`
    is for the error in `space`.
    """
    times = density.draw((jnp.arange(points) + 0.5) / points, process, state)
    log_snr = process.log_snr(times.t)
    effective = weightings.on_eps(weight(process, times), space, process, times.t) * times.log_snr_density(process)
    log_snr, effective = np.asarray(log_snr), np.asarray(effective)
    order = np.unique(log_snr, return_index=True)[1]
    order = order[np.isfinite(log_snr[order]) & np.isfinite(effective[order])]
    return {"log_snr": log_snr[order], "effective_weight": effective[order]}


# Members of loss.name. `build` makes `weight` and `measured_in` from the keys `weighting` and `space`.
def denoising(*, weight: Weight, measured_in: Parameterization,
              space: str = "eps",         # the quantity whose error is measured, as in config.prediction
              weighting: str = "simple",  # weighting of that error, or one converted to it
              uncertainty: bool = False,  # learn a factor per noise level (Karras et al. 2024, Eq. 21)
              ) -> Loss:
    """The squared error at random times, weighted (Ho et al. 2020, Eq. 14)."""
    return make_denoising_loss(weight, measured_in, Uncertainty() if uncertainty else None)


def vlb(*, learned_range: bool,
        variance: Literal["large", "small"] = "large",  # of p(x_{t-1} | x_t), without learned_range
        ) -> Loss:
    """The variational bound of a chain (Nichol & Dhariwal 2021, Eq. 4)."""
    return make_vlb_loss("learned_range" if learned_range else variance)


def hybrid(*, weight: Weight, measured_in: Parameterization, space: str = "eps", weighting: str = "simple",
           hybrid_scale: float = 1e-3,  # weight of L_vlb (Nichol & Dhariwal 2021, Eq. 16)
           ) -> Loss:
    """The squared error trains the mean, and the bound trains the variance (Nichol & Dhariwal 2021, Eq. 16)."""
    require(hybrid_scale > 0, "hybrid_scale", hybrid_scale, "must be positive.")
    return make_hybrid_loss("learned_range", weight, measured_in, hybrid_scale)


def continuous_vlb(*, process: Process) -> Loss:
    """The variational bound in continuous time, which can also train a learned schedule (Kingma et al. 2021)."""
    return make_continuous_vlb_loss(learned=process.trained_schedule is not None)


LOSSES = {"denoising": denoising, "vlb": vlb, "hybrid": hybrid, "continuous_vlb": continuous_vlb}
# Abilities: of_chain, for discrete chains or continuous time; teaches_variance, needs_variance: the second head;
# of_levels: only for data on the levels of a byte.
vlb.of_chain = hybrid.of_chain = True
continuous_vlb.of_chain = False
vlb.teaches_variance = hybrid.teaches_variance = hybrid.needs_variance = True
continuous_vlb.of_trained_schedule = True
vlb.of_levels = hybrid.of_levels = continuous_vlb.of_levels = True
