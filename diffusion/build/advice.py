"""Warnings about settings that run but are known to work poorly, each with its reason and source."""
from collections.abc import Callable

from ml_collections import ConfigDict

from diffusion import config as config_lib
from diffusion.build.kinds import clips, spec
from diffusion.build.processes import process
from diffusion.build.training import RATE_KEYS
from diffusion.core.grids import noise_levels


def of_training(config: ConfigDict) -> list[str]:
    """For --mode=train."""
    v = _Values(config)
    loss, process, prediction = v["loss.name"], v["process.name"], v["prediction"]
    *sides, channels = spec(config).shape
    patch, width = channels * (v["network.patch"] or 1) ** len(sides), v["network.channels"]
    if loss == "denoising" and v["loss.space"] == "x0" and prediction == "eps" and v["loss.weighting"] == "simple":
        v.note("loss.space", "weighs an error in eps by 1 / SNR, without bound towards noise (Salimans & Ho 2022, "
               "Section 4): predict x0 or v, or measure in eps.")
    if loss == "vlb" and v["loss.density"] == "uniform":
        v.note("loss.density", "L_vlb by uniform times has noisy gradients, all the more with the cosine schedule "
               "(Nichol & Dhariwal 2021, Section 3.3, Fig. 6): loss.density=importance, or loss.name=hybrid.")
    if v["loss.weighting"] == "truncated_snr" and prediction == "eps":
        v.note("loss.weighting", "with prediction eps diverges (Salimans & Ho 2022, Table 1: N/A): as the SNR falls, "
               "x0 = (x - sigma eps) / alpha has an error without bound, whose weight no longer falls. Predict x0 or "
               "v, or use snr_plus_one.")
    if prediction != "x0" and width and patch > width:
        v.note("prediction", f"contains noise, {patch} numbers for each patch (data.channels, network.patch), which "
               f"{width} (network.channels) cannot carry. x0 lies near a manifold of few dimensions (Li & He 2025, "
               "\"JiT\", Table 2: FID 372 for eps, 8.6 for x0): prediction=x0.")
    if loss == "continuous_vlb" and not v["loss.stratified"]:
        v.note("loss.stratified", "evenly spread times make the bound's estimate less noisy at no cost (Kingma et al. "
               "2021, Appendix I.1).")
    if process == "edm" and v["loss.density"] == "uniform":
        v.note("loss.density", f"is uniform in the noise level up to {v['process.sigma_max']:g}, nearly always "
               "where there is nothing to learn (Karras et al. 2022, Section 5, Fig. 5a): loss.density=log_normal.")
    if process == "ve" and (v["process.sigma_min"], v["process.sigma_max"]) == (0.01, 50.0):
        v.note("process.sigma_max", "is for data in [0, 1] (Song et al. 2021, code), but ours lie in [-1, 1]: "
               "sigma_min=0.02 and sigma_max=100.")
    if prediction == "edm" and loss == "denoising" and v["loss.space"] != "edm" and v["loss.weighting"] != "edm":
        v.note("loss.weighting", "lets the gradient's size vary with the noise level, which the preconditioning is "
               "made to avoid (Karras et al. 2022, Eq. 8): loss.weighting=edm.")
    if v["data.size"] and max(spec(config).shape[:2]) >= 128 and v["process.shift"] == 1:
        v.note("process.shift", f"leaves images of {v['data.size']} pixels too clean for most of the time: shift "
               "towards noise (Hoogeboom et al. 2023, \"simple diffusion\": 64 / size; Esser et al. 2024: 3).")
    return v.notes


def of_sampling(config: ConfigDict) -> list[str]:
    """Notes for every mode that samples."""
    v = _Values(config)
    solver, steps, length = v["sample.solver"], v["sample.steps"], v["process.steps"]
    scale = v["sample.guidance.scale"]
    guided = v["sample.guidance.name"] == "classifier_free" and scale > 3
    if length and v["sample.variance"] == "large" and steps <= min(100, length - 1):
        v.note("sample.solver", f"with the large variance and {steps} steps leaves noise (Song et al. 2021, DDIM, "
               "Table 1, CIFAR-10: FID 32.72 in 50 steps, 4.67 by ddim): use ddim or another ODE solver.")
    if v["process.zero_terminal_snr"] and v["sample.spacing"] == "leading" and steps < length:
        v.note("sample.spacing", "does not start at T, the pure noise that process.zero_terminal_snr is for (Lin et "
               "al. 2024, Section 3.3): use trailing.")
    if v["learned_range"] and v["sample.variance"] not in (None, "learned_range"):
        v.note("sample.variance", "ignores the variance that the model has learned (Nichol & Dhariwal 2021): "
               "sample.variance=learned_range.")
    if guided and (solver == "dpm_solver" or v["sample.order"] == 3):
        v.note("sample.solver", f"of order 3, or on eps, is unstable under guidance of scale {scale:g} (Lu et al. "
               "2022b, Section 3): dpm_solver++m of order 2.")
    if guided and not v["sample.dynamic_threshold"]:
        v.note("sample.guidance.scale", "saturates images (Saharia et al. 2022, Section 2.3): "
               "sample.dynamic_threshold=0.995, guidance apg, or an interval.")
    if solver == "adaptive_ode" and clips(config):
        v.note("sample.clip", "has kinks, at which an adaptive solver of order 5 takes many small steps: "
               "sample.clip=False.")
    if max(v["sample.sigma_min"] or 0, v["sample.sigma_max"] or 0) > 0:
        least, most = noise_levels(process(config.process))
        for key, end in (("sample.sigma_min", least), ("sample.sigma_max", most)):
            if v[key] > 0 and not least <= v[key] <= most:
                v.note(key, f"is outside the model's range of noise levels: the nearest level, {end:.4g}, is used "
                       "(Karras et al. 2022, code).")
    return v.notes


class _Values:
    """The values of a config by dotted keys (None for a missing key), and the notes on them."""

    def __init__(self, config: ConfigDict):
        self._values, self.notes = config_lib.keys(config), []

    def __getitem__(self, key: str):
        return self._values.get(key)

    def note(self, key: str, text: str) -> None:
        self.notes.append(f"note: config.{key} = {self._values[key]!r} {text}")


def of_another_rate(config: ConfigDict, before: dict[str, object] | None, rate_of: Callable, step: int) -> list[str]:
    """A note if a resumed run's learning rate after `step` differs from the one planned before; else an empty list.

    before: the run's previous config by dotted keys; rate_of: config -> the rate as a function of the step.
    """
    now = config_lib.keys(config)
    changed = {key: before[key] for key in RATE_KEYS if key in (before or {}) and before[key] != now[key]}
    if not changed:
        return []
    was, is_ = (float(rate_of(c)(step)) for c in (config_lib.override(config, changed), config))
    if abs(was - is_) <= 1e-6 * max(was, is_):
        return []
    said = ", ".join(f"{key} was {value}, is {now[key]}" for key, value in changed.items() if key != "train.batch_size")
    keep = "" if config.optimizer.decay == "constant" else (
        " To keep the rate constant: --config.optimizer.decay=constant --config.optimizer.learning_rate=RATE.")
    return [f"note: the learning rate after step {step:,} is {is_:.3g}; it was to be {was:.3g} ({said}). The "
            f"optimizer keeps its moments.{keep}"]
