"""Time grids of discrete samplers: decreasing integers t_0 > t_1 > ... > t_S = 0, int32 [S + 1], on the host.

Each takes (T, steps) with 1 <= steps <= T; with steps = T all of them are T, T-1, ..., 0. In the papers' code time
starts at 0 where it starts at 1 here, so their index is t - 1.
"""
import numpy as np


def _grid(times: np.ndarray) -> np.ndarray:
    return np.append(times, 0).astype(np.int32)


def linspace(t_max: int, steps: int) -> np.ndarray:
    """Evenly spaced from T to 1, both included (Nichol & Dhariwal 2021, Section 4: rounded real spacing)."""
    return _grid(1 + np.round(np.linspace(0, t_max - 1, steps))[::-1] if steps > 1 else np.array([t_max]))


def leading(t_max: int, steps: int) -> np.ndarray:
    """1, 1 + k, 1 + 2k, ... with k = floor(T / steps), reversed (Song et al. 2021, DDIM, Appendix D.2 "linear")."""
    return _grid(1 + t_max // steps * np.arange(steps)[::-1])


def trailing(t_max: int, steps: int) -> np.ndarray:
    """round(T - i T / steps): starts at T (Lin et al. 2024, "Common Diffusion Noise Schedules ... Are Flawed")."""
    return _grid(np.round(t_max - np.arange(steps) * (t_max / steps)))
