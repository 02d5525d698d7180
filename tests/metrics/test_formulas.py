"""The metrics on given features: against torch-fidelity's (golden/metrics.npz), by definition, in known cases."""
import pathlib

import jax
import numpy as np
import pytest
from metrics import golden_metrics as case

from diffusion.metrics import moments, neighbours
from diffusion.metrics.frechet import Statistics, distances_to, frechet_distance, span_of, statistics
from diffusion.metrics.inception_score import Score, inception_score
from diffusion.metrics.kernel import kernel_distance, mmd2

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "metrics.npz")
FAKE, REAL = (case.features(seed, count).astype(np.float64) for seed, count in ((1, case.FAKE), (2, case.REAL)))


def test_frechet_distance_equals_torch_fidelitys():
    a, b = statistics(FAKE), statistics(REAL)
    assert frechet_distance(a, b) == pytest.approx(float(GOLDEN["fid"]), rel=1e-6)
    assert distances_to(b, [a, a]) == pytest.approx([float(GOLDEN["fid"])] * 2, rel=1e-6)


@pytest.mark.parametrize("count", [30, 200])
def test_parts_of_few_vectors_have_the_same_distances_in_their_span(count):
    rng = np.random.default_rng(0)
    x, reference = rng.normal(size=(count, 100)) + 1, statistics(rng.normal(size=(500, 100)))
    parts, span = [statistics(x[i::3]) for i in range(3)], span_of(statistics(x).covariance, count)
    assert span is None if count > 100 else span.shape == (100, count - 1)
    expected = [frechet_distance(part, reference) for part in parts]
    assert distances_to(reference, parts, span) == pytest.approx(expected, rel=1e-7)


def test_kernel_distance_equals_torch_fidelitys_with_the_same_subsets():
    mean, error = kernel_distance(FAKE, REAL, subsets=case.SUBSETS, size=case.SUBSET)
    assert mean == pytest.approx(GOLDEN["kid"][0], rel=1e-9)
    assert error * np.sqrt(case.SUBSETS) == pytest.approx(GOLDEN["kid"][1], rel=1e-9)


def test_the_kernel_distance_of_one_law_is_0_in_the_mean():
    rng = np.random.default_rng(0)
    found = [mmd2(rng.normal(size=(60, 8)), rng.normal(size=(80, 8))) for _ in range(300)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(300) and min(found) < 0


@pytest.mark.parametrize("batch", [500, 7])
def test_inception_score_equals_torch_fidelitys(batch):
    logits = case.logits()
    found = inception_score((logits[i:i + batch] for i in range(0, 500, batch)), 500, logits.shape[1])
    np.testing.assert_allclose(found, GOLDEN["inception_score"], rtol=1e-9)


def test_inception_score_of_sure_and_even_classes_is_their_number():
    assert inception_score([np.eye(10)[np.arange(200) % 10] * 100], 200, 10)[0] == pytest.approx(10)
    assert inception_score([np.ones((200, 10))], 200, 10)[0] == pytest.approx(1)


def test_inception_score_of_images_sorted_by_class_takes_them_from_everywhere():
    scores = [Score(400, 10, shuffled=shuffled) for shuffled in (False, True)]
    for score in scores:
        score.add(np.eye(10)[np.arange(400) // 40] * 100)
    assert scores[0].result()[0] == pytest.approx(1) and 7 < scores[1].result()[0] < 10


def test_precision_and_recall_equal_torch_fidelitys():
    found = neighbours.manifolds(REAL, FAKE)
    np.testing.assert_allclose([found["precision"], found["recall"]], GOLDEN["precision_recall"], rtol=1e-6)
    assert 0.01 < found["recall"] < 0.99 or 0.01 < found["precision"] < 0.99  # the case is not a trivial one


def test_density_and_coverage_by_their_definition():
    """Naeem et al. (2020), Eqs. 2 to 4, in loops."""
    rng = np.random.default_rng(1)
    real, fake = rng.normal(size=(40, 3)), rng.normal(size=(30, 3)) + 0.3
    apart = lambda a, b: np.sqrt(((a[:, None] - b) ** 2).sum(-1))  # noqa: E731
    ball = np.sort(apart(real, real), 1)[:, 5]
    inside = apart(real, fake) <= ball[:, None]
    found = neighbours.manifolds(real, fake)
    assert found["density"] == pytest.approx(inside.sum() / (5 * 30))
    assert found["coverage"] == pytest.approx(inside.any(1).mean())


def test_manifolds_of_one_law_and_of_a_dropped_mode():
    rng = np.random.default_rng(2)
    real, fake = rng.normal(size=(2, 500, 4))
    same = neighbours.manifolds(real, fake)
    assert min(same.values()) > 0.8
    real[:250] += 30
    dropped = neighbours.manifolds(real, fake)
    assert dropped["precision"] > 0.8 and dropped["recall"] < 0.6 and dropped["coverage"] < 0.6


def test_copies_of_the_training_set_are_found():
    rng = np.random.default_rng(3)
    train, held_out, fresh = rng.normal(size=(3, 400, 6))
    honest = neighbours.memorisation(fresh, train, held_out)
    assert 0.43 < honest["closer_to_train"] < 0.57 and 0.95 < honest["distance_ratio"] < 1.05
    copied = neighbours.memorisation(train + 0.01 * fresh, train, held_out)
    assert copied["closer_to_train"] > 0.99 and copied["distance_ratio"] < 0.1
    assert neighbours.duplicates(fresh, train) < 0.05
    assert neighbours.duplicates(np.concatenate([fresh[:200], fresh[:200]]), train) == 1.0


def test_sums_are_exact_whatever_the_order_and_the_batches():
    rng = np.random.default_rng(4)
    x = (rng.random((1000, 24)) * 60 - 20).astype(np.float32)
    add = jax.jit(moments.add, static_argnums=3)

    def sums(order, sizes):
        total, first = moments.zeros(24), 0
        for size in sizes:
            rows = np.zeros((600, 24), np.float32)
            rows[:size] = x[order[first:first + size]]
            total, first = add(total, rows, np.arange(600) < size, 64.0), first + size
        return moments.Sums.from_total(total, 64.0)

    one, other = sums(np.arange(1000), [600, 400]), sums(rng.permutation(1000), [1, 599, 300, 100])
    assert one.count == other.count == 1000
    np.testing.assert_array_equal(one.sum, other.sum)
    np.testing.assert_array_equal(one.outer, other.outer)
    step = 64.0 / 2**23  # what a feature is rounded to
    whole = np.rint(x.astype(np.float64) / step).astype(np.int64).astype(object)
    np.testing.assert_allclose(one.outer, (whole.T @ whole * step**2).astype(np.float64), rtol=1e-15)
    found, expected = one.statistics(), statistics(x)
    np.testing.assert_allclose(found.covariance, expected.covariance, atol=1e-4 * step * 1e4)
    half = sums(np.arange(400), [400])
    np.testing.assert_allclose((one - half + half).outer, one.outer, rtol=1e-15)


def test_many_sums_do_not_overflow():
    total = moments.zeros(3)
    add = jax.jit(moments.add, static_argnums=3)
    x = np.full((256, 3), -63.999, np.float32)
    for _ in range(600):  # 2^24 of the highest level's sums are passed many times
        total = add(total, x, np.ones(256, bool), 64.0)
    found = moments.Sums.from_total(total, 64.0)
    np.testing.assert_allclose(found.outer, 256 * 600 * 63.999**2, rtol=1e-6)
    np.testing.assert_allclose(found.sum, -256 * 600 * 63.999, rtol=1e-6)


def test_a_singular_covariance_has_a_distance_of_its_own_size():
    """Two flat Gaussians across each other: |C_a| and |C_b| add up, since their product is 0."""
    a, b = Statistics(np.zeros(3), np.diag([1.0, 0, 0])), Statistics(np.zeros(3), np.diag([0, 4.0, 0]))
    assert frechet_distance(a, b) == pytest.approx(5.0, rel=1e-12)


def test_the_error_of_the_frechet_distance_is_the_jackknifes():
    """Over ten parts of the samples: sqrt(9/10 sum (d_i - mean d)^2), d_i the distance without part i."""
    from diffusion.metrics import values
    from diffusion.metrics.features import Collected
    rng = np.random.default_rng(0)
    x, reference = rng.normal(size=(200, 3)), statistics(rng.normal(size=(500, 3)) + 0.3)
    parts = np.split(x, 10)
    found = values.distance(Collected(count=200, shape=(), spatial=None, kept=x, groups=[
        moments.Sums(len(part), part.sum(0), part.T @ part) for part in parts]), reference)
    without = [frechet_distance(statistics(np.concatenate(parts[:i] + parts[i + 1:])), reference) for i in range(10)]
    assert found.value == pytest.approx(frechet_distance(statistics(x), reference), rel=1e-8)
    assert found.error == pytest.approx(np.sqrt(0.9 * np.sum((without - np.mean(without)) ** 2)), rel=1e-6)
