"""Bits per dimension of a data set: the mean over its examples and its standard error."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion.core.parameterization import Denoiser
from diffusion.core.streams import example_keys
from diffusion.errors import DivergedError
from diffusion.likelihood.base import Estimator
from diffusion.parallel import sharding
from diffusion.typing import Array, Params


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """An estimator compiled for one batch size over all devices of the mesh."""
    run: Callable[..., dict[str, Array]]  # (params, record, index) -> bits_per_dim and the terms
    mesh: Mesh
    batch_size: int

    def __call__(self, params: Params, read: Callable[[np.ndarray], dict[str, np.ndarray]], count: int,
                 report: Callable[[int], None] | None = None) -> dict[str, Any]:
        """{"examples", "bits_per_dim", "standard_error", "terms": {name: {"mean", "standard_error"}}}, plain numbers,
        of the examples 0 .. count - 1.

        read(indices [b]) -> the record of these examples, arrays [b, ...] by name. A term with one number per time is a
        list. report: called after each batch with the number of its examples. Raises DivergedError where a value is not
        finite.
        """
        moments = None
        for first, rows in self.batches(params, read, count):
            number = len(rows["bits_per_dim"])
            if not np.isfinite(rows["bits_per_dim"]).all():
                worst = first + int(np.argmin(np.isfinite(rows["bits_per_dim"])))
                raise DivergedError(f"The likelihood of example {worst} is not finite. Either the model is not finite "
                                    "there, or an adaptive ODE took more than its max_steps: raise that or rtol.")
            moments = merge(moments, Moments.from_rows(rows))
            if report:
                report(number)
        terms = {name: {"mean": _plain(mean), "standard_error": _plain(error)}
                 for name, (mean, error) in moments.summary().items()}
        total = terms.pop("bits_per_dim")
        return {"examples": count, "bits_per_dim": total["mean"], "standard_error": total["standard_error"],
                "terms": terms}

    def batches(self, params: Params, read: Callable[[np.ndarray], dict[str, np.ndarray]],
                count: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(number of the first example, {name: float64 [b, ...]}) in order. The last batch is filled up with its last
        example and cut, so that nothing compiles twice."""
        if count < 1:
            raise ValueError("a likelihood needs an example, got count < 1")
        for first in range(0, count, self.batch_size):
            index = np.minimum(np.arange(first, first + self.batch_size), count - 1).astype(np.int32)
            placed = jax.tree.map(lambda x: sharding.put_rows(x, self.mesh), (dict(read(index)), index))
            number = min(self.batch_size, count - first)
            out = jax.device_get(self.run(params, *placed))
            yield first, {name: np.asarray(value[:number], np.float64) for name, value in out.items()}


def make_evaluator(estimator: Estimator, denoiser: Denoiser, *, mesh: Mesh, batch_size: int, seed: int,
                   prepare: Callable[[dict[str, Array]], Any],
                   transform: Callable = lambda diffusion: diffusion) -> Evaluator:
    """An evaluator of `denoiser`'s models, with `transform` (such as clip_x0) applied to each Diffusion.

    Example i uses keys of (seed, i) only, whatever the batch size and the devices. prepare: record -> x0 and cond, such
    as `kinds.base.preparation`. batch_size is rounded up to a multiple of the mesh's batch shards.
    """
    def run(params, record, index):
        keys = example_keys(jax.random.key(seed), "likelihood", 0, index)
        x0, cond = prepare(record)
        estimate = estimator(keys, transform(denoiser(params)), x0, cond)
        values = {"bits_per_dim": estimate.bits_per_dim, **estimate.terms}
        return jax.tree.map(lambda x: jnp.asarray(x, float), values)

    return Evaluator(run=jax.jit(run, out_shardings=sharding.replicated(mesh)), mesh=mesh,
                     batch_size=sharding.fill(batch_size, mesh))


@dataclass(frozen=True)
class Moments:
    """Number, means and sums of squared deviations by name."""
    number: int
    means: dict[str, np.ndarray]
    squares: dict[str, np.ndarray]

    @classmethod
    def from_rows(cls, rows: dict[str, np.ndarray]) -> "Moments":
        """The moments of rows [b, ...]."""
        means = {name: value.mean(0) for name, value in rows.items()}
        squares = {name: ((value - means[name]) ** 2).sum(0) for name, value in rows.items()}
        return cls(len(next(iter(rows.values()))), means, squares)

    def summary(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """(mean, its standard error) by name; the error of a single example is NaN."""
        divisor = self.number * (self.number - 1) or np.nan
        return {name: (self.means[name], np.sqrt(self.squares[name] / divisor)) for name in self.means}


def merge(a: Moments | None, b: Moments) -> Moments:
    """The moments of two disjoint sets together (Chan, Golub & LeVeque 1979); unlike sums of squares, these do not
    cancel."""
    if a is None:
        return b
    number = a.number + b.number
    apart = {name: b.means[name] - a.means[name] for name in a.means}
    return Moments(number, {name: a.means[name] + apart[name] * b.number / number for name in a.means},
                   {name: a.squares[name] + b.squares[name] + apart[name] ** 2 * a.number * b.number / number
                    for name in a.means})


def _plain(x: np.ndarray) -> float | list | None:
    """For JSON: None where it is not finite."""
    if np.ndim(x):
        return [_plain(one) for one in x]
    return float(x) if np.isfinite(x) else None
