"""The Inception Score (Salimans et al. 2016, "Improved Techniques for Training GANs", Section 4)."""
from collections.abc import Iterable

import numpy as np

SPLITS = 10


class Score:
    """exp E KL(p(y | x) || p(y)) over the images of each of SPLITS parts, accumulated image by image.

    Parts are of successive images, as in the authors' code; shuffled: of images drawn at random, always the same ones,
    for real images, which may be sorted by class.
    """

    def __init__(self, count: int, classes: int, *, shuffled: bool = False):
        self.seen = 0
        ends = [(i + 1) * count // SPLITS for i in range(SPLITS)]
        self.part = np.searchsorted(ends, np.arange(count), side="right")  # of each image
        if shuffled:  # by Philox's words, which NumPy guarantees
            self.part = self.part[np.argsort(np.random.Philox(key=0).random_raw(count), kind="stable")]
        self.numbers = np.zeros(SPLITS)
        self.p = np.zeros((SPLITS, classes))     # sum of p(y | x)
        self.negative_entropy = np.zeros(SPLITS)  # sum of sum_y p log p

    def add(self, logits: np.ndarray) -> None:
        """Adds the next images: logits [b, classes] without the last layer's bias, as in the authors' graph."""
        logits = np.asarray(logits, np.float64)
        log_p = logits - logits.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        p = np.exp(log_p)
        splits = self.part[self.seen:self.seen + len(p)]
        for split, row, entropy in zip(splits, p, (p * log_p).sum(1)):  # one by one, for the same sums with any batches
            self.numbers[split] += 1
            self.p[split] += row
            self.negative_entropy[split] += entropy
        self.seen += len(p)

    def result(self) -> tuple[float, float]:
        """(mean, standard deviation over the parts, as in papers)."""
        mean = self.p / self.numbers[:, None]
        marginal = np.sum(mean * np.log(np.maximum(mean, 1e-300)), 1)
        scores = np.exp(self.negative_entropy / self.numbers - marginal)
        return float(scores.mean()), float(scores.std())


def inception_score(batches: Iterable[np.ndarray], count: int, classes: int) -> tuple[float, float]:
    """The Inception Score of `count` images from batches of their logits."""
    score = Score(count, classes)
    for logits in batches:
        score.add(logits)
    return score.result()
