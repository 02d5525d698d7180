"""Samples of a model, without a config."""
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion.core import grids
from diffusion.core.conditions import complete
from diffusion.core.parameterization import Diffusion
from diffusion.core.processes import Process
from diffusion.errors import DivergedError, require
from diffusion.families import BY_NAME
from diffusion.generate import Sampler, make_sampler
from diffusion.library.model import Model
from diffusion.library.parts import part
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
    require(count >= 1, "count", count, "must be 1 or more.")
    solver = part("solver", solver, steps=times if isinstance(times, int) else len(times))
    steps = steps_of(model.process_of(params), solver, times)
    given = {"label": np.arange(count, dtype=np.int32) % model.num_classes} if model.num_classes else {}
    given = complete(model.conditions, given | dict(cond or {}), count, "The model")
    rows = np.arange(sharding.fill(count, model.mesh), dtype=np.int32)
    sampler = _sampler(_Key(model, solver, transform))
    given = {name: np.resize(value, (len(rows), *value.shape[1:])) for name, value in given.items()}
    x = sampler(params, steps, seed, rows, cond=given).x[:count]
    if not np.isfinite(x).all():
        raise DivergedError(f"{int((~np.isfinite(x)).any(axis=tuple(range(1, x.ndim))).sum())} of {count} samples are "
                            "not finite: were the parameters trained for this model?")
    return x


def steps_of(process: Process, solver: Solver, times: int | Array) -> np.ndarray:
    """The steps [S, 2] of `draw`."""
    if isinstance(times, int):
        finite = np.isfinite(float(process.log_snr(np.float32(process.t_max))))
        times = grid(process, "linspace" if process.discrete else "log_snr" if finite else "uniform", times)
    steps = np.asarray(times)
    if steps.ndim == 2:
        return steps
    return solver.pair_times(steps, process.t_max) if process.discrete else grids.pairs(steps)


def grid(process: Process | str, spacing: Callable | str, steps: int, *, t_min: float | None = None,
         **settings: Any) -> np.ndarray:
    """The decreasing times [S] of a spacing, by name, with its settings: grid("edm", "karras", 18, rho=7.0).

    t_min: the last noisy time of a process in continuous time; None: the process's own end. Raises FieldError for an
    impossible setting.
    """
    process, spacing = part("process", process), _SPACING.member(spacing).make if isinstance(spacing, str) else spacing
    most = process.t_max if process.discrete else np.inf
    require(1 <= steps <= most, "steps", steps, f"must lie in 1 .. {most}.")
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
