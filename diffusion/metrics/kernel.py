"""The kernel distance: with Inception's features KID (Binkowski et al. 2018, "Demystifying MMD GANs")."""
import numpy as np


def polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x . y / D + 1)^3 for rows [N, D] and [M, D] -> [N, M]; their Section 4.1."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy of two sets of N >= 2 rows each (Gretton et al.
    2012, Eq. 3); it may be below 0."""
    n, m = len(x), len(y)
    xx, yy, xy = polynomial(x, x), polynomial(y, y), polynomial(x, y)
    return float((xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean())


def kernel_distance(a: np.ndarray, b: np.ndarray, *, subsets: int = 100, size: int = 1000,
                    seed: int = 2020) -> tuple[float, float]:
    """The mean of `mmd2` over random subsets of `size` rows, and its standard error.

    a, b: features [N, D] and [M, D]. The subsets equal torch-fidelity's with its default seed.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    rng = np.random.RandomState(seed)
    values = [mmd2(a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)])
              for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values) / np.sqrt(subsets))
