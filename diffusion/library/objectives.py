"""Objectives by name: a loss, the density of its times, and how data and noise are paired."""
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion.core import time_densities, weightings
from diffusion.core.losses import Loss, bound_weight
from diffusion.core.parameterization import EPS
from diffusion.families import BY_NAME
from diffusion.library.model import Model
from diffusion.library.parts import part
from diffusion.train.couplings import Coupling
from diffusion.train.updates import Update


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What `fit` minimises. loss: of the online set, or the updates of several sets."""
    loss: Loss | Sequence[Update]
    density: time_densities.TimeDensity
    coupling: Coupling | None = None
    stratified: bool = False  # times spread evenly over each batch


def objective(model: Model, loss: Loss | Sequence[Update] | str = "denoising", *,
              density: time_densities.TimeDensity | str = "uniform", coupling: Coupling | str = "independent",
              stratified: bool = False, weighting: Callable | str = "simple", space: Any = "eps",
              **settings: Any) -> Objective:
    """The objective of these members with their settings, such as objective(model, weighting="edm", space="x0",
    density="log_normal", density_mean=-1.2). Raises FieldError for a setting that none of them has or that one refuses,
    ConfigError for an unknown name.

    weighting: of the squared error of `space`, for losses that have one (`core/weightings.py`).
    """
    common = {"process": model.process, "sigma_data": model.sigma_data}
    owners = {family: {*BY_NAME[family].member(chosen).keys, *BY_NAME[family].member(chosen).given}
              for family, chosen in (("loss", loss), ("density", density), ("coupling", coupling),
                                     ("weighting", weighting)) if isinstance(chosen, str)}
    of = lambda family: {k: v for k, v in settings.items() if k in owners.get(family, ())}  # noqa: E731
    left = {k: v for k, v in settings.items() if not any(k in names for names in owners.values())}
    if isinstance(loss, str):
        member = BY_NAME["loss"].member(loss)
        weight, measured_in = bound_weight, EPS
        if "weighting" in member.keys:
            weight, measured_in = _weight(model, weighting, space, of("weighting"))
        loss = part("loss", loss, **of("loss"), **left, **{k: v for k, v in {
            "weight": weight, "measured_in": measured_in, "learned_range": model.learned_range, **common}.items()
            if k in member.given})
    elif left:
        part("density", density, **left)  # raises the error for the first of them
    return Objective(loss=loss, density=part("density", density, **of("density"), **common), stratified=stratified,
                     coupling=part("coupling", coupling, **of("coupling")))


def _weight(model: Model, weighting: Callable | str, space: Any, settings: dict[str, Any]) -> tuple[Callable, Any]:
    """The weight on the squared error, and the space in which it is measured."""
    space, per_log_snr = part("prediction", space, sigma_data=model.sigma_data), False
    if isinstance(weighting, str):
        member = BY_NAME["weighting"].member(weighting)
        weighting = member.make
        if not member.constant:
            per_log_snr = getattr(member.make, "per_log_snr", False)
            given = {"sigma_data": model.sigma_data} if "sigma_data" in member.given else {}
            weighting = functools.partial(member.make, **settings, **given)
    space = weightings.space_of(weighting, space, model.process)
    return weightings.in_space(weighting, space, per_log_snr=per_log_snr), space
