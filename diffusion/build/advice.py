"""What is allowed and known to be poor: words for the log, each with its reason and source."""
from ml_collections import ConfigDict

from diffusion.build.processes import SCHEDULES


def of_training(config: ConfigDict) -> list[str]:
    """For --mode=train."""
    c, process = config.loss, config.process
    return _told([
        (c.name == "denoising" and c.space == "x0" and config.prediction == "eps" and c.weighting == "simple",
         "loss.space", c.space, "weighs an error in eps by 1 / SNR, without bound towards noise (Salimans & Ho 2022, "
         "Section 4): predict x0 or v, or measure in eps."),
        (c.name == "vlb" and c.density == "uniform", "loss.density", c.density, "L_vlb by uniform times has noisy "
         "gradients (Nichol & Dhariwal 2021, Section 3.3, Fig. 6): loss.density=importance, or loss.name=hybrid."),
        (c.name == "continuous_vlb" and not c.stratified, "loss.stratified", False, "evenly spread times make the "
         "bound's estimate less noisy at no cost (Kingma et al. 2021, Appendix I.1)."),
        (process.name == "edm" and c.density == "uniform", "loss.density", c.density, "is uniform in the noise level "
         f"up to {process.sigma_max:g}, nearly all of it where nothing is to be learned (Karras et al. 2022, Section "
         "5, Fig. 5a): loss.density=log_normal."),
        (config.prediction == "edm" and c.name == "denoising" and c.space != "edm" and c.weighting != "edm",
         "loss.weighting", c.weighting, "lets the gradient's size vary with the noise level, which the "
         "preconditioning is made to avoid (Karras et al. 2022, Eq. 8): loss.weighting=edm."),
        (config.data.size >= 128 and process.shift == 1 and process.name in ("shifted_cosine", "flow"),
         "process.shift", process.shift, f"leaves images of {config.data.size} pixels too clean for most of the time: "
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
    ])


def _told(rows: list[tuple]) -> list[str]:
    return [f"note: config.{key} = {value!r} {text}" for holds, key, value, text in rows if holds]
