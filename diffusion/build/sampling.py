"""The sampler and time grid of config.sample."""
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion.build.guidance import classes, guide
from diffusion.build.models import Model, check_times
from diffusion.build.processes import noise_levels
from diffusion.build.rules import choose, need
from diffusion.core import grids, parameterization, processes
from diffusion.core.learned_schedule import LearnedProcess
from diffusion.core.schedule_scaling import ScheduleScaling
from diffusion.core.variational import Variance
from diffusion.generate import Generate, Sampler, make_generate, make_sampler
from diffusion.samplers.adaptive import AdaptiveODE
from diffusion.samplers.adaptive_sde import AdaptiveSDE
from diffusion.samplers.ancestral import Ancestral
from diffusion.samplers.base import Solver
from diffusion.samplers.consistency import Consistency
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.deis import DEIS
from diffusion.samplers.dpm_multistep import DPMSolverMultistep
from diffusion.samplers.dpm_solver import DPMSolver
from diffusion.samplers.heun import Heun
from diffusion.samplers.lms import LMS
from diffusion.samplers.pndm import PNDM
from diffusion.samplers.sa_solver import SASolver
from diffusion.samplers.sde import EulerMaruyama, PredictorCorrector, ReverseDiffusion
from diffusion.samplers.unipc import UniPC
from diffusion.train import sharding
from diffusion.typing import Params


def _heun(c: ConfigDict, order: int) -> Heun:
    return Heun(order=order, fraction=c.heun_fraction, churn=c.churn / c.steps, churn_min=c.churn_min,
                churn_max=c.churn_max, churn_noise=c.churn_noise, euler_to_zero=c.euler_to_zero)


def _dpm_multistep(c: ConfigDict, order: int, eta: float) -> DPMSolverMultistep:
    kind = c.solver_type or ("heun" if order == 3 else "midpoint")
    return DPMSolverMultistep(order=order, eta=eta, kind=kind, reach=c.reach)


def usual(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def variance(c: ConfigDict) -> Variance:
    """Of p(x_s | x_t), by config.sample."""
    return c.variance_share if c.variance == "mixed" else c.variance


# name: (config.sample, order) -> solver; the second table has the orders that each can have, the first the usual one.
SOLVERS = {
    "ancestral": lambda c, order: Ancestral(variance=variance(c)),
    "ddim": lambda c, order: DDIM(eta=usual(c.eta, 0.0)),
    "euler_ancestral": lambda c, order: DDIM(eta=1.0),
    "euler": lambda c, order: _heun(c, 1),
    "heun": lambda c, order: _heun(c, 2),
    "dpm_solver": lambda c, order: DPMSolver(order=order, predict="eps", reach=c.reach),
    "dpm_solver++": lambda c, order: DPMSolver(order=order, predict="x0"),
    "dpm_solver++m": lambda c, order: _dpm_multistep(c, order, 0.0),
    "dpm_solver++sde": lambda c, order: _dpm_multistep(c, order, usual(c.eta, 1.0)),
    "unipc": lambda c, order: UniPC(order=order, variant=c.unipc_variant, reach=c.reach),
    "deis": lambda c, order: DEIS(order=order, reach=c.reach),
    "lms": lambda c, order: LMS(order=order),
    "pndm": lambda c, order: PNDM(start="runge_kutta"),
    "plms": lambda c, order: PNDM(start="heun"),
    "sa_solver": lambda c, order: SASolver(predictor=order, corrector=order, tau=usual(c.eta, 1.0), reach=c.reach),
    "euler_maruyama": lambda c, order: EulerMaruyama(),
    "reverse_diffusion": lambda c, order: ReverseDiffusion(),
    "adaptive_ode": lambda c, order: AdaptiveODE(tolerance=usual(c.tolerance, 1e-5)),
    "adaptive_sde": lambda c, order: AdaptiveSDE(relative=usual(c.tolerance, 0.02)),
    "consistency": lambda c, order: Consistency(),
}
ORDERS = {"dpm_solver": (2, 1, 3), "dpm_solver++": (2, 1, 3), "dpm_solver++m": (2, 1, 3), "dpm_solver++sde": (2, 1, 3),
          "unipc": (2, 1, 3), "deis": (3, 1, 2, 4), "lms": (4, 1, 2, 3), "sa_solver": (2, 1, 3)}
WITH_ETA = ("ddim", "dpm_solver++sde", "sa_solver")
NOISY = ("ancestral", "euler_ancestral", "euler_maruyama", "reverse_diffusion", "adaptive_sde")  # whatever the eta
CORRECTABLE = ("ancestral", "ddim", "euler", "euler_ancestral", "euler_maruyama", "reverse_diffusion")
CORRECTORS = {"none", "langevin", "annealed_langevin"}
ALONG = {"model", "linear", "vp", "ve"}
SCALINGS = {"none", "vp"}
# Of a table: (T, steps) -> times. An open one has a time more, the least noisy, and leaves it out, as the multistep
# solvers of diffusers do.
SPACINGS = {
    "linspace": grids.linspace, "leading": grids.leading, "trailing": grids.trailing,
    "open_linspace": lambda t_max, steps: grids.linspace(t_max, steps + 1)[:-1],
    "open_leading": lambda t_max, steps: grids.leading(t_max, steps + 1)[:-1],
}
# In continuous time: (config.sample, process, steps, t_min) -> times.
FLOAT_SPACINGS = {
    "uniform": lambda c, *args: grids.uniform_time(*args),
    "quadratic": lambda c, *args: grids.quadratic(*args),
    "log_snr": lambda c, *args: grids.uniform_log_snr(*args),
    "karras": lambda c, *args: grids.karras(*args, rho=c.rho),
    "vp": lambda c, *args: grids.vp_levels(*args),
    "iddpm": lambda c, *args: grids.iddpm_levels(*args),
    "times": lambda c, *args: np.asarray(c.given, np.float64),
    "noise_levels": lambda c, process, *args: grids.of_noise_levels(process, c.given),
}
NO_NOISE_LEVEL = ("log_snr", "karras", "vp", "iddpm")  # at a time where nothing of the data is left
GIVEN = ("times", "noise_levels")  # of sample.given; published lists are rounded, by less than 1 %
VARIANCES = {"large", "small", "learned_range", "mixed"}


def solver(c: ConfigDict) -> Solver:
    """The solver of config.sample. Raises ConfigError for a setting that it cannot have."""
    need(c.steps >= 1, "sample.steps", c.steps, "must be 1 or more.")
    make = choose(SOLVERS, "sample.solver", c.solver)
    orders = ORDERS.get(c.solver, (None,))
    need(c.order is None or c.order in orders, "sample.order", c.order, f"sample.solver = {c.solver!r} "
         + (f"can have the orders {sorted(orders)}." if orders != (None,) else "has one order only: leave it out."))
    need(0 <= usual(c.eta, 0) <= 1, "sample.eta", c.eta, "must lie in [0, 1]: 0 is deterministic, 1 is ancestral "
         "sampling (Song et al. 2021, DDIM, Eq. 16).")
    choose({None, "midpoint", "heun"}, "sample.solver_type", c.solver_type)
    need(c.reach > 0, "sample.reach", c.reach, "must be positive; inf: the order never falls.")
    need(c.eta is None or c.solver in WITH_ETA or c.eta == 0 and c.solver not in NOISY, "sample.eta", c.eta,
         f"does nothing with sample.solver = {c.solver!r}: it is of {', '.join(WITH_ETA)}. Leave it at None"
         + (", or sample by ddim." if c.solver == "ancestral" else "."))
    need(0 < c.heun_fraction <= 1, "sample.heun_fraction", c.heun_fraction, "must lie in (0, 1]: 1 is Heun's method, "
         "1/2 the midpoint, 2/3 Ralston's (Karras et al. 2022, Algorithm 3).")
    need(c.churn >= 0, "sample.churn", c.churn, "must not be negative (Karras et al. 2022, S_churn: 0 .. 80).")
    need(not c.churn or c.solver in ("euler", "heun"), "sample.churn", c.churn, "is of the solvers heun and euler "
         f"(Karras et al. 2022, Algorithm 2), and sample.solver is {c.solver!r}.")
    need(usual(c.tolerance, 1) > 0, "sample.tolerance", c.tolerance, "must be positive (adaptive_ode, Song et al. "
         "2021: 1e-5; adaptive_sde, Jolicoeur-Martineau et al. 2021: 0.01 to 0.5).")
    choose({"B1", "B2"}, "sample.unipc_variant", c.unipc_variant)
    choose(VARIANCES, "sample.variance", c.variance)
    need(0 <= c.variance_share <= 1, "sample.variance_share", c.variance_share, "must lie in [0, 1]: 0 is the small "
         "variance, 1 the large one (Hoogeboom et al. 2023: 0.2; Ho & Salimans 2022: 0.3).")
    choose(CORRECTORS, "sample.corrector", c.corrector)
    found = make(c, c.order or orders[0])
    if c.corrector == "none":
        return found
    need(c.solver in CORRECTABLE, "sample.corrector", c.corrector, "moves x off the path that sample.solver = "
         f"{c.solver!r} follows: correct one of {', '.join(CORRECTABLE)} (Song et al. 2021, Algorithms 2-3).")
    need(c.guidance.name != "cfg++", "sample.corrector", c.corrector, "needs a score, and the eps of guidance cfg++ is "
         "not that of its x_0: no density has both (Chung et al. 2024).")
    need(c.rederive_eps or not (c.clip or c.dynamic_threshold), "sample.corrector", c.corrector, "needs a score, and "
         "with rederive_eps=False the eps is not that of the clipped x_0.")
    need(c.corrector_snr > 0 and c.corrector_steps >= 1, "sample.corrector_snr", c.corrector_snr, "must be positive "
         "(Song et al. 2021: 0.16), and corrector_steps 1 or more.")
    return PredictorCorrector(predictor=found, snr=c.corrector_snr, corrections=c.corrector_steps,
                              annealed=c.corrector == "annealed_langevin")


def along(c: ConfigDict, proc: processes.Process) -> processes.Process:
    """The process that config.sample goes along: the model's, or one of another schedule and scaling with its noise
    levels (Karras et al. 2022, Section 3)."""
    choose(ALONG, "sample.schedule", c.schedule)
    choose(SCALINGS, "sample.scaling", c.scaling)
    if c.schedule == "model":
        need(c.scaling == "none", "sample.scaling", c.scaling, "goes with a sample.schedule other than model.")
        return proc
    need(not isinstance(proc.t_max, int) or c.between_times, "sample.schedule", c.schedule, "has times between the "
         f"{proc.t_max} whole ones that this discrete model was trained at and never saw: sample along its own, or say "
         "sample.between_times=True.")
    need(not (isinstance(proc, LearnedProcess) and proc.schedule.learned_ends), "sample.schedule", c.schedule, "lies "
         "between the model's ends, which this model learns: sample along its own, model.")
    for key in ("sigma_min", "sigma_max"):
        need(c[key] > 0 or c[key] == -1, f"sample.{key}", c[key], "must be positive, or -1 for the model's own.")
    least, most = noise_levels(proc)
    with jax.enable_x64(True):
        end = float(proc.noise_level(np.float64(usual_end(proc))))
    # Within what the network knows, as in EDM's code; build/advice.py says so.
    low, high = max(c.sigma_min, least) if c.sigma_min > 0 else end, min(c.sigma_max, most) if c.sigma_max > 0 else most
    need(np.isfinite(high), "sample.sigma_max", c.sigma_max, "must be given: at the last time of the model's process "
         "nothing of the data is left, and the noise level is infinite (Karras et al. 2022: 80).")
    need(low < high, "sample.sigma_min", low, f"must be below sample.sigma_max = {high!r}: noise levels.")
    return ScheduleScaling(schedule=c.schedule, scaling=c.scaling, sigma_min=low, sigma_max=high)


def usual_end(proc: processes.Process) -> float:
    """The last noisy time where sample.t_min gives none; a process that is finite at t = 0 stops before the data."""
    return float(proc.t_end) or 1e-3 * proc.t_max


def sampler(config: ConfigDict, model: Model, wrap: Callable | None = None) -> Sampler:
    """The sampler of config.sample, guidance and all, but for its time grid.

    `wrap(solver, given)` puts a task's solver around the config's. given["scale"] replaces the scale of guidance.
    """
    c = config.sample
    check_times(config)
    need(c.variance != "learned_range" or config.learned_range, "sample.variance", c.variance,
         "needs a network with a head for the variance: config.learned_range.")
    need(c.clip_range > 0, "sample.clip_range", c.clip_range, "must be positive: data lie in [-1, 1].")
    need(0 <= c.dynamic_threshold < 1, "sample.dynamic_threshold", c.dynamic_threshold,
         "is a quantile in (0, 1), or 0 for none (Saharia et al. 2022: 0.995).")
    need(c.threshold_max >= 1, "sample.threshold_max", c.threshold_max, "must be 1 or more.")
    need(c.preview >= 1, "sample.preview", c.preview, "must be positive.")
    one_step, guided = solver(c), guide(config, model)
    target = along(c, model.process)

    def clipped(diffusion):
        if c.dynamic_threshold:
            return parameterization.dynamic_threshold(diffusion, c.dynamic_threshold, c.threshold_max,
                                                      rederive_eps=c.rederive_eps)
        return parameterization.clip_x0(diffusion, c.clip_range, rederive_eps=c.rederive_eps) if c.clip else diffusion

    def chain(params, given):
        inner, diffusion = one_step, model.denoiser(params)
        if c.schedule != "model":
            diffusion = parameterization.on_process(diffusion, target)
        if guided and guided.momentum:
            inner = guided.solver(inner, params, given, clipped)
        elif guided:
            diffusion = clipped(guided.diffusion(diffusion, params, given))
        else:
            diffusion = clipped(diffusion)
        return wrap(inner, given) if wrap else inner, diffusion

    return make_sampler(chain, model.shape, model.mesh, (wrap(one_step, {}) if wrap else one_step).evaluations)


def grid(c: ConfigDict, proc: processes.Process) -> np.ndarray:
    """The steps of config.sample [S, 2], from which time to which: int32 for a discrete chain's own times, or
    float32."""
    choose({**SPACINGS, **FLOAT_SPACINGS}, "sample.spacing", c.spacing)
    need(c.offset >= 0, "sample.offset", c.offset, "must not be negative.")
    need(c.end in (0, 1), "sample.end", c.end, "is 0, the clean data, or 1, the least noisy time.")
    proc = along(c, proc)
    discrete = isinstance(proc.t_max, int)
    if discrete and c.spacing == "times" and all(isinstance(t, int) for t in c.given):
        need(len(c.given) == c.steps and 1 <= min(c.given) and max(c.given) <= proc.t_max
             and all(np.diff(c.given) < 0), "sample.given", c.given, f"must be sample.steps = {c.steps} falling times "
             f"in 1 .. {proc.t_max}.")
        return grids.pairs(np.asarray(c.given, np.int32))
    if c.spacing in FLOAT_SPACINGS or not discrete:
        return float_grid(c, proc, discrete)
    most = proc.t_max - c.spacing.startswith("open_")
    need(1 <= c.steps <= most, "sample.steps", c.steps, f"must lie in 1 .. {most}: the model knows the {proc.t_max} "
         f"times of config.process.steps{', and an open grid leaves one out' if most < proc.t_max else ''}.")
    times = SPACINGS[c.spacing](proc.t_max, c.steps)
    if c.spacing.endswith("leading"):
        times = times + c.offset
        need(times[0] <= proc.t_max, "sample.offset", c.offset,
             f"with {c.steps} steps the first time would be {times[0]}, above T = {proc.t_max}.")
    check_first_step(c, proc, times[0])
    need(c.solver not in BETWEEN or c.between_times, "sample.solver", c.solver, "goes by times between the "
         f"{proc.t_max} whole ones that this model was trained at and never saw. Use another solver, or say "
         "sample.between_times=True: the network interpolates (Lu et al. 2022, DPM-Solver, Section 3.4).")
    if c.solver in STRIDING and c.constant_stride:
        return grids.constant_stride(times, proc.t_max, c.end)
    # From the least noisy time a step to itself is none, and only DDIM's formula bears it.
    ends = c.solver in STRIDING or c.solver in ENDING and times[-1] > c.end
    return grids.pairs(times, c.end if ends else 0)


# Solvers whose steps may go a constant way, and others that may end at the least noisy time as well.
STRIDING = ("ddim", "pndm", "plms")
ENDING = ("dpm_solver++m", "dpm_solver++sde", "unipc", "deis")
# Solvers that choose their steps, and all that ask for times of their own.
ADAPTIVE = ("adaptive_ode", "adaptive_sde")
BETWEEN = ("dpm_solver", "dpm_solver++", "pndm", "euler", "heun", *ADAPTIVE)


def float_grid(c: ConfigDict, proc: processes.Process, discrete: bool) -> np.ndarray:
    need(c.spacing in FLOAT_SPACINGS, "sample.spacing", c.spacing, "counts the whole times of a discrete chain, and "
         f"the model's process is in continuous time. Use one of: {', '.join(FLOAT_SPACINGS)}.")
    need(not discrete or c.between_times, "sample.spacing", c.spacing, f"has times between the {proc.t_max} whole ones "
         "that this discrete model was trained at and never saw. Use linspace, leading or trailing, or say "
         "sample.between_times=True: the network interpolates (Lu et al. 2022, DPM-Solver, Section 3.4).")
    need(c.steps >= 1, "sample.steps", c.steps, "must be 1 or more.")
    need(c.rho > 0, "sample.rho", c.rho, "must be positive (Karras et al. 2022: 7).")
    t_min = usual_end(proc) if c.t_min < 0 else c.t_min
    if c.t_min < 0 and c.spacing == "uniform" and proc.equal_steps_to_data and c.solver not in ADAPTIVE:
        t_min = max(t_min, proc.t_max / max(c.steps, 2))
    need(0 < t_min < proc.t_max and t_min >= proc.t_min, "sample.t_min", c.t_min, f"must lie in [{proc.t_min:g}, "
         f"{proc.t_max:g}), the times that were trained, or be -1 for the usual end.")
    with jax.enable_x64(True):
        all_noise = not np.isfinite(float(proc.noise_level(np.float64(proc.t_max))))
    need(not (all_noise and c.spacing in NO_NOISE_LEVEL), "sample.spacing", c.spacing, "spaces noise levels, and at t "
         f"= {proc.t_max:g} nothing of the data is left: the level is infinite. Use uniform or quadratic.")
    if c.spacing in GIVEN:
        low, high = noise_levels(proc) if c.spacing == "noise_levels" else (proc.t_min, proc.t_max)
        need(all(0.99 * low <= value <= 1.01 * high for value in c.given), "sample.given", c.given, f"has {c.spacing} "
             f"that the model does not know: its own are {low:.4g} to {high:.4g}.")
    times = FLOAT_SPACINGS[c.spacing](c, proc, c.steps, t_min)
    times = np.clip(times, proc.t_min, proc.t_max) if c.spacing in GIVEN else times
    need(len(times) == c.steps and np.all(np.diff(times) < 0) and times[-1] > 0, "sample.given", c.given,
         f"must be sample.steps = {c.steps} falling times or noise levels of the process above 0.")
    check_first_step(c, proc, times[0])
    return grids.pairs(times)


def check_first_step(c: ConfigDict, proc: processes.Process, first: float) -> None:
    """That the solver can start at the time `first`."""
    with jax.enable_x64(True):
        level = float(proc.noise_level(first if isinstance(first, np.integer) else np.float64(first)))
    all_noise = not np.isfinite(level)
    need(not all_noise or c.solver not in ("euler_maruyama", "reverse_diffusion", "adaptive_sde"), "sample.solver",
         c.solver, f"starts at t = {first:g}, where nothing of the data is left and the reverse SDE's drift is "
         "infinite: use ancestral, or ddim with eta, or sample.spacing=times from a little below.")
    need(c.solver not in ("pndm", "plms") or all_noise or level < 1e3, "sample.solver", c.solver, "extrapolates eps, "
         f"and starts at the noise level {level:.3g}, where an error in eps is one {level:.3g} times as large in x_0: "
         "use dpm_solver++m, deis or lms.")


def grid_of(config: ConfigDict, model: Model) -> Callable[[Params], np.ndarray]:
    """The `grid` of a model by its parameters, on which a learned schedule depends. Raises its errors at once."""
    found = grid(config.sample, model.process)
    if config.process.name != "learned":
        return lambda params: found
    return lambda params: grid(config.sample, model.process_of(params))


def generate(config: ConfigDict, model: Model, chosen: Sequence[int] | None = None) -> Generate:
    """Draws with the sampler and grid of config.sample, the classes in turn, or the `chosen` ones."""
    c = config.sample
    check_sample_batch(c, model)
    return make_generate(sampler(config, model), grid_of(config, model), classes=classes(config, model, chosen),
                         batch_size=c.batch_size)


def check_sample_batch(c: ConfigDict, model: Model) -> None:
    shards = sharding.batch_shards(model.mesh)
    need(c.batch_size >= 1 and c.batch_size % shards == 0, "sample.batch_size", c.batch_size,
         f"must be a positive multiple of {shards}, the devices that share it (mesh.data x mesh.fsdp).")
