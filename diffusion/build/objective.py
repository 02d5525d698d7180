"""The objective of config.loss: what is minimised, at which times, with which weight."""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffusion import config as config_lib
from diffusion.build.models import PREDICTIONS, Model
from diffusion.build.processes import SCHEDULES
from diffusion.build.rules import choose, finite, need
from diffusion.core import losses, time_densities, weightings
from diffusion.core.parameterization import EPS
from diffusion.core.uncertainty import Uncertainty

# Of the squared error in eps; None is 1 on the error in config.loss.space.
WEIGHTINGS = {
    "simple": lambda c: None,
    "snr": lambda c: weightings.snr,
    "truncated_snr": lambda c: weightings.truncated_snr,
    "snr_plus_one": lambda c: weightings.snr_plus_one,
    "min_snr": lambda c: partial(weightings.min_snr, gamma=c.loss.gamma),
    "soft_min_snr": lambda c: partial(weightings.soft_min_snr, gamma=c.loss.gamma),
    "p2": lambda c: partial(weightings.p2, k=c.loss.p2_k, gamma=c.loss.p2_gamma),
    "edm": lambda c: partial(weightings.edm, sigma_data=c.sigma_data),
    "sigmoid": lambda c: partial(weightings.sigmoid, bias=c.loss.bias),
    "clipped_velocity": lambda c: partial(weightings.clipped_velocity, least=c.loss.least_sigma),
    "likelihood": lambda c: weightings.likelihood,
}
PER_LOG_SNR = {"sigmoid", "likelihood"}  # these are of an integral over lambda, whatever the density of the times
DISCRETE_DENSITIES = {
    "uniform": lambda c, steps: time_densities.UniformDiscrete(),
    "importance": lambda c, steps: time_densities.Importance(steps=steps),
}
CONTINUOUS_DENSITIES = {
    "uniform": lambda c: time_densities.Uniform(),
    "log_normal": lambda c: time_densities.LogNormal(mean=c.density_mean, std=c.density_std),
    "logit_normal": lambda c: time_densities.LogitNormal(mean=c.density_mean, std=c.density_std),
    "mode": lambda c: time_densities.Mode(scale=c.mode_scale),
    "cosine_log_snr": lambda c: time_densities.CosineLogSnr(),
}
VARIANCES = {"large", "small"}  # where none is learned
LOSSES = {"denoising", "vlb", "hybrid", "continuous_vlb"}


class Objective(NamedTuple):
    """What is minimised."""
    loss: losses.Loss
    density: time_densities.TimeDensity
    # w(lambda) p(lambda) as `losses.effective_weight` gives it; None where a part of it is learned.
    effective_weight: Callable[[], dict[str, np.ndarray]] | None


def objective(config: ConfigDict, model: Model) -> Objective:
    """The objective of config.loss. Raises ConfigError for what cannot or should not be."""
    config = config_lib.own(config)
    c = config.loss
    check(config)
    discrete = config.process.name in SCHEDULES
    density = (DISCRETE_DENSITIES[c.density](c, config.process.steps) if discrete
               else CONTINUOUS_DENSITIES[c.density](c))
    space = choose(PREDICTIONS, "loss.space", c.space)(config)
    weighting = WEIGHTINGS[c.weighting](config)
    space = weightings.space_of(weighting, space, model.process)
    weight = weightings.in_space(weighting, space, per_log_snr=c.weighting in PER_LOG_SNR)
    variance = "learned_range" if config.learned_range else c.variance
    if c.name == "denoising":
        loss = losses.make_denoising_loss(weight, space, Uncertainty() if c.uncertainty else None)
    elif c.name == "hybrid":
        loss = losses.make_hybrid_loss(variance, weight, space, c.hybrid_scale)
    else:
        weight, space = losses.bound_weight, EPS
        loss = (losses.make_vlb_loss(variance) if c.name == "vlb"
                else losses.make_continuous_vlb_loss(learned=config.process.name == "learned"))
    learned = c.uncertainty or config.process.name == "learned"
    return Objective(loss, density, None if learned else partial(
        losses.effective_weight, weight, density, model.process, density.init(), space=space))


def check(config: ConfigDict) -> None:
    """The rules between keys, each with its reason and source."""
    c, process = config.loss, config.process.name
    discrete = process in SCHEDULES
    finite(c, "loss")
    choose(LOSSES, "loss.name", c.name)
    choose(VARIANCES, "loss.variance", c.variance)
    choose(WEIGHTINGS, "loss.weighting", c.weighting)
    choose(set(DISCRETE_DENSITIES) | set(CONTINUOUS_DENSITIES), "loss.density", c.density)
    if discrete:
        need(c.density in DISCRETE_DENSITIES, "loss.density", c.density, f"draws real times, and process.name = "
             f"{process!r} has the whole ones 1 .. {config.process.steps}. Use {' or '.join(DISCRETE_DENSITIES)}.")
    else:
        need(c.density in CONTINUOUS_DENSITIES, "loss.density", c.density, "keeps the last losses of each of T times "
             f"(Nichol & Dhariwal 2021, Section 3.3), and process.name = {process!r} is in continuous time. Use one "
             f"of: {', '.join(CONTINUOUS_DENSITIES)}.")
    need(c.name in ("vlb", "hybrid") or not config.learned_range, "learned_range", True, "the variance head has no "
         f"gradient from loss.name = {c.name!r}: use hybrid or vlb (Nichol & Dhariwal 2021, Section 3.1 and Eq. 16).")
    need(c.name != "hybrid" or config.learned_range, "loss.name", c.name, "adds L_vlb to learn the variance (Nichol & "
         "Dhariwal 2021, Eq. 16), but learned_range is off: L_vlb's part would change nothing.")
    need(c.name not in ("vlb", "hybrid") or discrete, "loss.name", c.name, f"is the sum over the T steps of a discrete "
         f"chain, and process.name = {process!r} is in continuous time: use continuous_vlb.")
    need(c.name != "continuous_vlb" or not discrete, "loss.name", c.name, f"needs a process in continuous time, and "
         f"process.name = {process!r} is a table: use vlb.")
    need(c.name in ("denoising", "hybrid") or c.weighting == "simple", "loss.weighting", c.weighting,
         f"loss.name = {c.name!r} has its own weights: leave simple.")
    need(c.name == "denoising" or not c.uncertainty, "loss.uncertainty", True, "divides the denoising loss by what it "
         f"is at each noise level (Karras et al. 2024, Eq. 21), and loss.name is {c.name!r}.")
    need(process != "learned" or c.name == "continuous_vlb", "process.name", process, "only the variational bound is "
         "the same for all schedules between its ends, so that one can be learned (Kingma et al. 2021, Section 5.1): "
         "use loss.name=continuous_vlb.")
    for key in ("gamma", "p2_k", "p2_gamma", "density_std", "hybrid_scale", "least_sigma"):
        need(c[key] > 0, f"loss.{key}", c[key], "must be positive.")
    need(-1 <= c.mode_scale <= 2 / (3.141592653589793 - 2), "loss.mode_scale", c.mode_scale, "must lie in [-1, 1.75], "
         "else the times do not rise with u (Esser et al. 2024, Eq. 20).")
