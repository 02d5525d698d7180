"""The Frechet distance against its closed form."""
import numpy as np
import pytest

from diffusion.kinds.image import image
from diffusion.metrics.frechet import Statistics, frechet_distance, statistics


def test_of_one_dimension_and_of_commuting_covariances():
    """(m - n)^2 + (s - r)^2 along each common axis."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    s, r, m, n = np.random.default_rng(1).uniform(0.1, 2, (4, 4))
    a, b = (Statistics(mean, rotation * std**2 @ rotation.T) for mean, std in ((m, s), (n, r)))
    expected = np.sum((m - n) ** 2) + np.sum((s - r) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_of_any_two_covariances_is_the_optimal_linear_transport():
    """min over couplings of E|x - y|^2: no joint covariance gives less (Olkin & Pukelsheim 1982)."""
    rng = np.random.default_rng(2)
    a, b = (Statistics(np.zeros(3), x @ x.T) for x in rng.normal(size=(2, 3, 3)))
    found = frechet_distance(a, b)
    root_a, root_b = (np.linalg.cholesky(s.covariance) for s in (a, b))
    for _ in range(200):  # cross-covariances root_a K root_b^T with K orthogonal, the extreme ones
        k = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        assert np.trace(a.covariance + b.covariance - 2 * root_a @ k @ root_b.T) >= found - 1e-12
    u, _, v = np.linalg.svd(root_b.T @ root_a)
    best = np.trace(a.covariance + b.covariance - 2 * root_a @ (v.T @ u.T) @ root_b.T)
    assert found == pytest.approx(best, rel=1e-10)


def test_of_a_set_and_itself_is_0_also_where_its_covariance_is_singular():
    x = np.random.default_rng(3).normal(size=(5, 20))
    assert abs(frechet_distance(statistics(x), statistics(x))) < 1e-6
    shifted = frechet_distance(statistics(x), statistics(x + 0.5))
    assert shifted == pytest.approx(20 * 0.25, rel=1e-6)


def test_pixels_are_pooled_to_blocks_means():
    images = np.arange(2 * 32 * 32 * 3, dtype=np.float32).reshape(2, 32, 32, 3)
    pooled_pixels = image().pooled
    pooled = pooled_pixels(images)
    assert pooled.shape == (2, 8 * 8 * 3)
    assert pooled[1, 3] == pytest.approx(images[1, :4, 4:8, 0].mean())
    assert pooled_pixels(images[:, :8, :8]).shape == (2, 192) and pooled_pixels(images[:, :6, :6]).shape == (2, 108)
