"""Objectives by name: a loss, the density of its times, and how data and noise are paired."""
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion.config_values import nearest
from diffusion.core import time_densities, weightings
from diffusion.core.losses import Loss, bound_weight
from diffusion.core.parameterization import EPS
from diffusion.core.variational import BYTE
from diffusion.errors import require
from diffusion.families import BY_NAME
from diffusion.library.model import Model
from diffusion.library.parts import COMMON, part
from diffusion.train.couplings import Coupling
from diffusion.train.updates import Update

_PARTS = ("loss", "density", "coupling", "stratified", "weighting", "space")


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
    and for a loss or a density that does not fit the model; ConfigError for an unknown name.

    weighting: of the squared error of `space`, for losses that have one (`core/weightings.py`).
    """
    common = {"process": model.process, "sigma_data": model.sigma_data}
    owners = {family: {*BY_NAME[family].member(chosen).keys, *BY_NAME[family].member(chosen).given}
              for family, chosen in (("loss", loss), ("density", density), ("coupling", coupling),
                                     ("weighting", weighting)) if isinstance(chosen, str)}
    of = lambda family: {k: v for k, v in settings.items() if k in owners.get(family, ())}  # noqa: E731
    for name, value in settings.items():
        known = {key for names in owners.values() for key in names} - COMMON
        require(name in known, name, value, f"is not a setting of these parts.{nearest(name, [*known, *_PARTS])} They "
                f"have: {', '.join(sorted(known)) or 'none'}.")
    if isinstance(loss, str):
        member = BY_NAME["loss"].member(loss)
        _check_loss(model, loss, member.make)
        weight, measured_in = bound_weight, EPS
        if "weighting" in member.keys:
            weight, measured_in = _weight(model, weighting, space, of("weighting"))
        loss = part("loss", loss, **of("loss"), **{k: v for k, v in {
            "weight": weight, "measured_in": measured_in, "learned_range": model.learned_range,
            "levels": model.spec.levels if model.spec else BYTE, **common}.items()
            if k in member.given})
    made, discrete = part("density", density, **of("density"), **common), model.process.discrete
    require(made.of_chain in (None, discrete), "density", density, "draws real times, but the process is a discrete "
            "chain: use uniform or importance." if discrete else "draws the whole times of a discrete chain, but the "
            "process is in continuous time: use uniform or log_normal.")
    return Objective(loss=loss, density=made, stratified=stratified, coupling=part("coupling", coupling,
                                                                                   **of("coupling")))


def _check_loss(model: Model, name: str, member: Any) -> None:
    """The rules of `build.objective.check_loss`, for a model without a config. Raises FieldError."""
    ability = lambda name: getattr(member, name, None)  # noqa: E731
    require(ability("of_chain") in (None, model.process.discrete), "loss", name, "needs a process in continuous time: "
            "use vlb." if model.process.discrete else "is the sum over the steps of a discrete chain, but the process "
            "is in continuous time: use continuous_vlb.")
    require(not ability("needs_variance") or model.learned_range, "loss", name, "learns the variance (Nichol & "
            "Dhariwal 2021, Eq. 16): the model needs learned_range=True.")
    require(ability("teaches_variance") or not model.learned_range, "loss", name, "gives the model's variance head "
            "(learned_range=True) no gradient: use hybrid or vlb.")
    require(model.process.trained_schedule is None or ability("of_trained_schedule"), "loss", name, "is not the same "
            "for all schedules, so that it cannot train one (Kingma et al. 2021, Section 5.1): use continuous_vlb.")
    require(not ability("of_levels") or model.spec is None or model.spec.levels is not None, "loss", name, "has the "
            "probability of a level of a byte in it, but the data are real numbers: use denoising.")


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
