"""diffusers' DDPMScheduler and DDIMScheduler: their settings, to and from our config sections.

Settings that neither class has, and values that ours has not, are errors that name them: none is ignored.
"""
from typing import Any

import numpy as np

from diffusion.errors import CheckpointError

# The settings of both classes, with the values that diffusers takes for those that a file does not have.
DEFAULTS = dict(
    num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", trained_betas=None,
    variance_type="fixed_small", clip_sample=True, prediction_type="epsilon", thresholding=False,
    dynamic_thresholding_ratio=0.995, clip_sample_range=1.0, sample_max_value=1.0, timestep_spacing="leading",
    steps_offset=0, rescale_betas_zero_snr=False, set_alpha_to_one=True)
SOLVERS = {"DDPMScheduler": "ancestral", "DDIMScheduler": "ddim"}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# fixed_small_log is fixed_small by way of a logarithm. fixed_large_log and learned take the root of a negative number.
VARIANCES = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large",
             "learned_range": "learned_range"}
SPACINGS = {"linspace": "linspace", "leading": "leading", "trailing": "trailing"}
DDIM_STEPS = 50  # diffusers' default for DDIMPipeline


def read_settings(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """scheduler_config.json -> our config sections "process" and "sample" and the key "prediction".

    Raises CheckpointError that names what is not supported.
    """
    def choose(key: str, table: dict):
        if s[key] not in table:
            raise CheckpointError(f"{where}: {key} = {s[key]!r} is not supported. It can be one of: "
                                  f"{', '.join(table)}.")
        return table[s[key]]

    name = settings.get("_class_name")
    if name not in SOLVERS:
        raise CheckpointError(f"{where} describes a {name}, which is not supported. The schedulers are: "
                              f"{', '.join(SOLVERS)}. If the model was trained with discrete DDPM noise, one of them "
                              "with the same betas samples from it.")
    own = {key: value for key, value in settings.items() if not key.startswith("_")}
    if "predict_epsilon" in own:  # diffusers before 0.9
        own.setdefault("prediction_type", "epsilon" if own.pop("predict_epsilon") else "sample")
    for key in ("tensor_format", "timestep_values"):  # diffusers before 0.3: which array library, and never used
        own.pop(key, None)
    if unknown := sorted(own.keys() - DEFAULTS.keys()):
        raise CheckpointError(f"{where}: {', '.join(unknown)} is not a setting of {name} that is supported.")
    s = DEFAULTS | own

    process = dict(steps=s["num_train_timesteps"], zero_terminal_snr=s["rescale_betas_zero_snr"])
    if s["trained_betas"] is not None:
        process |= dict(name="table", betas=tuple(float(beta) for beta in s["trained_betas"]),
                        steps=len(s["trained_betas"]))
    else:
        process |= dict(name=choose("beta_schedule", SCHEDULES), beta_start=float(s["beta_start"]),
                        beta_end=float(s["beta_end"]))
    sample = dict(
        solver=SOLVERS[name], variance=choose("variance_type", VARIANCES),
        steps=process["steps"] if name == "DDPMScheduler" else min(DDIM_STEPS, process["steps"]),
        spacing=choose("timestep_spacing", SPACINGS), offset=s["steps_offset"], constant_stride=True,
        end=0 if s["set_alpha_to_one"] else 1, clip=s["clip_sample"], clip_range=float(s["clip_sample_range"]),
        dynamic_threshold=float(s["dynamic_thresholding_ratio"]) if s["thresholding"] else 0.0,
        threshold_max=float(s["sample_max_value"]), rederive_eps=False)
    return {"process": process, "prediction": choose("prediction_type", PREDICTIONS), "sample": sample}


def write_settings(process: dict[str, Any], sample: dict[str, Any], prediction: str,
                   betas: np.ndarray) -> dict[str, Any]:
    """Our config sections, and the betas [T] that they make -> scheduler_config.json of the same chain.

    `betas` are those before `zero_terminal_snr`. Schedules that diffusers does not know by name are written as a table.
    Raises CheckpointError for a network that is told other times than diffusers tells it.
    """
    if process["rescale_times"] and process["steps"] != 1000:
        raise CheckpointError("diffusers tells a network the time t - 1 itself: config.process.rescale_times with "
                              f"config.process.steps = {process['steps']} cannot be expressed.")
    inverse = lambda table, value: next(theirs for theirs, ours in table.items() if ours == value)  # noqa: E731
    named = process["name"] in SCHEDULES.values() and (
        process["name"] != "cosine" or (process["offset"], process["max_beta"]) == (0.008, 0.999))
    return dict(
        _class_name=inverse(SOLVERS, sample["solver"]), num_train_timesteps=process["steps"],
        beta_start=process["beta_start"], beta_end=process["beta_end"],
        beta_schedule=inverse(SCHEDULES, process["name"]) if named else "linear",
        trained_betas=None if named else [float(beta) for beta in betas],
        variance_type=inverse(VARIANCES, sample["variance"]), clip_sample=sample["clip"],
        clip_sample_range=sample["clip_range"], prediction_type=inverse(PREDICTIONS, prediction),
        thresholding=sample["dynamic_threshold"] > 0,
        dynamic_thresholding_ratio=sample["dynamic_threshold"] or DEFAULTS["dynamic_thresholding_ratio"],
        sample_max_value=sample["threshold_max"], timestep_spacing=inverse(SPACINGS, sample["spacing"]),
        steps_offset=sample["offset"], set_alpha_to_one=sample["end"] == 0,
        rescale_betas_zero_snr=process["zero_terminal_snr"])
