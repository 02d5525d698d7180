"""Samples of a model, without a config."""
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffusion.core import grids
from diffusion.core.conditions import complete
from diffusion.core.parameterization import Diffusion
from diffusion.core.processes import Process
from diffusion.errors import DivergedError, FieldError, require, shown
from diffusion.families import BY_NAME
from diffusion.generate import Sampler, make_sampler
from diffusion.library.arguments import check_conditions, check_params, whole
from diffusion.library.model import Model
from diffusion.library.parts import check_settings, part
from diffusion.parallel import sharding
from diffusion.samplers.base import Solver
from diffusion.typing import Array, Cond, Params


def _unchanged(diffusion: Diffusion) -> Diffusion:
    return diffusion


def draw(model: Model, params: Params, *, solver: Solver | str = "ddim", times: int | Array = 50, count: int,
         seed: int = 0, cond: Cond | None = None,
         transform: Callable[[Diffusion], Diffusion] = _unchanged) -> np.ndarray:
    """Draws `count` samples x_0, float32 [count, *model.shape].

    Args:
      params: a parameter set, such as state.averages["ema"].
      solver: a solver or the name of one, with its default settings.
      times: decreasing times [S], such as those of `grid`, or steps [S, 2]; or the number of steps, spread evenly over
        the whole times of a chain, over the log-SNR of other processes.
      seed: sample i is a function of seed and i only. cond: the conditions by name, each [count, ...]; by default the
        classes in turn, and the others' defaults.
      transform: of the Diffusion, such as clipping or guidance: lambda d: clip_x0(d).

    Compiles once for a model, solver, transform and count. Raises FieldError for impossible arguments, DivergedError if
    a sample is not finite.
    """
    require(isinstance(model, Model), "model", model, "must be a diffusion.Model.")
    count, seed, times = whole("count", count, 1, 2**31), whole("seed", seed, 0, 2**32), _checked(times)
    require(callable(transform), "transform", transform, "is a function Diffusion -> Diffusion.")
    check_params("params", params, model)
    solver = part("solver", solver, steps=times if isinstance(times, int) else len(times))
    require(isinstance(solver, Solver), "solver", solver, "must be a solver, such as Heun(), or the name of one.")
    steps = steps_of(model.process_of(params), solver, times)
    given = {"label": np.arange(count, dtype=np.int32) % model.num_classes} if "label" in model.conditions else {}
    cond = {} if cond is None else cond
    given = complete(model.conditions, given | cond if isinstance(cond, Mapping) else cond, count, "the model")
    check_conditions(given, model)
    rows = np.arange(sharding.fill(count, model.mesh), dtype=np.int32)
    sampler = _sampler(_Key(model, solver, transform))
    given = {name: np.resize(value, (len(rows), *value.shape[1:])) for name, value in given.items()}
    transformed = transform(model.denoiser(params))
    require(isinstance(transformed, Diffusion), "transform", transform, "must return a Diffusion, but it returned "
            f"{shown(transformed)}.")
    x = sampler(params, steps, seed, rows, cond=given).x[:count]
    if not np.isfinite(x).all():
        raise DivergedError(f"{int((~np.isfinite(x)).any(axis=tuple(range(1, x.ndim))).sum())} of {count} samples are "
                            "not finite: were the parameters trained for this model?")
    return x


def _checked(times: Any) -> int | np.ndarray:
    """A number of steps, or an array of times [S] or steps [S, 2]. Raises FieldError for anything else."""
    rule = "is a number of steps, decreasing times [S], or steps [S, 2]."
    try:
        found = np.asarray(times)
    except ValueError as error:
        raise FieldError("times", times, rule) from error
    require(found.dtype.kind in "iuf" and found.size, "times", times, rule)
    if found.ndim == 0:
        return whole("times", times, 1)
    require(found.ndim == 1 or found.ndim == 2 and found.shape[1] == 2, "times", times, rule)
    require(np.isfinite(found).all(), "times", times, "must be finite.")
    return found


def steps_of(process: Process, solver: Solver, times: int | Array) -> np.ndarray:
    """The steps [S, 2] of `draw`."""
    if isinstance(times, int):
        finite = np.isfinite(float(process.log_snr(np.float32(process.t_max))))
        times = grid(process, "linspace" if process.discrete else "log_snr" if finite else "uniform", times)
    steps, rule = np.asarray(times), f"must lie within the process's times, above 0 and up to {process.t_max:g}."
    if steps.ndim == 2:
        require((steps[:, 0] > 0).all() and (steps[:, 1] >= 0).all() and (steps <= process.t_max).all(), "times",
                times, rule)
        return steps
    require((np.diff(steps) < 0).all(), "times", times, "must decrease, from noise to data.")
    require(steps[-1] > 0 and steps[0] <= process.t_max, "times", times, rule + " The step to the data, 0, is added.")
    return solver.pair_times(steps, process.t_max) if process.discrete else grids.pairs(steps)


def grid(process: Process | str, spacing: Callable | str, steps: int, *, t_min: float | None = None,
         **settings: Any) -> np.ndarray:
    """The decreasing times [S] of a spacing, by name, with its settings: grid("edm", "karras", 18, rho=7.0).

    t_min: the last noisy time of a process in continuous time; None: the process's own end. Raises FieldError for an
    impossible setting.
    """
    process, steps = part("process", process), whole("steps", steps, 1)
    if isinstance(spacing, str):
        member = _SPACING.member(spacing)
        check_settings("spacing", member, settings)
        spacing = member.make
    require(not process.discrete or steps <= process.t_max, "steps", steps, f"must lie in 1 .. {process.t_max}.")
    require(t_min is None or 0 < t_min < process.t_max, "t_min", t_min, f"must lie between 0 and {process.t_max:g}.")
    if getattr(spacing, "of_chain", False):
        require(process.discrete, "spacing", spacing.__name__, "counts the whole times of a discrete chain, but the "
                "process is in continuous time.")
        return spacing(process.t_max, steps, **settings)
    return spacing(process, steps, t_min=grids.usual_end(process) if t_min is None else t_min, **settings)


_SPACING = BY_NAME["spacing"]


class _Key:
    """Compares a model by identity, and the solver and the transform by value."""

    def __init__(self, model: Model, *others: Any):
        self.model, self.others = model, others

    def __hash__(self) -> int:
        return hash((id(self.model), self.others))

    def __eq__(self, other: Any) -> bool:
        return self.model is other.model and self.others == other.others


@functools.lru_cache(maxsize=16)
def _sampler(key: _Key) -> Sampler:
    model, (solver, transform) = key.model, key.others
    return make_sampler(lambda params, inputs: (solver, transform(model.denoiser(params))), model.shape, model.mesh,
                        solver.evaluations)
