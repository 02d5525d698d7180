"""The Frechet distance between Gaussians fitted to two sets of vectors, such as features or pooled pixels.

With features of Inception-v3 it is FID (Heusel et al. 2017); with other features it is not called FID.
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Statistics(NamedTuple):
    mean: np.ndarray        # float64 [D]
    covariance: np.ndarray  # float64 [D, D]


def statistics(x: np.ndarray) -> Statistics:
    """The mean and covariance of the rows of x [N, D], N >= 2."""
    x = np.asarray(x, np.float64)
    return Statistics(x.mean(0), np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1]))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2}): a squared distance (Dowson & Landau 1982).

    The last trace is the sum of the singular values of C_a^{1/2} C_b^{1/2}, which avoids roots of rounding errors for
    singular covariances.
    """
    cross = np.linalg.svd(root(a.covariance) @ root(b.covariance), compute_uv=False).sum()
    return float(np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root by eigenvalues; eigenvalues below 0 (rounding) count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def distances_to(reference: Statistics, others: Sequence[Statistics], span: np.ndarray | None = None) -> list[float]:
    """The Frechet distances of several sets to one reference, at a fifth of the cost: by eigenvalues, whose roots err
    by up to 1e-8 of the largest for singular covariances. For error bars and extrapolations.

    span: from `span_of`, columns that span the covariances of all the others.
    """
    def inside(covariance: np.ndarray) -> np.ndarray:
        return covariance if span is None else span.T @ covariance @ span

    r = root(inside(reference.covariance))
    cross = [np.sqrt(np.maximum(np.linalg.eigvalsh(r @ inside(s.covariance) @ r), 0)).sum() for s in others]
    return [float(np.sum((s.mean - reference.mean) ** 2) + np.trace(s.covariance) + np.trace(reference.covariance)
                  - 2 * c) for s, c in zip(others, cross, strict=True)]


def span_of(covariance: np.ndarray, count: int) -> np.ndarray | None:
    """Orthonormal columns [D, count - 1] that span the covariance of `count` vectors and of any part of them; None if
    these may fill the space."""
    if count > len(covariance):
        return None
    return np.linalg.eigh(covariance)[1][:, 1 - count:]
