"""What is allowed and known to be poor: words for the log, each with its reason and source."""
from collections.abc import Callable

from ml_collections import ConfigDict

from diffusion import config as config_lib
from diffusion.build.processes import SCHEDULES, noise_levels, process
from diffusion.build.training import RATE_KEYS


def of_training(config: ConfigDict) -> list[str]:
    """For --mode=train."""
    config = config_lib.own(config)
    c, p, n = config.loss, config.process, config.network
    patch = config.data.channels * (n.patch**2 if n.name == "dit" else 1)
    return _told([
        (c.name == "denoising" and c.space == "x0" and config.prediction == "eps" and c.weighting == "simple",
         "loss.space", c.space, "weighs an error in eps by 1 / SNR, without bound towards noise (Salimans & Ho 2022, "
         "Section 4): predict x0 or v, or measure in eps."),
        (c.name == "vlb" and c.density == "uniform", "loss.density", c.density, "L_vlb by uniform times has noisy "
         "gradients, all the more with the cosine schedule (Nichol & Dhariwal 2021, Section 3.3, Fig. 6): "
         "loss.density=importance, or loss.name=hybrid."),
        (c.weighting == "truncated_snr" and config.prediction == "eps", "loss.weighting", c.weighting, "with "
         "prediction eps diverges (Salimans & Ho 2022, Table 1: N/A): as the SNR falls, x0 = (x - sigma eps) / alpha "
         "has an error without bound, whose weight no longer falls. Predict x0 or v, or use snr_plus_one."),
        (config.prediction != "x0" and patch > n.channels, "prediction", config.prediction, f"has noise in it, {patch} "
         f"numbers for each patch (data.channels, network.patch), which {n.channels} (network.channels) cannot carry. "
         "x0 lies near a manifold of few dimensions (Li & He 2025, \"JiT\", Table 2: FID 372 for eps, 8.6 for x0): "
         "prediction=x0."),
        (c.name == "continuous_vlb" and not c.stratified, "loss.stratified", False, "evenly spread times make the "
         "bound's estimate less noisy at no cost (Kingma et al. 2021, Appendix I.1)."),
        (p.name == "edm" and c.density == "uniform", "loss.density", c.density, "is uniform in the noise level "
         f"up to {p.sigma_max:g}, nearly all of it where nothing is to be learned (Karras et al. 2022, Section "
         "5, Fig. 5a): loss.density=log_normal."),
        (p.name == "ve" and (p.sigma_min, p.sigma_max) == (0.01, 50.0), "process.sigma_max", p.sigma_max, "is for data "
         "in [0, 1] (Song et al. 2021, code), and ours lie in [-1, 1]: sigma_min=0.02 and sigma_max=100."),
        (config.prediction == "edm" and c.name == "denoising" and c.space != "edm" and c.weighting != "edm",
         "loss.weighting", c.weighting, "lets the gradient's size vary with the noise level, which the "
         "preconditioning is made to avoid (Karras et al. 2022, Eq. 8): loss.weighting=edm."),
        (config.data.size >= 128 and p.shift == 1 and p.name in ("shifted_cosine", "flow"),
         "process.shift", p.shift, f"leaves images of {config.data.size} pixels too clean for most of the time: "
         "shift towards noise (Hoogeboom et al. 2023, \"simple diffusion\": 64 / size; Esser et al. 2024: 3)."),
    ])


def of_sampling(config: ConfigDict) -> list[str]:
    """For all that samples."""
    s, g = config.sample, config.sample.guidance
    chain = config.process.name in SCHEDULES
    guided = g.name == "classifier_free" and g.scale > 3
    return _told([
        (chain and s.solver == "ancestral" and s.variance == "large" and s.steps <= min(100, config.process.steps - 1),
         "sample.solver", s.solver, f"with the large variance and {s.steps} steps leaves noise (Song et al. 2021, "
         "DDIM, Table 1, CIFAR-10: FID 32.72 in 50 steps, 4.67 by ddim): use ddim or another ODE solver."),
        (config.process.zero_terminal_snr and s.spacing == "leading" and s.steps < config.process.steps,
         "sample.spacing", s.spacing, "does not start at T, the pure noise that process.zero_terminal_snr is for (Lin "
         "et al. 2024, Section 3.3): use trailing."),
        (config.learned_range and s.solver == "ancestral" and s.variance != "learned_range", "sample.variance",
         s.variance, "leaves aside the variance that the model has learned (Nichol & Dhariwal 2021): "
         "sample.variance=learned_range."),
        (guided and (s.solver == "dpm_solver" or s.order == 3), "sample.solver", s.solver, f"of order 3, or on eps, is "
         f"unstable under guidance of scale {g.scale:g} (Lu et al. 2022b, Section 3): dpm_solver++m of order 2."),
        (guided and not s.dynamic_threshold, "sample.guidance.scale", g.scale, "saturates images (Saharia et al. 2022, "
         "Section 2.3): sample.dynamic_threshold=0.995, guidance apg, or an interval."),
        (s.solver == "adaptive_ode" and s.clip, "sample.clip", True, "has kinks, at which an adaptive solver of order "
         "5 takes many small steps: sample.clip=False."),
        *_outside(config),
    ])


def _outside(config: ConfigDict) -> list[tuple]:
    """The noise levels of config.sample that the model was not trained at: the nearest that it was are taken."""
    s = config.sample
    if s.schedule == "model" or max(s.sigma_min, s.sigma_max) <= 0:
        return []
    least, most = noise_levels(process(config.process))
    return [(0 < given and not least <= given <= most, f"sample.{key}", given, f"is outside the noise levels that the "
             f"model knows: the nearest, {end:.4g}, is taken (Karras et al. 2022, code).")
            for key, given, end in (("sigma_min", s.sigma_min, least), ("sigma_max", s.sigma_max, most))]


def _told(rows: list[tuple]) -> list[str]:
    return [f"note: config.{key} = {value!r} {text}" for holds, key, value, text in rows if holds]


def of_another_rate(config: ConfigDict, before: dict[str, object] | None, rate_of: Callable, step: int) -> list[str]:
    """Whether the learning rate of a run that goes on after `step` is another than it was to be.

    before: the run's config until now, by dotted keys; rate_of: config -> the rate as a function of the step.
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
        " For one that stays where it is: --config.optimizer.decay=constant --config.optimizer.learning_rate=RATE.")
    return [f"note: the learning rate after step {step:,} is {is_:.3g}; it was to be {was:.3g} ({said}). The "
            f"optimizer's moments go on.{keep}"]
