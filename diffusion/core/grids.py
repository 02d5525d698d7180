"""Time grids of samplers, on the host: [S, 2], each row a step from t to t_next < t.

linspace, leading and trailing are for discrete chains: they take (T, steps) with 1 <= steps <= T and return decreasing
times t, int32 [S]; steps = T gives T, T-1, ..., 1. Time starts at 1 here and at 0 in the papers' code, so their index
is t - 1.

The others are for any process in continuous time, from t_max down to the least noisy time: float64 [S], computed in
double precision. `pairs` and `constant_stride` turn times into steps.
"""
import jax
import numpy as np

from diffusion.core import preconditioning
from diffusion.core.processes import Process
from diffusion.core.schedule_scaling import ScheduleScaling
from diffusion.core.time_densities import clean_end
from diffusion.errors import require


def linspace(t_max: int, steps: int) -> np.ndarray:
    """Evenly spaced from T to 1, both included (Nichol & Dhariwal 2021, Section 4: rounded real spacing)."""
    times = 1 + np.round(np.linspace(0, t_max - 1, steps))[::-1] if steps > 1 else np.array([t_max])
    return times.astype(np.int32)


def leading(t_max: int, steps: int, *,
            offset: int = 0,  # added to each time
            ) -> np.ndarray:
    """1, 1 + k, 1 + 2k, ... with k = floor(T / steps), reversed (Song et al. 2021, DDIM, Appendix D.2 "linear").

    Raises FieldError if the offset puts the first time above T.
    """
    require(offset >= 0, "offset", offset, "must not be negative.")
    times = (1 + t_max // steps * np.arange(steps)[::-1] + offset).astype(np.int32)
    require(times[0] <= t_max, "offset", offset, f"with {steps} steps the first time would be {times[0]}, above T = "
            f"{t_max}.")
    return times


def trailing(t_max: int, steps: int) -> np.ndarray:
    """round(T - i T / steps): starts at T (Lin et al. 2024, "Common Diffusion Noise Schedules ... Are Flawed").

    Uses arange as diffusers does, so that T - i T / steps = n + 1/2 rounds the same way. arange can append one more
    number near 0, by rounding: diffusers keeps it (timestep -1), it is dropped here.
    """
    return np.round(np.arange(t_max, 0, -t_max / steps))[:steps].astype(np.int32)


def uniform_time(process: Process, steps: int,
                 t_min: float = -1.0,  # the last noisy time; -1: the process's default
                 ) -> np.ndarray:
    """Evenly spaced in t (Song et al. 2021, "Score SDE"; EDM's VP column)."""
    return np.linspace(process.t_max, t_min, steps, dtype=np.float64)


def quadratic(process: Process, steps: int, t_min: float = -1.0) -> np.ndarray:
    """Evenly spaced in sqrt(t) (Song et al. 2021, DDIM, Appendix D.2 "quadratic")."""
    return np.linspace(process.t_max**0.5, t_min**0.5, steps, dtype=np.float64) ** 2


def uniform_log_snr(process: Process, steps: int, t_min: float = -1.0) -> np.ndarray:
    """Evenly spaced in log-SNR (Lu et al. 2022, DPM-Solver, Section 3.4; k-diffusion's "exponential")."""
    noise, data = np.log(_levels(process, t_min))
    return of_noise_levels(process, np.exp(np.linspace(noise, data, steps)))


def karras(process: Process, steps: int, t_min: float = -1.0, *, rho: float = 7.0) -> np.ndarray:
    """Evenly spaced in the noise level to the power 1 / rho (Karras et al. 2022, EDM, Eq. 5)."""
    require(rho > 0, "rho", rho, "must be positive (Karras et al. 2022: 7).")
    noise, data = (level ** (1 / rho) for level in _levels(process, t_min))
    return of_noise_levels(process, np.linspace(noise, data, steps) ** rho)


def vp_levels(process: Process, steps: int, t_min: float = -1.0) -> np.ndarray:
    """The noise levels that the VP SDE has at evenly spaced t, from 1 to 1e-3 (EDM, Table 1, column VP)."""
    noise, data = _levels(process, t_min)
    vp = ScheduleScaling(schedule="vp", sigma_min=data, sigma_max=noise)
    with jax.enable_x64(True):
        levels = np.asarray(vp.noise_level(np.linspace(1, vp.epsilon, steps)))
    return of_noise_levels(process, np.append(noise, levels[1:]))  # keeps the first exact


def iddpm_levels(process: Process, steps: int, t_min: float = -1.0) -> np.ndarray:
    """Evenly chosen from the M noise levels of Improved DDPM's cosine schedule (EDM, Table 1, column iDDPM)."""
    noise, data = _levels(process, t_min)
    levels = preconditioning.iddpm_levels()[:-1]
    levels = levels[(levels >= data * (1 - 1e-12)) & (levels <= noise * (1 + 1e-12))]
    chosen = np.round((len(levels) - 1) / max(steps - 1, 1) * np.arange(steps)).astype(int)
    return of_noise_levels(process, levels[chosen])


def of_noise_levels(process: Process, levels: np.ndarray) -> np.ndarray:
    """The times of given noise levels sigma / alpha, such as the lists of Sabour et al. (2024), "Align Your Steps"."""
    with jax.enable_x64(True):
        return np.asarray(process.time_of_log_snr(-2 * np.log(np.asarray(levels, np.float64))), np.float64)


# Members of sample.spacing. One that is `of_chain` takes (T, steps), the others (process, steps, t_min), where t_min is
# a key and -1 means the process's default. One that is `of_levels` needs a finite noise level at t_max. One that
# `leaves_one_out` has at most T - 1 steps.
def open_linspace(t_max: int, steps: int) -> np.ndarray:
    """`linspace` with one more time, of which the least noisy is dropped, as in diffusers' multistep solvers."""
    return linspace(t_max, steps + 1)[:-1]


def open_leading(t_max: int, steps: int, *, offset: int = 0) -> np.ndarray:
    """`leading` with one more time, of which the least noisy is dropped, as in diffusers' multistep solvers."""
    return leading(t_max, steps + 1, offset=offset)[:-1]


def custom_times(process: Process, steps: int, *,
                 custom_times: tuple[float, ...] = (),  # decreasing, one per step: times, or noise levels
                 ) -> np.ndarray:
    """User-given times. Raises FieldError for times outside the model's range by more than 1 %, the slack for published
    lists, which are rounded."""
    whole = process.discrete and all(isinstance(t, int) for t in custom_times)
    require(not whole or all(1 <= t <= process.t_max for t in custom_times), "custom_times", custom_times, "must be "
            f"falling times in 1 .. {process.t_max}.")
    _check_custom(custom_times, process.t_min, process.t_max, "times")
    times = np.asarray(custom_times, np.int32 if whole else np.float64)
    return _falling(np.clip(times, process.t_min, process.t_max), steps, custom_times)


def custom_noise_levels(process: Process, steps: int, *, custom_times: tuple[float, ...] = ()) -> np.ndarray:
    """The times of user-given noise levels. Raises FieldError as `custom_times`."""
    _check_custom(custom_times, *noise_levels(process), "noise_levels")
    times = np.clip(of_noise_levels(process, np.asarray(custom_times)), process.t_min, process.t_max)
    return _falling(times, steps, custom_times)


def _check_custom(given: tuple[float, ...], low: float, high: float, kind: str) -> None:
    require(all(0.99 * low <= value <= 1.01 * high for value in given), "custom_times", given, f"has {kind} outside "
            f"the model's range, {low:.4g} to {high:.4g}.")


def _falling(times: np.ndarray, steps: int, given: tuple[float, ...]) -> np.ndarray:
    require(len(times) == steps and bool(np.all(np.diff(times) < 0)) and times[-1] > 0, "custom_times", given,
            f"must be sample.steps = {steps} falling times or noise levels of the process above 0.")
    return times


def usual_end(process: Process) -> float:
    """The default for the last noisy time of a grid; a process that is finite at t = 0 stops before the data."""
    return float(process.t_end) or 1e-3 * process.t_max


def noise_levels(process: Process) -> tuple[float, float]:
    """sigma / alpha at the least noisy and at the noisiest time that the network is trained at."""
    with jax.enable_x64(True):
        return tuple(float(process.noise_level(np.float64(t))) for t in (clean_end(process), process.t_max))


def _levels(process: Process, t_min: float) -> np.ndarray:
    """The noise levels of t_max and t_min. Raises ValueError where the first is infinite."""
    with jax.enable_x64(True):
        levels = np.array([float(process.noise_level(np.float64(t))) for t in (process.t_max, t_min)])
    if not np.isfinite(levels[0]):
        raise ValueError("at t_max nothing of the data is left: its noise level is infinite")
    return levels


def pairs(times: np.ndarray, end: int = 0) -> np.ndarray:
    """Steps from times: each ends where the next begins, the last at `end`; int32, or float32 for float times."""
    kind = np.int32 if np.issubdtype(np.asarray(times).dtype, np.integer) else np.float32
    return np.stack([times, np.append(times[1:], end)], axis=1).astype(kind)


def constant_stride(times: np.ndarray, t_max: int, end: int = 0) -> np.ndarray:
    """Each step goes T // S down, or to `end` if that is below the least noisy time, as diffusers' DDIMScheduler does.

    Where T / S is not whole, a step may not end where the next begins.
    """
    following = times - t_max // len(times)
    return np.stack([times, np.where(following >= 1, following, end)], axis=1).astype(np.int32)


SPACINGS = {
    "linspace": linspace, "leading": leading, "trailing": trailing, "open_linspace": open_linspace,
    "open_leading": open_leading, "uniform": uniform_time, "quadratic": quadratic, "log_snr": uniform_log_snr,
    "karras": karras, "vp": vp_levels, "iddpm": iddpm_levels, "times": custom_times,
    "noise_levels": custom_noise_levels}
for spacing in (linspace, leading, trailing, open_linspace, open_leading):
    spacing.of_chain = True
for spacing in (open_linspace, open_leading):
    spacing.leaves_one_out = True
for spacing in (uniform_log_snr, karras, vp_levels, iddpm_levels):
    spacing.of_levels = True
