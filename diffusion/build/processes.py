"""The process of config.process."""
import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion import config as config_lib
from diffusion.build.rules import choose, finite, need
from diffusion.core import continuous, processes, schedules, time_densities
from diffusion.core.learned_schedule import LearnedSchedule
from diffusion.errors import ConfigError

# Discrete: tables of beta_1 .. beta_T.
SCHEDULES = {
    "linear": lambda c: schedules.linear(c.steps, start=c.beta_start, end=c.beta_end),
    "scaled_linear": lambda c: schedules.scaled_linear(c.steps, start=c.beta_start, end=c.beta_end),
    "sigmoid": lambda c: schedules.sigmoid(c.steps, start=c.beta_start, end=c.beta_end),
    "cosine": lambda c: schedules.cosine(c.steps, offset=c.offset, max_beta=c.max_beta),
    "constant": lambda c: schedules.constant(c.steps, end=c.beta_end),
    "jsd": lambda c: schedules.jsd(c.steps),
    "warmup": lambda c: schedules.warmup(c.steps, start=c.beta_start, end=c.beta_end, share=c.warmup_share),
    "table": lambda c: np.asarray(c.betas, np.float64),
    "table_of": lambda c: schedules.of_process(PROCESSES[c.table_of](c), c.steps),
}
# In continuous time.
PROCESSES = {
    "vp": lambda c: continuous.VP(beta_min=c.beta_min, beta_max=c.beta_max, t_min=c.t_min),
    "sub_vp": lambda c: continuous.SubVP(beta_min=c.beta_min, beta_max=c.beta_max, t_min=c.t_min),
    "ve": lambda c: continuous.VE(sigma_min=c.sigma_min, sigma_max=c.sigma_max, t_min=c.t_min),
    "edm": lambda c: continuous.VarianceExploding(sigma_min=c.sigma_min, sigma_max=c.sigma_max),
    "flow": lambda c: continuous.Flow(shift=c.shift, t_min=c.t_min),
    "shifted_cosine": lambda c: continuous.Cosine(shift=c.shift, log_snr_min=c.log_snr_min, log_snr_max=c.log_snr_max),
    "learned": lambda c: learned_schedule(c).process(learned_schedule(c).init(jax.random.key(0))),
    "laplace": lambda c: continuous.Laplace(mean=c.log_snr_mean, scale=c.log_snr_scale, t_min=c.t_min),
}
PRESERVING = {"vp", "shifted_cosine", "laplace"}  # those with alpha^2 + sigma^2 = 1, as a chain of betas has


def learned_schedule(c: ConfigDict) -> LearnedSchedule:
    """The schedule whose parameters are trained; in PROCESSES is the process that it starts from."""
    c = config_lib.own(c, "process")
    need(c.hidden >= 0, "process.hidden", c.hidden, "must not be negative (Kingma et al. 2021: 1024; 0: a line).")
    return LearnedSchedule(log_snr_min=c.log_snr_min, log_snr_max=c.log_snr_max, hidden=c.hidden,
                           learned_ends=c.learned_ends)


def noise_levels(proc: processes.Process) -> tuple[float, float]:
    """sigma / alpha at the least and the most noisy time that the network knows."""
    with jax.enable_x64(True):
        return tuple(float(proc.noise_level(np.float64(t))) for t in (time_densities.clean_end(proc), proc.t_max))


def betas(c: ConfigDict) -> np.ndarray:
    """The schedule [T] by its name, before `zero_terminal_snr`."""
    if c.name in PROCESSES:
        raise ConfigError(f"config.process.name = {c.name!r} is a process in continuous time and has no table of "
                          f"betas. Those that have: {', '.join(sorted(SCHEDULES))}.")
    c = config_lib.own(c, "process")
    need(c.steps >= 1, "process.steps", c.steps, "the number of noising steps T must be 1 or more (the papers: 1000).")
    need(0 < c.beta_start <= c.beta_end < 1, "process.beta_start", c.beta_start,
         f"the paper's linear schedule needs 0 < beta_start <= beta_end < 1 (Ho et al. 2020: 1e-4 and 0.02), and "
         f"beta_end is {c.beta_end!r}.")
    need(0 < c.max_beta < 1, "process.max_beta", c.max_beta, "must lie in (0, 1) (Nichol & Dhariwal 2021: 0.999).")
    need(c.offset >= 0, "process.offset", c.offset, "must not be negative (Nichol & Dhariwal 2021: 0.008).")
    need(0 <= c.warmup_share <= 1, "process.warmup_share", c.warmup_share, "is a share of the steps (Ho et al. 2020, "
         "code: 0.1 and 0.5).")
    if c.name == "table_of":
        choose(PRESERVING, "process.table_of", c.table_of)
        check_continuous(c)
    if c.name == "table":
        need(len(c.betas) == c.steps and all(0 < beta < 1 for beta in c.betas), "process.betas",
             f"{len(c.betas)} numbers", f"a table needs process.steps = {c.steps} numbers in (0, 1).")
    table = SCHEDULES[c.name](c)
    need(bool(np.all((0 < table) & (table <= 1))), "process.name", c.name, "its betas leave (0, 1] with these keys: "
         f"they lie in [{np.min(table):g}, {np.max(table):g}].")
    return table


def process(c: ConfigDict) -> processes.Process:
    """The process. Which predictions it allows is the model's to say."""
    choose(SCHEDULES | PROCESSES, "process.name", c.name)
    c = config_lib.own(c, "process")
    finite(c, "process")
    if c.name in PROCESSES:
        need(not c.zero_terminal_snr, "process.zero_terminal_snr", True, "rescales a table of betas (Lin et al. 2024), "
             f"which process.name = {c.name!r} has not.")
        check_continuous(c)
        found = PROCESSES[c.name](c)
        check_ends(c, found)
        return found
    table = betas(c)
    return processes.DiscreteProcess(betas=schedules.zero_terminal_snr(table) if c.zero_terminal_snr else table,
                                     label_scale=1000 / len(table) if c.rescale_times else 1.0)


def check_continuous(c: ConfigDict) -> None:
    """The keys of the processes in continuous time."""
    need(0 < c.t_min < 1, "process.t_min", c.t_min, "must lie in (0, 1) (Song et al. 2021: 1e-5).")
    need(0 < c.beta_min < c.beta_max, "process.beta_min", c.beta_min,
         f"must be positive and below beta_max = {c.beta_max!r} (Song et al. 2021: 0.1 and 20).")
    need(0 < c.sigma_min < c.sigma_max, "process.sigma_min", c.sigma_min, "must be positive and below sigma_max = "
         f"{c.sigma_max!r} (Karras et al. 2022: 0.002 and 80; Song et al. 2021, VE: 0.02 and 100 for data in [-1, 1]).")
    need(c.shift > 0, "process.shift", c.shift, "must be positive; 1 shifts nothing (Hoogeboom et al. 2023: 64 / "
         "resolution; Esser et al. 2024: 3).")
    need(c.log_snr_min < c.log_snr_max, "process.log_snr_min", c.log_snr_min,
         f"must be below log_snr_max = {c.log_snr_max!r} (Salimans & Ho 2022: -20 and 20; Kingma et al. 2021: -5 and "
         "13.3; Hoogeboom et al. 2023: -15 and 15).")
    need(c.log_snr_scale > 0, "process.log_snr_scale", c.log_snr_scale, "must be positive (Hang et al. 2024: 0.5).")


def check_ends(c: ConfigDict, proc: processes.Process) -> None:
    """That float32 holds the noise levels, whose squares the losses and solvers take."""
    try:
        low, high = noise_levels(proc)
    except OverflowError:
        low = high = float("nan")
    need(1e-17 < low < high and (high < 1e17 or high == float("inf")), "process.name", c.name, f"has noise levels from "
         f"{low:.3g} to {high:.3g} with these keys of config.process, and float32 holds those from 1e-17 to 1e17.")
