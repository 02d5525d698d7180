"""Converts the settings of diffusers' schedulers to and from our config sections.

A class is mapped if ours makes the same chain from the same network and noise (tests/interop/test_parity_scheduler.py
runs both); other settings are refused by name, with the reason. docs/interop.md lists the few intended differences.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion.errors import CheckpointError, shown
from diffusion.interop import fields

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# fixed_small_log is fixed_small through a logarithm. fixed_large_log and learned take the root of a negative number.
VARIANCES = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large",
             "learned_range": "learned_range"}
SPACINGS = {"linspace": "linspace", "leading": "leading", "trailing": "trailing"}
OPEN_SPACINGS = {"linspace": "open_linspace", "leading": "open_leading", "trailing": "trailing"}
UNIPC_VARIANTS = {"bh1": "B1", "bh2": "B2"}
STEPS = 50  # of diffusers' pipelines, except DDPM's

# The default config.sample of every scheduler: no clipping, and x0 and eps that agree.
SAMPLE = dict(offset=0, constant_stride=False, end=0, clip=False, clip_range=1.0, dynamic_threshold=0.0,
              threshold_max=1.0, rederive_eps=True)


@dataclass(frozen=True)
class Scheduler:
    """A scheduler class of diffusers: its settings, and their conversion to our config.

    read: the settings -> our sections; raises ValueError that names a difference.
    """
    fields: dict[str, fields.Field]
    read: Callable[[dict[str, Any]], dict[str, Any]]


def _switch(why: str) -> fields.Field:
    return fields.choice(False, {False: False, None: False}, f"false only: {why}")


# ---- settings of many classes ----------------------------------------------------------------------------------------

_SIGMAS = "its noise levels lie between the trained ones, but it rounds only the times"
_SHIFTED = {"use_flow_sigmas": _switch("they are not of a chain of betas"), "flow_shift": fields.idle(),
            "use_dynamic_shifting": _switch("they are not of a chain of betas"), "time_shift_type": fields.idle()}
_THRESHOLD = {"thresholding": fields.flag(False), "dynamic_thresholding_ratio": fields.number(0.995, 0, 1),
              "sample_max_value": fields.number(1.0, 1)}
_ZERO_SNR = {"rescale_betas_zero_snr": _switch("it makes the last signal 2^-24 instead of none")}


def _chain(spacing: str, *, schedules: dict[str, str] = SCHEDULES, predictions: tuple[str, ...] = tuple(PREDICTIONS),
           start: float = 0.0001, end: float = 0.02) -> dict[str, fields.Field]:
    """The settings of a chain of betas, with the defaults of a class."""
    return {"num_train_timesteps": fields.whole(1000, 1, fields.STEPS), "beta_start": fields.number(start, 0, 1),
            "beta_end": fields.number(end, 0, 1), "beta_schedule": fields.choice("linear", schedules),
            "trained_betas": fields.optional(fields.several(None, fields.number(None, 0, 1), fields.STEPS)),
            "prediction_type": fields.choice("epsilon", {name: PREDICTIONS[name] for name in predictions}),
            "timestep_spacing": fields.choice(spacing, tuple(SPACINGS)),
            "steps_offset": fields.whole(0, 0, fields.STEPS)}


def _levels(**more: fields.Field) -> dict[str, fields.Field]:
    """The settings of classes whose noise levels can differ from those of the times."""
    why = "only use_karras_sigmas is supported"
    return {"use_karras_sigmas": fields.choice(False, {True: True, False: False, None: False}),
            "use_exponential_sigmas": _switch(why), "use_beta_sigmas": _switch(why), **more}


def _sections(s: dict[str, Any], **sample: Any) -> dict[str, Any]:
    """Our sections for a chain of betas, with the given sampler keys."""
    process = dict(steps=s["num_train_timesteps"], zero_terminal_snr=s.get("rescale_betas_zero_snr", False))
    if (betas := s["trained_betas"]) is None:
        process |= dict(name=s["beta_schedule"], beta_start=s["beta_start"], beta_end=s["beta_end"])
    elif len(betas) == process["steps"]:
        process |= dict(name="table", betas=betas)
    else:
        raise ValueError(f"trained_betas has {len(betas)} numbers, but num_train_timesteps is {process['steps']}")
    steps = max(1, min(STEPS, process["steps"] - 1))
    return {"process": process, "prediction": s["prediction_type"], "sample": SAMPLE | dict(steps=steps) | sample}


def _clipping(s: dict[str, Any]) -> dict[str, Any]:
    """Our keys for clip_sample and thresholding; thresholding up to a value of 1 is clipping, too."""
    own = dict(clip=s.get("clip_sample", False), clip_range=s.get("clip_sample_range", 1.0))
    if not s.get("thresholding"):
        return own
    if s["sample_max_value"] == 1:
        return dict(clip=True, clip_range=1.0)
    return own | dict(dynamic_threshold=s["dynamic_thresholding_ratio"], threshold_max=s["sample_max_value"])


def _need(right: bool, message: str) -> None:
    if not right:
        raise ValueError(message)


# ---- the classes -----------------------------------------------------------------------------------------------------

def _end(s: dict[str, Any]) -> int:
    """The end of the last step: the data, or the least noisy time."""
    return 0 if s["set_alpha_to_one"] else 1


def _read_ddpm(s: dict[str, Any]) -> dict[str, Any]:
    return _sections(s, solver="ancestral", variance=s["variance_type"], steps=s["num_train_timesteps"],
                     spacing=s["timestep_spacing"], offset=s["steps_offset"], constant_stride=True, rederive_eps=False,
                     **_clipping(s))


def _read_ddim(s: dict[str, Any]) -> dict[str, Any]:
    return _sections(s, solver="ddim", steps=min(STEPS, s["num_train_timesteps"]), spacing=s["timestep_spacing"],
                     offset=s["steps_offset"], constant_stride=True, end=_end(s),
                     rederive_eps=False, **_clipping(s))


def _read_pndm(s: dict[str, Any]) -> dict[str, Any]:
    _need(s["timestep_spacing"] == "leading", f"timestep_spacing = {s['timestep_spacing']!r}: its steps start at times "
          "that it did not reach; it can be leading")
    return _sections(s, solver="plms" if s["skip_prk_steps"] else "pndm", spacing="leading", offset=s["steps_offset"],
                     constant_stride=True, end=_end(s), between_times=not s["skip_prk_steps"])


def _read_multistep(s: dict[str, Any], **sample: Any) -> dict[str, Any]:
    """Our sections for solvers on a grid that stops one time before the least noisy one."""
    order, last = s["solver_order"], s.get("final_sigmas_type", "sigma_min")
    _need(not s["lower_order_final"] or order == 1 or order == 2 and last == "zero", "lower_order_final = True lowers "
          f"the order of the last steps (for most classes, of chains of less than 15), with solver_order = {order} and "
          f"final_sigmas_type = {last!r}; set it to false")
    _need(last == "sigma_min" or order < 3, f"solver_order = {order} ends with lower orders, since final_sigmas_type = "
          "'zero'; set one of them otherwise")
    return _sections(s, order=order, spacing=OPEN_SPACINGS[s["timestep_spacing"]], offset=s["steps_offset"],
                     end=int(last == "sigma_min"), reach=math.inf, **_clipping(s), **sample)


def _read_dpm(s: dict[str, Any]) -> dict[str, Any]:
    stochastic = s["algorithm_type"] == "sde-dpmsolver++"
    _need(not (stochastic and s["solver_order"] == 3), "solver_order = 3 of sde-dpmsolver++ is not of third order")
    _need(not s["euler_at_final"] or s["solver_order"] == 1 or s["final_sigmas_type"] == "zero",
          "euler_at_final = True lowers the order of the last step")
    return _read_multistep(s, **dict(solver="dpm_solver++sde", eta=1.0) if stochastic else dict(solver="dpm_solver++m"),
                           solver_type=s["solver_type"])


def _read_unipc(s: dict[str, Any]) -> dict[str, Any]:
    _need(s["solver_type"] == "B2" or s["final_sigmas_type"] == "sigma_min", "solver_type = 'bh1' divides by zero with "
          "final_sigmas_type = 'zero'; use bh2")
    return _read_multistep(s, solver="unipc", unipc_variant=s["solver_type"])


def _read_levels(s: dict[str, Any], solver: dict[str, Any] | None, along: dict[str, Any] | None) -> dict[str, Any]:
    """Sections for solvers of x / alpha in sigma / alpha: `solver` on the chain's times, `along` on Karras' levels."""
    spacing = s["timestep_spacing"]
    if s.get("use_karras_sigmas"):
        _need(along is not None, "use_karras_sigmas = True")
        _need(spacing == "linspace", f"use_karras_sigmas = True with timestep_spacing = {spacing!r}, where the levels "
              "depend on the number of steps; it can be linspace")
        return _sections(s, spacing="karras", rho=7.0, schedule="linear", sigma_min=s.get("sigma_min") or -1.0,
                         sigma_max=s.get("sigma_max") or -1.0, between_times=True, **_clipping(s), **along)
    allowed = ["timestep_spacing = leading or trailing"] * (solver is not None) + [
        "use_karras_sigmas = True with timestep_spacing = linspace"] * (along is not None)
    _need(spacing != "linspace" and solver is not None, f"timestep_spacing = {spacing!r}: it interpolates levels "
          f"between whole times linearly in sigma / alpha, ours in the log-SNR. It can be "
          f"{', or '.join(allowed)}")
    return _sections(s, spacing=spacing, offset=s["steps_offset"], **_clipping(s), **solver)


def _read_edm_euler(s: dict[str, Any]) -> dict[str, Any]:
    _need(s["sigma_min"] < s["sigma_max"], f"sigma_min = {s['sigma_min']} is not below sigma_max")
    return {"process": dict(name="edm", sigma_min=s["sigma_min"], sigma_max=s["sigma_max"]), "prediction": "edm",
            "sigma_data": s["sigma_data"],
            "sample": SAMPLE | dict(solver="euler", steps=STEPS, spacing=s["sigma_schedule"], rho=s["rho"])}


def _read_flow(s: dict[str, Any]) -> dict[str, Any]:
    """Our sections for flow matching: Euler's step in sigma is DDIM's."""
    return {"process": dict(name="flow", shift=1.0), "prediction": "velocity",
            "sample": SAMPLE | dict(solver="ddim", eta=0.0, steps=STEPS, spacing="uniform",
                                    t_min=1 / s["num_train_timesteps"])}


# ---- to diffusers ----------------------------------------------------------------------------------------------------

def _their(table: dict[str, Any], value: Any, name: str) -> Any:
    """Their key for one of our values. Raises CheckpointError for a value that the class does not have."""
    for theirs, ours in table.items():
        if ours == value:
            return theirs
    raise CheckpointError(f"diffusers cannot express config.{name} = {shown(value)}. It can be one of: "
                          f"{', '.join(map(str, table.values()))}.")


def _write_grid(c: dict[str, Any], spacings: dict[str, str] = SPACINGS) -> dict[str, Any]:
    return dict(timestep_spacing=_their(spacings, c["spacing"], "sample.spacing"), steps_offset=c.get("offset", 0))


def _write_clip(c: dict[str, Any]) -> dict[str, Any]:
    return dict(clip_sample=c["clip"], clip_sample_range=c["clip_range"])


def _write_threshold(c: dict[str, Any], clips: bool) -> dict[str, Any]:
    """Their thresholding. clips: the class also has clip_sample. Otherwise thresholding up to 1 stands for clipping."""
    if c["dynamic_threshold"]:
        return dict(thresholding=True, dynamic_thresholding_ratio=c["dynamic_threshold"],
                    sample_max_value=c["threshold_max"])
    return dict(thresholding=c["clip"] and not clips)


def _write_ddpm(c: dict[str, Any]) -> dict[str, Any]:
    return _write_grid(c) | _write_clip(c) | _write_threshold(c, True) | dict(
        variance_type=_their(VARIANCES, c["variance"], "sample.variance"))


def _write_ddim(c: dict[str, Any]) -> dict[str, Any]:
    return _write_grid(c) | _write_clip(c) | _write_threshold(c, True) | dict(set_alpha_to_one=c["end"] == 0)


def _write_pndm(c: dict[str, Any]) -> dict[str, Any]:
    return _write_grid(c) | dict(skip_prk_steps=c["solver"] == "plms", set_alpha_to_one=c["end"] == 0)


def _write_dpm(c: dict[str, Any]) -> dict[str, Any]:
    return _write_grid(c, OPEN_SPACINGS) | _write_threshold(c, False) | dict(
        algorithm_type="sde-dpmsolver++" if c["solver"] == "dpm_solver++sde" else "dpmsolver++",
        solver_type=c["solver_type"] or "midpoint", solver_order=c["order"],
        lower_order_final=False, final_sigmas_type="sigma_min" if c["end"] else "zero")


# ---- the tables ------------------------------------------------------------------------------------------------------

_CLIP = {"clip_sample": fields.flag(True), "clip_sample_range": fields.number(1.0, 0)}
_NOT_CLIPPED = _CLIP | {"clip_sample": fields.flag(False)}
_BLIND = ("epsilon", "v_prediction")  # of classes that cannot predict x0
_ENDS = {"final_sigmas_type": fields.choice("zero", ("zero", "sigma_min"))}
_ORDER = {"solver_order": fields.whole(2, 1, 3), "lower_order_final": fields.flag(True)}
_MULTISTEP = _chain("linspace") | _THRESHOLD | _ORDER | _SHIFTED | {
    name: _switch(_SIGMAS) for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")}
_CONTINUOUS = {"sigma_min": fields.number(0.002, 0), "sigma_max": fields.number(80.0, 0)}
_OLD = {"tensor_format": fields.idle(), "timestep_values": fields.idle()}  # in diffusers before 0.3, never used

SCHEDULERS = {
    "DDPMScheduler": Scheduler(
        _chain("leading", schedules=SCHEDULES | {"sigmoid": "sigmoid"}) | _CLIP | _THRESHOLD | _OLD | {
            "variance_type": fields.choice("fixed_small", VARIANCES), "rescale_betas_zero_snr": fields.flag(False)},
        _read_ddpm),
    "DDIMScheduler": Scheduler(
        _chain("leading") | _CLIP | _THRESHOLD | _OLD | {
            "set_alpha_to_one": fields.flag(True), "rescale_betas_zero_snr": fields.flag(False)}, _read_ddim),
    "PNDMScheduler": Scheduler(
        _chain("leading", predictions=("epsilon",)) | _OLD | {
            "skip_prk_steps": fields.flag(False), "set_alpha_to_one": fields.flag(False)}, _read_pndm),
    "DPMSolverMultistepScheduler": Scheduler(
        _MULTISTEP | _ENDS | _ZERO_SNR | {
            "algorithm_type": fields.choice("dpmsolver++", {"dpmsolver++": "dpmsolver++", "deis": "dpmsolver++",
                                                            "sde-dpmsolver++": "sde-dpmsolver++"}),
            "solver_type": fields.choice("midpoint", {"midpoint": "midpoint", "heun": "heun", "logrho": "midpoint",
                                                      "bh1": "midpoint", "bh2": "midpoint"}),
            "euler_at_final": fields.flag(False), "use_lu_lambdas": _switch(_SIGMAS),
            "lambda_min_clipped": fields.only(-math.inf, "the grid begins at the last time of the chain"),
            "variance_type": fields.choice(None, (None, "learned_range"))}, _read_dpm),
    "UniPCMultistepScheduler": Scheduler(
        _MULTISTEP | _ENDS | _ZERO_SNR | {
            "solver_type": fields.choice("bh2", UNIPC_VARIANTS),
            "predict_x0": fields.only(True, "ours solves for x0"),
            "disable_corrector": fields.only([], "ours corrects every step"),
            "solver_p": fields.only(None, "ours predicts with UniPC itself"), "sigma_min": fields.idle(),
            "sigma_max": fields.idle(), "shift_terminal": fields.idle()}, _read_unipc),
    "DEISMultistepScheduler": Scheduler(
        _MULTISTEP | {"algorithm_type": fields.only("deis", "it belongs to DEIS"),
                      "solver_type": fields.only("logrho", "it belongs to DEIS")},
        lambda s: _read_multistep(s, solver="deis")),
    "EulerDiscreteScheduler": Scheduler(
        _chain("linspace") | _ZERO_SNR | _levels(
            final_sigmas_type=fields.only("zero", "the last step ends at the data"),
            interpolation_type=fields.only("linear", "the levels of log_linear do not match its times"),
            sigma_min=fields.optional(fields.number(None, 0)), sigma_max=fields.optional(fields.number(None, 0)),
            timestep_type=fields.only("discrete", "the network takes the times of the chain")),
        lambda s: _read_levels(s, dict(solver="ddim", eta=0.0), dict(solver="euler"))),
    "EulerAncestralDiscreteScheduler": Scheduler(
        _chain("linspace", predictions=_BLIND) | _ZERO_SNR,
        lambda s: _read_levels(s, dict(solver="euler_ancestral"), None)),
    "HeunDiscreteScheduler": Scheduler(
        _chain("linspace", start=0.00085, end=0.012) | _levels(**_NOT_CLIPPED),
        lambda s: _read_levels(s, None, dict(solver="heun"))),
    "LMSDiscreteScheduler": Scheduler(
        _chain("linspace") | _levels(),
        lambda s: _read_levels(s, dict(solver="lms", order=4), dict(solver="lms", order=4))),
    "KDPM2DiscreteScheduler": Scheduler(
        _chain("linspace", predictions=_BLIND, start=0.00085, end=0.012) | _levels(),
        lambda s: _read_levels(s, dict(solver="dpm_solver", order=2, between_times=True), None)),
    "EDMEulerScheduler": Scheduler(
        _CONTINUOUS | {
            "num_train_timesteps": fields.idle(), "sigma_data": fields.number(0.5, 0), "rho": fields.number(7.0, 1),
            "prediction_type": fields.only("epsilon", "the network of EDM's preconditioning predicts eps and x0 mixed"),
            "sigma_schedule": fields.choice("karras", {"karras": "karras", "exponential": "log_snr"}),
            "final_sigmas_type": fields.only("zero", "the last step ends at the data")}, _read_edm_euler),
    "FlowMatchEulerDiscreteScheduler": Scheduler(
        {"num_train_timesteps": fields.only(1000, "the network takes 1000 sigma"),
         "shift": fields.Field(1.0, fields.number(1.0, 1, 1).read, "1 only: if levels are shifted, our velocity is "
                               "dx/dt of the time before the shift"),
         "shift_terminal": fields.only(None, "the levels end at 1/T"),
         "stochastic_sampling": _switch("each of its steps goes back to noise"),
         "invert_sigmas": _switch("time runs from noise to data")} | {
            name: _switch("the levels are even in time") for name in (
                "use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")} | {
            name: fields.idle() for name in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
                                             "time_shift_type")}, _read_flow),
}
# Classes of diffusers whose chains ours cannot make, and the reasons.
REFUSED = {
    "DPMSolverSinglestepScheduler": "between two times it evaluates at other times of its grid, ours at the middle",
    "ScoreSdeVeScheduler": "the step size of its corrector is a mean over the batch, ours is per image",
    "CMStochasticIterativeScheduler": "a consistency model's network returns x itself at the least noise, unlike ours",
    "KDPM2AncestralDiscreteScheduler": "ours has no DPM-Solver-2 with noise",
    "SASolverScheduler": "its share of noise is a function, which a file of settings cannot hold",
    "DPMSolverSDEScheduler": "it draws its noise from a Brownian tree",
    "EDMDPMSolverMultistepScheduler": "it lowers the order of the last steps; EDMEulerScheduler has the same settings",
    "FlowMatchHeunDiscreteScheduler": "its times of the second slope differ; use FlowMatchEulerDiscreteScheduler",
}
# The schedulers of diffusers' pipelines for a UNet2DModel: our solver -> its class, the pipeline and the settings.
EXPORTS = {
    "ancestral": ("DDPMScheduler", "DDPMPipeline", _write_ddpm), "ddim": ("DDIMScheduler", "DDIMPipeline", _write_ddim),
    "pndm": ("PNDMScheduler", "PNDMPipeline", _write_pndm), "plms": ("PNDMScheduler", "PNDMPipeline", _write_pndm),
    "dpm_solver++m": ("DPMSolverMultistepScheduler", "DDPMPipeline", _write_dpm),
    "dpm_solver++sde": ("DPMSolverMultistepScheduler", "DDPMPipeline", _write_dpm),
}


# ---- settings --------------------------------------------------------------------------------------------------------

def read_settings(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """scheduler_config.json -> our config sections "process" and "sample", "prediction", and for EDM "sigma_data".

    A warning names settings that the class does not have, which diffusers ignores. Raises CheckpointError that names an
    unsupported class, setting or value, with the reason.
    """
    name = settings.get("_class_name")
    if not isinstance(name, str) or name not in SCHEDULERS:
        why = f": {REFUSED[name]}" if isinstance(name, str) and name in REFUSED else ""
        raise CheckpointError(f"{where} describes a {fields.named(name)}, which is not supported{why}. "
                              f"The schedulers are: {', '.join(SCHEDULERS)}. If the model was trained with discrete "
                              "DDPM noise, DDPMScheduler or DDIMScheduler with the same betas samples from it.")
    if "predict_epsilon" in settings:  # diffusers before 0.9
        told = fields.read_one(settings["predict_epsilon"], fields.flag(True), f"{where}: predict_epsilon")
        settings = {"prediction_type": "epsilon" if told else "sample"} | settings
        del settings["predict_epsilon"]
    scheduler = SCHEDULERS[name]
    values = fields.read_fields(fields.own(settings, scheduler.fields, where, name), scheduler.fields, where)
    try:
        return scheduler.read(values)
    except ValueError as error:
        raise CheckpointError(f"{where}: this {name} is not supported, since our samples would differ: {error}."
                              ) from error


def write_settings(process: dict[str, Any], sample: dict[str, Any], prediction: str,
                   betas: np.ndarray) -> dict[str, Any]:
    """Our config sections, and their betas [T] -> scheduler_config.json of the same chain.

    `betas` do not include `zero_terminal_snr`. Schedules that diffusers does not know by name are written as a table.
    Raises CheckpointError that names a setting that diffusers does not have.
    """
    if sample["solver"] not in EXPORTS:
        raise CheckpointError("diffusers' pipelines of a UNet2DModel do not support config.sample.solver = "
                              f"{sample['solver']!r}. They support: {', '.join(EXPORTS)}.")
    if process["rescale_times"] and process["steps"] != 1000:
        raise CheckpointError("diffusers always passes the time t - 1 to a network: config.process.rescale_times with "
                              f"config.process.steps = {process['steps']} cannot be expressed.")
    name, _, write = EXPORTS[sample["solver"]]
    schedules = {"linear", "scaled_linear", "cosine"} | ({"sigmoid"} if name == "DDPMScheduler" else set())
    named = process["name"] in schedules and (
        process["name"] != "cosine" or (process["offset"], process["max_beta"]) == (0.008, 0.999))
    theirs = {"_class_name": name, "num_train_timesteps": process["steps"],
              "beta_start": process.get("beta_start", 1e-4), "beta_end": process.get("beta_end", 0.02),
              "beta_schedule": _their(SCHEDULES | {"sigmoid": "sigmoid"}, process["name"], "process.name")
              if named else "linear",
              "trained_betas": None if named else [float(beta) for beta in betas],
              "prediction_type": _their(PREDICTIONS, prediction, "prediction")} | write(sample)
    if process["zero_terminal_snr"]:
        theirs["rescale_betas_zero_snr"] = True
    return theirs


def pipeline_of(settings: dict[str, Any]) -> str:
    """The pipeline of diffusers that uses the settings of `write_settings`."""
    return next(pipeline for name, pipeline, _ in EXPORTS.values() if name == settings["_class_name"])
