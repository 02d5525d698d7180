"""Metrics from nearest neighbours of features: precision and recall, density and coverage, copies and duplicates."""
from collections.abc import Iterator

import numpy as np

BLOCK = 2048  # rows of a matrix of distances in memory at a time


def squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows of a, |a_i - b_j|^2 of these rows and all rows of b), in float64, block by block."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norm = np.sum(b**2, 1)
    for first in range(0, len(a), BLOCK):
        rows = slice(first, min(first + BLOCK, len(a)))
        yield rows, np.maximum(np.sum(a[rows] ** 2, 1)[:, None] + norm - 2 * a[rows] @ b.T, 0)


def radii(x: np.ndarray, k: int) -> np.ndarray:
    """The squared distance of each row to its k-th nearest other row: [N]."""
    out = np.empty(len(x))
    for rows, d in squared_distances(x, x):
        d[np.arange(len(d)), np.arange(rows.start, rows.stop)] = -1.0  # the row itself comes first
        out[rows] = np.partition(d, k, axis=1)[:, k]
    return out


def manifolds(real: np.ndarray, fake: np.ndarray, k: int = 3, k_density: int = 5) -> dict[str, float]:
    """precision and recall (Kynkäänniemi et al. 2019, Eq. 2, k = 3), density and coverage (Naeem et al. 2020, Eq. 2 to
    4, k = 5) of features [N, D] and [M, D]."""
    balls, balls_5, balls_fake = radii(real, k), radii(real, k_density), radii(fake, k)
    within, density = np.zeros(len(fake), bool), np.zeros(len(fake))
    near, covered = np.full(len(real), np.inf), np.zeros(len(real), bool)
    for rows, d in squared_distances(fake, real):
        within[rows] = (d <= balls).any(1)
        density[rows] = (d <= balls_5).sum(1) / k_density
        near = np.minimum(near, d.min(0))
        covered |= (d <= balls_fake[rows][:, None]).any(0)
    return {"precision": float(within.mean()), "recall": float(covered.mean()), "density": float(density.mean()),
            "coverage": float((near <= balls_5).mean())}


def nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The distance of each row of a to the nearest row of b: [N]."""
    return np.concatenate([np.sqrt(d.min(1)) for _, d in squared_distances(a, b)])


def memorisation(fake: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Measures whether samples lie nearer to training images than to held-out images, with equally many of both.

    closer_to_train: the share of samples nearer to training images; 0.5 without memorisation (Meehan et al. 2020, "A
    Non-Parametric Test to Detect Data-Copying", Section 3). distance_ratio: the median of nearest distance to train /
    to held-out; 1 without memorisation.
    """
    n = min(len(train), len(held_out))
    to_train, to_held_out = nearest(fake, train[:n]), nearest(fake, held_out[:n])
    return {"closer_to_train": float((to_train < to_held_out).mean()),
            "distance_ratio": float(np.median(to_train / np.maximum(to_held_out, 1e-12)))}


def duplicates(fake: np.ndarray, real: np.ndarray) -> float:
    """The share of samples whose nearest other sample is closer than the 1 % quantile of this distance among as many
    real images: 0.01 if the model repeats itself no more than the data do."""
    n = min(len(fake), len(real))
    return float((radii(fake[:n], 1) < np.quantile(radii(real[:n], 1), 0.01)).mean())
