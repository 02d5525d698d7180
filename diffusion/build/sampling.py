"""Builds the sampler and the time grid of config.sample."""
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion.build.conditions import ConditionsOf, complete_for, needs_records
from diffusion.build.guidance import check_guidance, classes, guide
from diffusion.build.kinds import clips
from diffusion.build.models import Model
from diffusion.build.networks import check_times
from diffusion.build.rules import require_key
from diffusion.build.training import training_images
from diffusion.core import grids, parameterization, processes
from diffusion.data.sources import gather_examples
from diffusion.families import BY_NAME, naming_keys
from diffusion.generate import Generate, Sampler, make_generate, make_sampler
from diffusion.parallel import sharding
from diffusion.samplers.base import Solver
from diffusion.typing import Cond, Params

_SOLVER, _CORRECTOR, _SPACING, _SCHEDULE = (BY_NAME[name] for name in ("solver", "corrector", "spacing", "schedule"))


def solver(c: ConfigDict) -> Solver:
    """The solver of config.sample, with its corrector. Raises ConfigError for a setting that does not fit."""
    require_key(c.steps >= 1, "sample.steps", c.steps, "must be 1 or more.")
    found = _SOLVER.make(c, steps=c.steps)
    corrected = _CORRECTOR.make(c, predictor=found)
    if corrected is found:
        return found
    require_key(found.correctable, "sample.corrector", c.corrector, "moves x off the path that sample.solver = "
                f"{c.solver!r} follows: correct a solver without memory, such as ancestral, ddim or reverse_diffusion "
                "(Song et al. 2021, Algorithms 2-3).")
    require_key(c.rederive_eps or c.clip is False and not c.dynamic_threshold, "sample.corrector", c.corrector, "needs "
                "a score, and with rederive_eps=False the eps does not match the clipped x_0.")
    return corrected


def sampling_process(c: ConfigDict, proc: processes.Process) -> processes.Process:
    """The process that config.sample follows: the model's, or one with another schedule and scaling over the model's
    noise levels (Karras et al. 2022, Section 3)."""
    if _SCHEDULE.member(c.schedule).make is None:
        return proc
    require_key(not proc.discrete or c.between_times, "sample.schedule", c.schedule, "uses times between the "
                f"{proc.t_max} whole times that this discrete model was trained at: sample along its own schedule, "
                "or say sample.between_times=True.")
    trained = proc.trained_schedule
    require_key(trained is None or not trained.learned_ends, "sample.schedule", c.schedule, "lies between the model's "
                "ends, which this model learns: sample along its own, model.")
    for key in ("sigma_min", "sigma_max"):
        require_key(c[key] > 0 or c[key] == -1, f"sample.{key}", c[key], "must be positive, or -1 for the model's own.")
    least, most = grids.noise_levels(proc)
    with jax.enable_x64(True):
        end = float(proc.noise_level(np.float64(grids.usual_end(proc))))
    # Within the network's noise levels, as in EDM's code; build/advice.py prints a note.
    low, high = max(c.sigma_min, least) if c.sigma_min > 0 else end, min(c.sigma_max, most) if c.sigma_max > 0 else most
    require_key(np.isfinite(high), "sample.sigma_max", c.sigma_max, "must be given: at the last time of the model's "
                "process no data is left, and the noise level is infinite (Karras et al. 2022: 80).")
    require_key(low < high, "sample.sigma_min", low, f"must be below sample.sigma_max = {high!r}: noise levels.")
    return _SCHEDULE.make(c, low=low, high=high)


def check_sampling(config: ConfigDict) -> Solver:
    """Checks the solver and the rules between keys of config.sample, except the time grid."""
    c, key = config.sample, "sample.variance"
    require_key(c.get("variance", "") != "learned_range" or config.learned_range, key, c.get("variance"),
                "needs a network with a head for the variance: config.learned_range.")
    clips(config)
    require_key(c.clip_range > 0, "sample.clip_range", c.clip_range, "must be positive: data lie in [-1, 1].")
    require_key(0 <= c.dynamic_threshold < 1, "sample.dynamic_threshold", c.dynamic_threshold,
                "is a quantile in (0, 1), or 0 for none (Saharia et al. 2022: 0.995).")
    require_key(0 <= c.least_noise < 1, "sample.least_noise", c.least_noise, "is a share of noise below 1; 0 for none "
                "(Li & He 2025: 0.05).")
    require_key(not c.least_noise or config.process.name == "flow", "sample.least_noise", c.least_noise, "is of the "
                f"velocity of the process flow, but process.name = {config.process.name!r}: set it to 0.")
    require_key(c.threshold_max >= 1, "sample.threshold_max", c.threshold_max, "must be 1 or more.")
    require_key(c.preview >= 1, "sample.preview", c.preview, "must be positive.")
    check_guidance(config)
    return solver(c)


def sampler(config: ConfigDict, model: Model, wrap: Callable | None = None) -> Sampler:
    """The sampler of config.sample, with guidance, without its time grid.

    `wrap(solver, chain_inputs)` puts a task's solver around the config's. chain_inputs["scale"] replaces the scale of
    guidance.
    """
    c, clip = config.sample, clips(config)
    check_times(model.network, model.process, between_times=c.between_times)
    one_step, guided = check_sampling(config), guide(config, model)
    target = sampling_process(c, model.process)

    def clipped(diffusion):
        if c.least_noise:
            diffusion = parameterization.least_noise(diffusion, c.least_noise)
        if c.dynamic_threshold:
            return parameterization.dynamic_threshold(diffusion, c.dynamic_threshold, c.threshold_max,
                                                      rederive_eps=c.rederive_eps)
        return parameterization.clip_x0(diffusion, c.clip_range, rederive_eps=c.rederive_eps) if clip else diffusion

    def chain(params, chain_inputs):
        inner, diffusion = one_step, model.denoiser(params)
        if target is not model.process:
            diffusion = parameterization.on_process(diffusion, target)
        if guided and guided.momentum:
            inner = guided.solver(inner, params, chain_inputs, clipped)
        elif guided:
            diffusion = clipped(guided.diffusion(diffusion, params, chain_inputs))
        else:
            diffusion = clipped(diffusion)
        return wrap(inner, chain_inputs) if wrap else inner, diffusion

    return make_sampler(chain, model.shape, model.mesh, (wrap(one_step, {}) if wrap else one_step).evaluations,
                        complete_for(config, model.conditions))


def grid(c: ConfigDict, proc: processes.Process) -> np.ndarray:
    """The steps of config.sample [S, 2], each from one time to the next: int32 for a discrete chain's own times, else
    float32."""
    proc, spacing = sampling_process(c, proc), _SPACING.member(c.spacing).make
    found = _SOLVER.make(c, steps=max(c.steps, 1))
    if getattr(spacing, "of_chain", False):
        others = [name for name, other in _SPACING.members().items() if not getattr(other.make, "of_chain", False)]
        require_key(proc.discrete, "sample.spacing", c.spacing, "counts the whole times of a discrete chain, but the "
                    f"model's process is in continuous time. Use one of: {', '.join(others)}.")
        return chain_grid(c, proc, found)
    times = continuous_times(c, proc, found)
    whole = np.issubdtype(times.dtype, np.integer)
    require_key(whole or not proc.discrete or c.between_times, "sample.spacing", c.spacing, "has times between the "
                f"{proc.t_max} whole times that this discrete model was trained at. Use linspace, leading "
                "or trailing, or set sample.between_times=True: the network interpolates (Lu et al. 2022, DPM-Solver, "
                "Section 3.4).")
    if not whole:
        check_first_step(c, proc, found, times[0])
    return grids.pairs(times)


def chain_grid(c: ConfigDict, proc: processes.Process, found: Solver) -> np.ndarray:
    """The steps [S, 2] of a grid of the chain's whole times."""
    most = proc.t_max - getattr(_SPACING.member(c.spacing).make, "leaves_one_out", False)
    require_key(1 <= c.steps <= most, "sample.steps", c.steps, f"must lie in 1 .. {most}: the model has the "
                f"{proc.t_max} times of config.process.steps"
                f"{', and an open grid leaves one out' if most < proc.t_max else ''}.")
    with naming_keys("sample."):
        times = _SPACING.bound(c)(proc.t_max, c.steps)
    check_first_step(c, proc, found, times[0])
    require_key(not found.between_times or c.between_times, "sample.solver", c.solver, "uses times between the "
                f"{proc.t_max} whole times that this model was trained at. Use another solver, or set "
                "sample.between_times=True: the network interpolates (Lu et al. 2022, DPM-Solver, Section 3.4).")
    return found.pair_times(times, proc.t_max)


def continuous_times(c: ConfigDict, proc: processes.Process, found: Solver) -> np.ndarray:
    """The decreasing times [S] of a spacing in continuous time."""
    require_key(c.steps >= 1, "sample.steps", c.steps, "must be 1 or more.")
    spacing, given = _SPACING.bound(c), {}
    if "t_min" in c:
        t_min = grids.usual_end(proc) if c.t_min < 0 else c.t_min
        if c.t_min < 0 and c.spacing == "uniform" and proc.equal_steps_to_data and not found.adaptive:
            t_min = max(t_min, proc.t_max / max(c.steps, 2))
        require_key(0 < t_min < proc.t_max and t_min >= proc.t_min, "sample.t_min", c.t_min, f"must lie in "
                    f"[{proc.t_min:g}, {proc.t_max:g}), the trained times, or be -1 for the usual end.")
        given = {"t_min": t_min}
    with jax.enable_x64(True):
        all_noise = not np.isfinite(float(proc.noise_level(np.float64(proc.t_max))))
    require_key(not (all_noise and getattr(_SPACING.member(c.spacing).make, "of_levels", False)), "sample.spacing",
                c.spacing, f"spaces noise levels, but at t = {proc.t_max:g} no data is left: the level is "
                "infinite. Use uniform or quadratic.")
    with naming_keys("sample."):
        return spacing(proc, c.steps, **given)


def check_first_step(c: ConfigDict, proc: processes.Process, found: Solver, first: float) -> None:
    """Checks that the solver can start at the time `first`."""
    with jax.enable_x64(True):
        level = float(proc.noise_level(first if isinstance(first, np.integer) else np.float64(first)))
    all_noise = not np.isfinite(level)
    require_key(not all_noise or found.from_pure_noise, "sample.solver", c.solver, f"starts at t = {first:g}, where "
                "no data is left and the reverse SDE's drift is infinite: use ancestral, or ddim with eta, "
                "or sample.spacing=times from a little below.")
    require_key(all_noise or level < found.largest_level, "sample.solver", c.solver, "extrapolates eps, and starts at "
                f"the noise level {level:.3g}, where x_0 has {level:.3g} times the error of eps: use "
                "dpm_solver++m, deis or lms.")


def grid_of(config: ConfigDict, model: Model) -> Callable[[Params], np.ndarray]:
    """The `grid` as a function of the parameters, on which a learned schedule depends. Raises errors at once."""
    found = grid(config.sample, model.process)
    if model.process.trained_schedule is None:
        return lambda params: found
    return lambda params: grid(config.sample, model.process_of(params))


def generate(config: ConfigDict, model: Model, chosen: Sequence[int] | None = None) -> Generate:
    """A function that draws with the sampler and grid of config.sample, of all classes or the `chosen` ones in turn."""
    c = config.sample
    check_sample_batch(c, model)
    return make_generate(sampler(config, model), grid_of(config, model), batch_size=c.batch_size,
                         bounds=model.spec.bounds, conditions=conditions(config, model, chosen))


def conditions(config: ConfigDict, model: Model, chosen: Sequence[int] | None = None) -> ConditionsOf:
    """The conditions of samples, as a function of their indices [B], for every program that draws: all classes or the
    `chosen` ones in turn; if the network takes other conditions without default, those of config.data's records in
    order. Raises ConfigError for a class that the model does not have, and the errors of opening the data."""
    found = classes(config, model, chosen)
    if not (needed := needs_records(model.conditions)):
        return lambda indices: {} if found is None else {"label": found[indices % len(found)]}
    require_key(chosen is None, "network.name", config.network.name, "takes conditions of the data's records "
                f"({', '.join(needed)}), so that classes cannot be chosen.")
    source = training_images(config)

    def of_records(indices: np.ndarray) -> Cond:
        record = gather_examples(source, indices % len(source))
        return {name: record[name] for name in model.conditions if name in record}
    return of_records


def titles(config: ConfigDict, model: Model, count: int, chosen: Sequence[int] | None = None) -> tuple[str, ...]:
    """A text for each of the first `count` samples, their class; () for a model without classes."""
    found = classes(config, model, chosen)
    return () if found is None else tuple(f"class {found[i % len(found)]}" for i in range(count))


def check_sample_batch(c: ConfigDict, model: Model) -> None:
    """Raises ConfigError unless the devices can share config.sample.batch_size."""
    shards = sharding.batch_shards(model.mesh)
    require_key(c.batch_size >= 1 and c.batch_size % shards == 0, "sample.batch_size", c.batch_size,
                f"must be a positive multiple of {shards}, the devices that share it (mesh.data x mesh.fsdp).")
