"""Noise schedules of the discrete papers: tables of beta_1 .. beta_T, float64 [T], made on the host.

q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), Ho et al. (2020), Eq. 2.
"""
import numpy as np


def linear(steps: int, *, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """T evenly spaced betas from `start` to `end`: Ho et al. (2020), Section 4 (T = 1000, 1e-4 .. 0.02).

    The end points are the paper's for T = 1000 and are not rescaled for another T.
    """
    return np.linspace(start, end, steps, dtype=np.float64)


def cosine(steps: int, *, offset: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """alpha_bar(t) = f(t)/f(0), f(t) = cos^2((t/T + s)/(1 + s) pi/2), betas clipped at `max_beta`.

    Nichol & Dhariwal (2021), "Improved DDPM", Eq. 17; s = `offset`.
    """
    t = np.arange(steps + 1, dtype=np.float64) / steps
    f = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], max_beta)
