"""Exact sums of feature vectors and of their outer products, bit for bit the same for any order, batch size or number
of devices.

A feature is rounded to a multiple of a small step and cut into three digits of 8 bits. Products of digits over up to
256 rows are whole numbers below 2^24, which a float32 (or a bfloat16 with a float32 sum) holds exactly; they are
accumulated as integers, and converted to float64 once at the end. The rounding is that of float32 for a feature near
its limit.
"""
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.metrics.frechet import Statistics
from diffusion.typing import Array

ROWS = 256   # rows in one product
BITS = 24    # of a feature, with its sign
_LEVELS = 5  # powers of 256 in a product of two features


def zeros(dimension: int) -> dict[str, Array]:
    """Empty sums. All int32: `outer` [2, 5, D, D] and `sum` [2, 3, D] are numbers in two parts, high and low."""
    return {"outer": jnp.zeros((2, _LEVELS, dimension, dimension), jnp.int32),
            "sum": jnp.zeros((2, 3, dimension), jnp.int32), "count": jnp.zeros((), jnp.int32)}


def add(total: dict[str, Array], features: Array, valid: Array, limit: float) -> dict[str, Array]:
    """Adds the rows of `features` [N, D] where `valid` [N]; their absolute values are below `limit`."""
    scale = 2.0 ** (BITS - 1) / limit
    whole = jnp.where(valid[:, None], jnp.rint(features * scale), 0).astype(jnp.int32)
    for first in range(0, len(whole), ROWS):
        part = whole[first:first + ROWS]
        digits = [(part >> 16), (part >> 8) & 255, part & 255]  # of 256^2, 256, 1; the first has the sign
        a, b, c = (digit.astype(jnp.float32) for digit in digits)
        product = lambda x, y: jnp.dot(x.T, y).astype(jnp.int32)  # noqa: E731
        twice = lambda x, y: (p := product(x, y)) + p.T  # noqa: E731
        levels = [product(a, a), twice(a, b), twice(a, c) + product(b, b), twice(b, c), product(c, c)]
        total = total | {"outer": carried(total["outer"], jnp.stack(levels)),
                         "sum": carried(total["sum"], jnp.stack([digit.sum(0) for digit in digits]))}
    return total | {"count": total["count"] + valid.sum(dtype=jnp.int32)}


def carried(parts: Array, term: Array) -> Array:
    """[high, low] + term: low stays in 0 .. 2^24 - 1."""
    low = parts[1] + term
    return jnp.stack([parts[0] + (low >> 24), low & (2**24 - 1)])


@dataclass(frozen=True)
class Sums:
    """The sums of `count` features in float64, which can be added and give all statistics."""
    count: int
    sum: np.ndarray    # [D]
    outer: np.ndarray  # [D, D]

    @classmethod
    def from_total(cls, total: dict[str, Array], limit: float) -> "Sums":
        total = jax.device_get(total)
        step = limit / 2.0 ** (BITS - 1)
        join = lambda parts: parts[0].astype(np.float64) * 2.0**24 + parts[1]  # noqa: E731
        weigh = lambda digits: sum(digit * 256.0 ** (len(digits) - 1 - i) for i, digit in enumerate(digits))  # noqa: E731
        return cls(int(total["count"]), weigh(join(total["sum"])) * step, weigh(join(total["outer"])) * step**2)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.count + other.count, self.sum + other.sum, self.outer + other.outer)

    def __sub__(self, other: "Sums") -> "Sums":
        return Sums(self.count - other.count, self.sum - other.sum, self.outer - other.outer)

    def statistics(self) -> Statistics:
        """Mean, and covariance with the divisor count - 1."""
        mean = self.sum / self.count
        return Statistics(mean, (self.outer - np.outer(mean, self.sum)) / (self.count - 1))
