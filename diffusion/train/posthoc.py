"""Averages chosen after the training: Karras et al. (2024), "EDM2", Section 3.2 and Appendix C.

Snapshots of a few power function averages, taken as the training goes, are combined to the average of another width.
All in float64, on the host. Equation numbers are the paper's.
"""
from collections.abc import Sequence

import numpy as np

from diffusion.errors import require
from diffusion.train.averages import Power

PREFIX = "posthoc:"  # of the name of such weights, "posthoc:0.08"
TOLERANCE = 0.1      # largest error of an average's weights over the images, relative to their norm
TRIED = np.arange(0.005, 12**-0.5, 0.005)  # widths, for a message


def correlation(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """The inner product over the images of the weights of two power function averages, gamma_a at t_a images and
    gamma_b at t_b (Eq. 151, Algorithm 3)."""
    exponent = np.where(t_a < t_b, gamma_b, -gamma_a)
    return ((gamma_a + 1) * (gamma_b + 1) * (t_a / t_b) ** exponent
            / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b)))


def solve(images: Sequence[float], gammas: Sequence[float], at: float, gamma: float) -> tuple[np.ndarray, float]:
    """(coefficients [N], error) of snapshots, taken after `images` [N] of averages `gammas` [N].

    Their combination is nearest to the average `gamma` after `at` images, in the least squares of its weights, and is
    then scaled to the sum 1 (Algorithm 3). The error is that of the weights before, relative to their norm.
    """
    t, g = np.asarray(images, np.float64), np.asarray(gammas, np.float64)
    a = correlation(t[:, None], g[:, None], t[None], g[None])
    b = correlation(t, g, np.float64(at), np.float64(gamma))
    x = np.linalg.solve(a, b)
    norm = correlation(np.float64(at), np.float64(gamma), np.float64(at), np.float64(gamma))
    return x / np.sum(x), float(np.sqrt(max(1 - b @ x / norm, 0.0)))


def coefficients(images: Sequence[float], gammas: Sequence[float], at: float, sigma_rel: float) -> np.ndarray:
    """The coefficients [N] of snapshots for the average of width sigma_rel after `at` images; see `solve`. Raises
    FieldError for a width that these snapshots cannot reach within TOLERANCE, and names those that they can."""
    gamma = Power.of_width(sigma_rel).gamma
    found, error = solve(images, gammas, at, gamma)
    if error > TOLERANCE:
        can = [s for s in TRIED if solve(images, gammas, at, Power.of_width(s).gamma)[1] <= TOLERANCE]
        reach = f"{min(can):.3g} to {max(can):.3g}" if can else "none"
        require(False, "sigma_rel", sigma_rel, f"cannot be reached: the nearest combination of the {len(gammas)} "
                f"snapshots is off by {error:.0%} of its norm. Within {TOLERANCE:.0%} they reach {reach}. More "
                "snapshots reach more.")
    return found
