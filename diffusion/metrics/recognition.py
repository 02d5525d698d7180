"""Metrics from the classes that a classifier recognises in examples: accuracy, identity, variety within a class.

recognised: int [N, n], the class of each of an example's n pictures (`classifier.ClassifierExtractor`): one of an image
or a clip of sound, one a frame of a video.
"""
from collections.abc import Sequence

import numpy as np

from diffusion.errors import DataError


def accuracy(recognised: np.ndarray, labels: np.ndarray) -> float:
    """The share of examples recognised as their label [N]; of samples: the label that was asked for."""
    return float(np.mean(majority(recognised) == labels))


def identity(recognised: np.ndarray, labels: np.ndarray | None = None) -> float:
    """The share of examples with one class in all their pictures, which is the label [N] if there are labels."""
    same = (recognised == recognised[:, :1]).all(1)
    return float(np.mean(same if labels is None else same & (recognised[:, 0] == labels)))


def deviation_within_class(x: np.ndarray, classes: np.ndarray, of: Sequence[int]) -> float:
    """The mean over the classes `of` of the total standard deviation of the features x [N, D] of each class, the root
    of the sum of their variances. classes: int [N]. A class with fewer than two examples counts as 0."""
    groups = [np.asarray(x[classes == c], np.float64) for c in of]
    return float(np.mean([np.sqrt(group.var(0, ddof=1).sum()) if len(group) > 1 else 0.0 for group in groups]))


def deviation_ratio(x: np.ndarray, recognised: np.ndarray, real: np.ndarray, real_recognised: np.ndarray) -> float:
    """`deviation_within_class` of samples over that of real examples, in the classes recognised in both alike, so that
    a sample of another class than was asked for adds nothing: 1 if samples vary as much as real ones, 0 if all of a
    class are alike. Classes that the samples lack count as 0. Raises DataError if the real ones do not vary."""
    classes = majority(real_recognised)
    of = [c for c, number in enumerate(np.bincount(classes)) if number > 1]
    least = deviation_within_class(real, classes, of) if of else 0.0
    if not least:
        raise DataError(f"The {len(real)} real examples do not vary within a class: a deviation to compare with needs "
                        "two different ones of a class. Take more of them (config.evaluate.keep).")
    return deviation_within_class(x, majority(recognised), of) / least


def majority(recognised: np.ndarray) -> np.ndarray:
    """int [N]: the class of most pictures of each example, the lowest of equally frequent ones."""
    if recognised.shape[1] == 1:
        return recognised[:, 0]
    counts = np.zeros((len(recognised), int(recognised.max(initial=0)) + 1), np.int64)
    np.add.at(counts, (np.arange(len(recognised))[:, None], recognised), 1)
    return counts.argmax(1)
