"""Builds the objective of config.loss: the loss, its times and its weights."""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffusion.build.kinds import spec
from diffusion.build.rules import require_finite, require_key
from diffusion.core import losses, time_densities, weightings
from diffusion.core.parameterization import EPS, Parameterization
from diffusion.core.processes import Process
from diffusion.families import BY_NAME, naming_keys

_LOSS, _WEIGHTING, _DENSITY, _PREDICTION = (BY_NAME[name] for name in ("loss", "weighting", "density", "prediction"))


class Objective(NamedTuple):
    """What is minimised."""
    loss: losses.Loss
    density: time_densities.TimeDensity
    # w(lambda) p(lambda), see `losses.effective_weight`; None if a part of it is learned.
    effective_weight: Callable[[], dict[str, np.ndarray]] | None


def prediction(config: ConfigDict) -> Parameterization:
    """The parameterization that config.prediction names."""
    return _PREDICTION.make(config, sigma_data=config.sigma_data)


def objective(config: ConfigDict, process: Process) -> Objective:
    """The objective of config.loss. Raises ConfigError for combinations that cannot or should not run."""
    c = config.loss
    require_finite(c, "loss")
    check_loss(config, process)
    density = check_density(config, process)
    weight, space = losses.bound_weight, EPS
    if "weighting" in c:
        space = check_space(config, process)
        weighting = _WEIGHTING.bound(c, sigma_data=config.sigma_data)
        if weighting is not None:
            with naming_keys("loss."):
                weighting(np.float64(0.5), np.float64(0.5))  # raises if its keys are wrong
        space = weightings.space_of(weighting, space, process)
        per_log_snr = getattr(_WEIGHTING.member(c.weighting).make, "per_log_snr", False)
        weight = weightings.in_space(weighting, space, per_log_snr=per_log_snr)
    loss = _LOSS.make(c, weight=weight, measured_in=space, learned_range=config.learned_range, process=process,
                      levels=spec(config).levels)
    learned = c.get("uncertainty", False) or process.trained_schedule is not None
    return Objective(loss, density, None if learned else partial(
        losses.effective_weight, weight, density, process, density.init(), space=space))


def check_loss(config: ConfigDict, process: Process) -> None:
    """Checks the rules between loss, process and variance, each with its reason and source."""
    c, name = config.loss, config.process.name
    loss = _LOSS.member(c.name).make
    require_key(getattr(loss, "teaches_variance", False) or not config.learned_range, "learned_range", True, "the "
                f"variance head has no gradient from loss.name = {c.name!r}: use hybrid or vlb (Nichol & Dhariwal "
                "2021, Section 3.1 and Eq. 16).")
    require_key(not getattr(loss, "needs_variance", False) or config.learned_range, "loss.name", c.name, "adds L_vlb "
                "to learn the variance (Nichol & Dhariwal 2021, Eq. 16), but learned_range is off: L_vlb's part would "
                "change nothing.")
    require_key(spec(config).levels is not None or not getattr(loss, "of_levels", False), "loss.name", c.name, "has "
                f"the probability of a level of a byte in it, but data.kind = {config.data.kind!r} is of real numbers: "
                "use denoising.")
    taught = getattr(loss, "needs_teacher", False)
    require_key(bool(config.teacher.source) == taught, "teacher.source", config.teacher.source, "names no teacher, but "
                f"loss.name = {c.name!r} follows one: give a run folder or another model." if taught else
                f"is not read by loss.name = {c.name!r}: use loss.name=distillation, or leave it empty.")
    of_chain = getattr(loss, "of_chain", None)
    require_key(of_chain is not True or process.discrete, "loss.name", c.name, "is the sum over the T steps of a "
                f"discrete chain, but process.name = {name!r} is in continuous time: use continuous_vlb.")
    require_key(of_chain is not False or not process.discrete, "loss.name", c.name, "needs a process in continuous "
                f"time, but process.name = {name!r} is a table: use vlb.")
    require_key(process.trained_schedule is None or getattr(loss, "of_trained_schedule", False), "process.name", name,
                "only the variational bound is the same for all schedules with given ends, so that one can be learned "
                "(Kingma et al. 2021, Section 5.1): use loss.name=continuous_vlb.")


def check_density(config: ConfigDict, process: Process) -> time_densities.TimeDensity:
    """The time density of config.loss. Raises ConfigError if it draws times that the process does not have."""
    c, name = config.loss, config.process.name
    density = _DENSITY.make(c, process=process)
    require_key(density.of_chain is not False or not process.discrete, "loss.density", c.density, "draws real times, "
                f"but process.name = {name!r} has whole times 1 .. {process.t_max}. Use uniform or importance.")
    require_key(density.of_chain is not True or process.discrete, "loss.density", c.density, "keeps the last losses of "
                f"each of T times (Nichol & Dhariwal 2021, Section 3.3), but process.name = {name!r} is in continuous "
                "time. Use one of: uniform, log_normal, logit_normal, mode, cosine_log_snr.")
    return density


def check_space(config: ConfigDict, process: Process) -> Parameterization:
    """The space in which config.loss measures the error."""
    c = config.loss
    space = _PREDICTION.make(c, c.space, key="loss.space", sigma_data=config.sigma_data)
    require_key(not space.both, "loss.space", c.space, "has two numbers for each data value: measure in eps or x0.")
    check_steps(space, process, "loss.space", config)
    return space


def check_prediction(config: ConfigDict, process: Process) -> Parameterization:
    """The network's prediction. Raises ConfigError if it carries no information at some time of the process."""
    found = prediction(config)
    cause = ("process.zero_terminal_snr" if config.process.get("zero_terminal_snr", False) else
             f"process.name = {config.process.name!r}")
    require_key(found.at_pure_noise or np.isfinite(float(process.log_snr(process.t_max))), "prediction",
                config.prediction, f"cannot work: with {cause} x contains no data at the last time, and the noise "
                "determines none either. Predict v, velocity or x0 (Lin et al. 2024, Section 3.1).")
    check_steps(found, process, "prediction", config)
    require_key(config.sigma_data > 0, "sigma_data", config.sigma_data, "must be positive (Karras et al. 2022: 0.5).")
    return found


def check_steps(found: Parameterization, process: Process, key: str, config: ConfigDict) -> None:
    """Checks that a prediction about the step from t to t - 1 is used with a process that has such steps."""
    name = config.prediction if key == "prediction" else config.loss.space
    require_key(not found.of_steps or process.discrete, key, name, "is the mean of x_{t-1} given x_t and x_0 (Ho et "
                f"al. 2020, Section 3.2), but process.name={config.process.name} has no such step: use a table.")
