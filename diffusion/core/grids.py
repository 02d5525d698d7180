"""Time grids of discrete samplers, on the host: int32 [S, 2], each row a step from t to t_next < t.

linspace, leading and trailing take (T, steps) with 1 <= steps <= T and give the decreasing times t, int32 [S]; with
steps = T all of them are T, T-1, ..., 1. `pairs` and `constant_stride` make steps of them. In the papers' code time
starts at 0 where it starts at 1 here, so their index is t - 1.
"""
import numpy as np


def linspace(t_max: int, steps: int) -> np.ndarray:
    """Evenly spaced from T to 1, both included (Nichol & Dhariwal 2021, Section 4: rounded real spacing)."""
    times = 1 + np.round(np.linspace(0, t_max - 1, steps))[::-1] if steps > 1 else np.array([t_max])
    return times.astype(np.int32)


def leading(t_max: int, steps: int) -> np.ndarray:
    """1, 1 + k, 1 + 2k, ... with k = floor(T / steps), reversed (Song et al. 2021, DDIM, Appendix D.2 "linear")."""
    return (1 + t_max // steps * np.arange(steps)[::-1]).astype(np.int32)


def trailing(t_max: int, steps: int) -> np.ndarray:
    """round(T - i T / steps): starts at T (Lin et al. 2024, "Common Diffusion Noise Schedules ... Are Flawed").

    By arange as in diffusers, so that T - i T / steps = n + 1/2 is rounded the same way. Its rounding can also add one
    number near 0 at the end, which diffusers keeps (timestep -1) and which is cut here.
    """
    return np.round(np.arange(t_max, 0, -t_max / steps))[:steps].astype(np.int32)


def pairs(times: np.ndarray, end: int = 0) -> np.ndarray:
    """Each step ends where the next begins, and the last at `end`."""
    return np.stack([times, np.append(times[1:], end)], axis=1).astype(np.int32)


def constant_stride(times: np.ndarray, t_max: int, end: int = 0) -> np.ndarray:
    """Each step goes T // S down, or to `end` if that is below the least noisy time, as diffusers' DDIMScheduler does.

    Where T / S is not whole, a step may not end where the next begins.
    """
    following = times - t_max // len(times)
    return np.stack([times, np.where(following >= 1, following, end)], axis=1).astype(np.int32)
