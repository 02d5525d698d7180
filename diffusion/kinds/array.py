"""Arrays of floats of any rank, standardised by a mean and a deviation for each channel (the last axis)."""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from diffusion.core import numerics
from diffusion.errors import DataError, DivergedError, require
from diffusion.kinds.base import Example, Record, check_stored
from diffusion.typing import Array, Keys

LARGEST = 30.0   # a root mean square of standardised data above this, or below its reciprocal, is refused
_CHECKED = 4096   # examples whose root mean square is computed


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Arrays x of one shape; x0 = (x - mean) / deviation, by channels."""
    shape: tuple[int, ...]
    mean: tuple[float, ...] = ()       # of each channel, or of all; (): not measured yet
    deviation: tuple[float, ...] = ()  # the same
    bounds = None
    levels = None
    field, called, endings = "x", "array", ()
    rounding = "none: float32, in the data's units"
    draws = False

    @property
    def stored(self) -> dict:
        """The array alone."""
        return {"x": (self.shape, np.float32)}

    @property
    def scaling(self) -> tuple:
        """Mean and deviation."""
        return self.mean, self.deviation

    @property
    def measured(self) -> bool:
        """Whether mean and deviation are known."""
        return bool(self.mean)

    def measure(self, source: Sequence) -> dict[str, tuple[float, ...]]:
        """The keys of config.data that `measure` finds on the data."""
        self._check_first(source, "config.data")
        return dict(zip(("mean", "deviation"), measure(source, self.shape)))

    def assumed(self) -> dict[str, tuple[float, ...]]:
        """Usual values of the keys that are measured, where the data are not at hand."""
        return {"mean": (0.0,), "deviation": (1.0,)}

    def standards(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation, float32 [1, ..., C or 1] to broadcast against [B, ...]. Raises ValueError if they are not
        measured."""
        if not self.measured:
            raise ValueError("mean and deviation are not measured: see build.measured")
        return tuple(np.asarray(values, np.float32).reshape(*[1] * len(self.shape), -1)
                     for values in (self.mean, self.deviation))

    def log_volume(self, mask: Array | None = None) -> Array:
        """log |dx / dx0| of the valid entries, [B] or a scalar: -log p(x) is -log p(x0) plus this."""
        each = np.broadcast_to(np.log(self.standards()[1].astype(np.float64)), (1, *self.shape)).astype(np.float32)
        if mask is None:
            return numerics.sum_over(jnp.asarray(each))[0]
        return numerics.sum_over(jnp.broadcast_to(each, (len(mask), *self.shape)), mask)

    def check(self, source: Sequence, where: str) -> None:
        """Raises DataError if the examples are not floats of this shape, or far from a deviation of 1 when
        standardised."""
        x = self._check_first(source, where)
        if not np.issubdtype(x.dtype, np.floating):
            raise DataError(f"The arrays of {where} must be floats, but they are {x.dtype}. Images are of "
                            "data.kind=image; other whole numbers must be converted to floats first.")
        if not self.measured:
            return
        (mean, deviation), count = self.standards(), min(len(source), _CHECKED)
        rows = source.gather(np.arange(count)) if hasattr(source, "gather") else {"x": x[None]}
        x = rows["x"] if "mask" not in rows else np.where(self._full(rows["mask"]), rows["x"], mean)
        size = float(np.sqrt(np.mean(((x - mean) / deviation).astype(np.float64) ** 2)))
        if not 1 / LARGEST <= size <= LARGEST:
            raise DataError(f"With data.mean = {self.mean} and data.deviation = {self.deviation}, "
                            f"the root mean square of {where} is {size:.3g} (its values: {x.min():.4g} .. "
                            f"{x.max():.4g}), and not about 1: such data are not standardised. Leave both keys empty, "
                            "so that they are measured; for values 0 .. 255 of images, store uint8 and use "
                            "data.kind=image.")

    def _check_first(self, source: Sequence, where: str) -> np.ndarray:
        """The first array. Raises DataError if there is none, or for another shape."""
        if not len(source):
            raise DataError(f"{where} has no examples.")
        check_stored(self, source[0], "array", where)
        x = np.asarray(source[0]["x"])
        if x.shape != self.shape:
            remedy = (f"set --config.data.shape={','.join(map(str, x.shape))}" if x.ndim else
                      "store numbers as [N, 1], with --config.data.shape=1")
            raise DataError(f"The arrays of {where} have the shape {list(x.shape)}, but the config asks for "
                            f"{list(self.shape)}: {remedy}.")
        return x

    def needs_load(self, encoded: bool) -> bool:
        """A record is read as it is. Raises DataError for files."""
        if encoded:
            raise DataError("data.kind = 'array' is of arrays of floats, and not of files: choose data.kind=image, or "
                            "another kind that reads them.")
        return False

    def load(self, raw: dict, rng: np.random.Generator | None) -> dict:
        """The record itself."""
        return raw

    def prepare(self, record: Record, keys: Callable[[str], Keys] | None = None) -> Example:
        """{"x": [B, ...], "mask": bool [B, ...] if there is one, ...} -> the standardised x0, 0 where it is masked, and
        the record's other entries as conditions."""
        mean, deviation = self.standards()
        x0, mask = (jnp.asarray(record["x"], jnp.float32) - mean) / deviation, record.get("mask")
        if mask is not None:
            mask = self._full(jnp.asarray(mask))
            x0 = jnp.where(mask, x0, 0)
        return Example(x0, {name: value for name, value in record.items() if name not in ("x", "mask")}, mask)

    def finish(self, x0: np.ndarray) -> np.ndarray:
        """The arrays in their own units."""
        mean, deviation = self.standards()
        if bad := int((~np.isfinite(x0.reshape(len(x0), -1))).any(axis=1).sum()):
            raise DivergedError(f"{bad} of {len(x0)} sampled arrays contain NaN or infinity. Sample with "
                                "config.network.dtype=float32 or with an earlier checkpoint (--checkpoint=STEP).")
        return np.asarray(x0, np.float32) * deviation + mean

    def write(self, folder: Path, batches: Iterable[np.ndarray], count: int, titles: Sequence[str] = ()) -> str:
        """samples.npz and a scatter plot."""
        from diffusion.io import array_files  # imports matplotlib, which takes half a second
        array_files.save_arrays(folder, batches, count=count)
        return "scatter.png and samples.npz"

    def preview(self, path: Path, samples: np.ndarray, titles: Sequence[str] = ()) -> None:
        """A scatter plot."""
        from diffusion.io import array_files
        array_files.save_scatter(path, samples)

    def pooled(self, x0: np.ndarray) -> np.ndarray:
        """The first 256 numbers of each array."""
        return x0.reshape(len(x0), -1)[:, :256].astype(np.float64)

    def _full(self, mask: Array) -> Array:
        """bool [B, ...] with as many axes as x0."""
        return mask.astype(bool).reshape(*mask.shape, *[1] * (len(self.shape) + 1 - mask.ndim))


def array(*, shape: tuple[int, ...] = (),      # of one array, such as (2,) for points of the plane
          mean: tuple[float, ...] = (),        # of each channel (the last axis), or of all; empty: measured
          deviation: tuple[float, ...] = (),   # their standard deviations; empty: measured
          ) -> ArraySpec:
    """Arrays of floats, standardised; nothing is clipped, and likelihoods are densities in nats."""
    require(shape and all(isinstance(n, int) and n >= 1 for n in shape), "shape", shape, "is the shape of one array, "
            "one positive whole number or more: (2,) for points of the plane.")
    require(bool(mean) == bool(deviation), "mean", mean, "and data.deviation are both given, or both measured.")
    for name, values in (("mean", mean), ("deviation", deviation)):
        require(len(values) in (0, 1, shape[-1]), name, values, f"is one number, or one for each of {shape[-1]} "
                "channels.")
    require(all(value > 0 for value in deviation), "deviation", deviation, "must be positive.")
    return ArraySpec(shape=tuple(shape), mean=tuple(mean), deviation=tuple(deviation))


def measure(source: Sequence, shape: tuple[int, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all examples of a source with `gather`; masked entries do not
    count. A constant channel has the deviation 1. Raises DataError for a source that must be read example by example.
    """
    if not hasattr(source, "gather"):
        raise DataError("Mean and deviation are measured on data in memory only: give data.mean and data.deviation.")
    rows = source.gather(np.arange(len(source)))
    x = rows["x"].astype(np.float64).reshape(-1, shape[-1])
    if "mask" in rows:
        mask = rows["mask"].reshape(*rows["mask"].shape, *[1] * (len(shape) + 1 - rows["mask"].ndim))
        kept = np.broadcast_to(mask, rows["x"].shape).reshape(-1, shape[-1])
        number = np.maximum(kept.sum(0), 1)
        mean = np.where(kept, x, 0).sum(0) / number
        deviation = np.sqrt((np.where(kept, x - mean, 0) ** 2).sum(0) / number)
    else:
        mean, deviation = x.mean(0), x.std(0)
    return tuple(map(float, mean)), tuple(float(d) if d > 0 else 1.0 for d in deviation)


KINDS = {"array": array}
