"""Training losses: loss(bind, inputs) -> (per_example [B], aux), never reduced over the batch; means over an example
are over its valid entries (`numerics.mean_over`).

`bind` gives the Diffusion of a parameter set by name, so that a loss may use several: the one that it trains, an
average of it, a teacher, another network. The losses of this file use one; they are `Terms` of its parameters and its
Diffusion.
"""
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import numerics, variational, weightings
from diffusion.core.parameterization import EPS, Denoiser, Diffusion, Parameterization, Prediction
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


class Inputs(NamedTuple):
    """The data and the draws of a batch. `keys(stream)` gives keys [B], a function of stream, step and example only."""
    x0: Image
    cond: Cond
    times: Times
    keys: Callable[[str], Keys]
    step: Array                # updates done, int32 scalar
    noise: Image | None = None  # drawn together with x0 by a coupling; None: the loss draws it
    mask: Array | None = None   # the valid entries of x0; None: all


@dataclass(frozen=True)
class Bind:
    """bind(NAME, keys=None) is the Diffusion of a parameter set, an average or a frozen set, by its name; with `keys`
    [B] its dropout is on."""
    denoisers: Mapping[str, Denoiser]
    values: Mapping[str, Params]
    read: set[str] = field(default_factory=set)  # the names asked for so far

    def __call__(self, name: str, keys: Keys | None = None) -> Diffusion:
        params = self.params(name)
        return self.denoisers[name](params, keys)

    def params(self, name: str) -> Params:
        """All parameters of the set. Raises ValueError if there is none of that name."""
        if name not in self.values:
            raise ValueError(f"A loss asks for the parameters {name!r}. There are: {', '.join(sorted(self.values))}.")
        self.read.add(name)
        return self.values[name]


# aux: values [B] by name for the log and the time density, of which those of `LossAux` have a meaning.
Loss = Callable[[Bind, Inputs], tuple[Array, LossAux | Mapping[str, Array]]]
# (params, diffusion, x0, cond, times, keys, noise=None, mask=None) -> as Loss. params: all parameters of one set, whose
# network and process the diffusion binds already; keys [B] for the noise, if it is not given.
Terms = Callable[..., tuple[Array, LossAux]]


def of_set(terms: Terms, name: str = "online") -> Loss:
    """The loss of one parameter set."""
    def loss(bind: Bind, inputs: Inputs):
        diffusion = bind(name, inputs.keys("dropout"))
        return terms(bind.params(name), diffusion, inputs.x0, inputs.cond, inputs.times, inputs.keys("loss"),
                     inputs.noise, inputs.mask)
    return loss


class Sample(NamedTuple):
    """A draw x_t and the denoiser's prediction for it."""
    eps: Image
    x_t: Image
    prediction: Prediction


def draw(diffusion: Diffusion, x0: Image, cond: Cond, t: Array, keys: Keys, noise: Image | None = None,
         mask: Array | None = None) -> Sample:
    """x_t of the noise, which is drawn by the keys if it is not given. The network sees 0 where the mask is false, as
    in likelihoods."""
    eps = numerics.normal(keys, x0.shape[1:], x0.dtype) if noise is None else noise
    x_t = numerics.masked(diffusion.process.diffuse(x0, t, eps), mask)
    return Sample(eps, x_t, diffusion.denoise(x_t, t, cond))


def make_denoising_loss(weight: Weight, space: Parameterization = EPS,
                        uncertainty: Callable[[Params, Array], Array] | None = None) -> Terms:
    """E_{t, eps} w ||F - F_hat||^2 / (H W C), F = a x_0 + b eps of `space`, with one draw of eps per example.

    weight: of the squared error in that space (`weightings.in_space`); 1 in eps is L_simple (Ho et al. 2020, Eq. 14,
    Algorithm 1). The network may predict another F, since the loss compares the denoiser's x_0 and eps. uncertainty:
    (params["uncertainty"], lambda) -> u [B], which turns the loss L into L e^-u + u (`Uncertainty`).
    """
    def terms(params: Params, diffusion: Diffusion, x0: Image, cond: Cond, times: Times, keys: Keys,
              noise: Image | None = None, mask: Array | None = None):
        process, t = diffusion.process, times.t
        eps, _, prediction = draw(diffusion, x0, cond, t, keys, noise, mask)
        error = space.target(process, x0 - prediction.x0, eps - prediction.eps, t)
        log_snr = process.log_snr(t)
        term, on_eps = _squared(error, mask, weight, space, process, times)
        if uncertainty is not None:
            u = uncertainty(params["uncertainty"], log_snr)
            term, on_eps = term * jnp.exp(-u) + u, on_eps * jnp.exp(-u)
        return times.importance * term, LossAux(t, log_snr, on_eps, term)
    return terms


def _squared(error: Array, mask: Array | None, weight: Weight, space: Parameterization, process: Process,
             times: Times) -> tuple[Array, Array]:
    """The weighted mean square of an error in `space`, [B], and its weight on the squared error in eps."""
    w = weight(process, times)
    term = w * numerics.mean_over(error**2, mask)
    return term, weightings.on_eps(w, space, process, times.t) * times.importance


def bound_weight(process: Process, times: Times) -> Array:
    """The bound's weight on the squared error in eps in continuous time, in bits: 1 / (2 p(lambda)).

    Kingma et al. (2021), VDM, Section 5. The discrete bound's weight tends to it for large T.
    """
    return NATS / 2 / times.log_snr_density(process)


def _bound_aux(process: Process, times: Times, term: Array) -> LossAux:
    return LossAux(times.t, process.log_snr(times.t), bound_weight(process, times) * times.importance, term)


def make_vlb_loss(variance: variational.Variance, levels: int = variational.BYTE) -> Terms:
    """L_vlb (Nichol & Dhariwal 2021, Eq. 4) without the prior term, in bits per dimension, from one L_t per example.

    For the integer times of a DiscreteProcess: E_p[L_t / p(t)], the sum over t for any density. variance: of p(x_{t-1}
    | x_t), as in `variational.reverse_log_variance`. levels: on which the data lie.
    """
    def terms(params: Params, diffusion: Diffusion, x0: Image, cond: Cond, times: Times, keys: Keys,
              noise: Image | None = None, mask: Array | None = None):
        process = diffusion.process
        _, x_t, prediction = draw(diffusion, x0, cond, times.t, keys, noise, mask)
        term = variational.vlb_of_prediction(process, prediction, x0, x_t, times.t, variance, mask=mask,
                                             levels=levels)
        term = term / times.p
        return times.importance * term, _bound_aux(process, times, term)
    return terms


def make_hybrid_loss(variance: variational.Variance, weight: Weight, space: Parameterization = EPS,
                     scale: float = 0.001, levels: int = variational.BYTE) -> Terms:
    """L_simple + scale * L_vlb, where L_vlb trains only the variance: Nichol & Dhariwal (2021), Eq. 16.

    The mean is held fixed in L_vlb. L_simple is the denoising loss with `weight` and `space`; aux is L_simple's, but
    its `term` includes L_vlb.
    """
    denoising, bound = make_denoising_loss(weight, space), make_vlb_loss(variance, levels)

    def terms(params: Params, diffusion: Diffusion, x0: Image, cond: Cond, times: Times, keys: Keys,
              noise: Image | None = None, mask: Array | None = None):
        _, _, prediction = draw(diffusion, x0, cond, times.t, keys, noise, mask)  # one call of the network serves both
        held = jax.lax.stop_gradient(prediction)._replace(variance_fraction=prediction.variance_fraction)
        simple, aux = denoising(params, _answering(diffusion, prediction), x0, cond, times, keys, noise, mask)
        vlb, vlb_aux = bound(params, _answering(diffusion, held), x0, cond, times, keys, noise, mask)
        return simple + scale * vlb, aux._replace(term=aux.term + scale * vlb_aux.term)
    return terms


def _answering(diffusion: Diffusion, prediction: Prediction) -> Diffusion:
    """The diffusion with a denoiser that returns this prediction."""
    return Diffusion(diffusion.process, lambda x_t, t, cond: prediction)


def make_continuous_vlb_loss(*, learned: bool = False, levels: int = variational.BYTE) -> Terms:
    """The variational bound in continuous time, in bits per dimension: Kingma et al. (2021), VDM, Eqs. 3, 11 and 17.

    E_t[-lambda'(t)/(2 p(t)) ||eps - eps_hat||^2] + KL(q(x_1 | x_0) || N(0, prior_std^2)) - E[log p(x_0 | x_{t_min})].
    Requires a process with finite log-SNRs at both ends.

    learned: the process is a LearnedProcess. Its ends, if they are parameters, minimise the bound, which does not
    depend on the interior. The interior minimises the variance of the bound's estimate (VDM, Appendix I.2): with gamma
    = -lambda held fixed, -L^2 log p(gamma) has the gradient of E[L^2], where L is the diffusion term of an example.
    This needs no second network evaluation and adds a gradient but no value to the loss.
    """
    def terms(params: Params, diffusion: Diffusion, x0: Image, cond: Cond, times: Times, keys: Keys,
              noise: Image | None = None, mask: Array | None = None):
        process, t = diffusion.process, times.t
        eps, _, prediction = draw(diffusion, x0, cond, t, numerics.fold_in(keys, 0), noise, mask)
        error = numerics.mean_over((eps - prediction.eps) ** 2, mask)
        diffusion_term = -process.log_rates(t)[1] / (2 * times.p) * error * NATS
        plain = numerics.normal(numerics.fold_in(keys, 1), x0.shape[1:], x0.dtype)
        term = (diffusion_term + variational.prior_term(process, x0, mask)
                + variational.reconstruction_term(process, x0, plain, mask, levels))
        per_example = times.importance * term
        if learned:
            surrogate = -jax.lax.stop_gradient(diffusion_term**2) * process.log_density(t)
            per_example = per_example + surrogate - jax.lax.stop_gradient(surrogate)
        return per_example, _bound_aux(process, times, term)
    return terms


def make_distillation_loss(weight: Weight, space: Parameterization = EPS) -> Loss:
    """E_{t, eps} w ||F_teacher - F_hat||^2 / (H W C) at x_t of the data, F of `space`, with the frozen set "teacher".

    The teacher's prediction is the mean over all x_0 that lead to x_t, so the target has no noise, unlike the data.
    """
    def loss(bind: Bind, inputs: Inputs):
        diffusion, times = bind("online", inputs.keys("dropout")), inputs.times
        process, t = diffusion.process, times.t
        _, x_t, prediction = draw(diffusion, inputs.x0, inputs.cond, t, inputs.keys("loss"), inputs.noise,
                                  inputs.mask)
        teacher = bind("teacher").denoise(x_t, t, inputs.cond)
        error = space.target(process, teacher.x0 - prediction.x0, teacher.eps - prediction.eps, t)
        term, on_eps = _squared(error, inputs.mask, weight, space, process, times)
        return times.importance * term, LossAux(t, process.log_snr(t), on_eps, term)
    return loss


def effective_weight(weight: Weight, density: TimeDensity, process: Process, state: Any = (), *,
                     space: Parameterization = EPS, points: int = 1000) -> dict[str, np.ndarray]:
    """The effective weight w(lambda) p(lambda) of an objective (Kingma & Gao 2023), as a curve over ascending log-SNR.

    {"log_snr": [N], "effective_weight": [N]} for the squared error in eps, where both are finite, N <= points; `weight`
    is for the error in `space`.
    """
    u = jnp.broadcast_to((jnp.arange(points)[:, None] + 0.5) / points, (points, density.uniforms))
    times = density.draw(u, process, state)
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
              uncertainty_normalised: bool = False,  # its layer's weights have the mean square 1, as in their network
              ) -> Loss:
    """The squared error at random times, weighted (Ho et al. 2020, Eq. 14)."""
    require(uncertainty or not uncertainty_normalised, "uncertainty_normalised", uncertainty_normalised, "is about "
            "loss.uncertainty, which is off: turn it on, or leave this out.")
    u = Uncertainty(normalised=uncertainty_normalised) if uncertainty else None
    return of_set(make_denoising_loss(weight, measured_in, u))


def vlb(*, learned_range: bool, levels: int,
        variance: Literal["large", "small"] = "large",  # of p(x_{t-1} | x_t), without learned_range
        ) -> Loss:
    """The variational bound of a chain (Nichol & Dhariwal 2021, Eq. 4)."""
    return of_set(make_vlb_loss("learned_range" if learned_range else variance, levels))


def hybrid(*, weight: Weight, measured_in: Parameterization, levels: int, space: str = "eps", weighting: str = "simple",
           hybrid_scale: float = 1e-3,  # weight of L_vlb (Nichol & Dhariwal 2021, Eq. 16)
           ) -> Loss:
    """The squared error trains the mean, and the bound trains the variance (Nichol & Dhariwal 2021, Eq. 16)."""
    require(hybrid_scale > 0, "hybrid_scale", hybrid_scale, "must be positive.")
    return of_set(make_hybrid_loss("learned_range", weight, measured_in, hybrid_scale, levels))


def continuous_vlb(*, process: Process, levels: int) -> Loss:
    """The variational bound in continuous time, which can also train a learned schedule (Kingma et al. 2021)."""
    return of_set(make_continuous_vlb_loss(learned=process.trained_schedule is not None, levels=levels))


def distillation(*, weight: Weight, measured_in: Parameterization, space: str = "eps", weighting: str = "simple",
                 ) -> Loss:
    """The squared difference to a teacher's prediction (Hinton et al. 2015; Kim et al. 2023, "BK-SDM", L_OutKD)."""
    return make_distillation_loss(weight, measured_in)


LOSSES = {"denoising": denoising, "vlb": vlb, "hybrid": hybrid, "continuous_vlb": continuous_vlb,
          "distillation": distillation}
# Abilities: of_chain, for discrete chains or continuous time; teaches_variance, needs_variance: the second head;
# of_levels: only for data on the levels of a byte; needs_teacher: the frozen set "teacher".
distillation.needs_teacher = True
vlb.of_chain = hybrid.of_chain = True
continuous_vlb.of_chain = False
vlb.teaches_variance = hybrid.teaches_variance = hybrid.needs_variance = True
continuous_vlb.of_trained_schedule = True
vlb.of_levels = hybrid.of_levels = continuous_vlb.of_levels = True
