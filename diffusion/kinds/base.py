"""The interface of kinds of data, and the examples that a training step or a likelihood takes from them."""
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from diffusion.core import conditions
from diffusion.core.conditions import Declared
from diffusion.errors import ConfigError, DataError
from diffusion.typing import Array, Cond, Keys

Record = Mapping[str, Array]  # one batch of stored examples: arrays [B, ...] by name


class Example(NamedTuple):
    """What a loss or a likelihood is computed of, for B examples."""
    x0: Array                   # float32 [B, ...]
    cond: Cond                  # all that the record holds besides x0 and mask
    mask: Array | None = None   # bool [B, ...], broadcasts to x0: its valid entries; None: all


class Spec(Protocol):
    """One kind of data: the way from stored records to x0, and from x0 to files."""
    shape: tuple[int, ...]               # of one x0
    bounds: tuple[float, float] | None   # x0 lies within them; None: nothing is clipped
    levels: int | None                   # evenly spaced values within the bounds, on which all data lie; None: real
                                         # numbers, so that likelihoods are densities, in nats
    stored: Mapping[str, tuple[tuple[int, ...], Any]]  # shape and type of what a record must hold of each example
    field: str                           # the name of the record's array that holds the data: "image"
    called: str                          # one example, in messages: "image"
    endings: tuple[str, ...]             # of the files that `load` decodes
    draws: bool                          # whether `load` draws, in training
    scaling: tuple                       # what x0 depends on beside its shape: models share parameters, or one guides
                                         # another, only with the same
    rounding: str                        # how `finish` makes values of samples, in metric records

    def needs_load(self, encoded: bool) -> bool:
        """Whether the examples of a source pass through `load`; encoded: they are files."""

    def load(self, raw: dict, rng: np.random.Generator | None) -> dict:
        """A record of fixed shapes, on the host, from an example {"file": `data.files.File` or several, ...} or one
        with an array of another size; without rng it draws nothing. Raises DataError that names an unreadable file."""

    def check(self, source: Sequence, where: str) -> None:
        """Raises DataError if the examples of the source, which `where` names, are not of this kind and shape."""

    def prepare(self, record: Record, keys: Callable[[str], Keys] | None = None) -> Example:
        """The examples of a batch, under jit: scaled, and augmented by the keys [B] of each named stream; without
        `keys` not augmented."""

    def finish(self, x0: np.ndarray) -> np.ndarray:
        """[B, ...] of samples -> the values that are written. Raises DivergedError for NaN."""

    def write(self, folder: Path, batches: Iterable[np.ndarray], count: int, titles: Sequence[str] = ()) -> str:
        """Writes `count` finished samples into the new folder, and returns the names of its main files. titles: a text
        for each sample, such as its class."""

    def preview(self, path: Path, samples: np.ndarray, titles: Sequence[str] = ()) -> None:
        """Writes a PNG that shows finished samples."""

    def gap(self, first: float, last: float) -> np.ndarray:
        """bool, broadcasts to x0 without B: true from `first` to `last` of the kind's own axis, seconds of sound or
        frames of a clip. Kinds without such an axis have no `gap`. Raises FieldError for a part that is empty or
        whole."""

    def pooled(self, x0: np.ndarray) -> np.ndarray:
        """float [B, D], D <= 256, of samples: what `--mode=compare` takes distances of."""
    # A kind whose examples a classifier can see (metrics/classifier.py) also has
    #   pictures(values [B, ...] finished) -> [B, n, h, w, c], uint8 or float32: the image, a spectrogram, the frames;
    # and one with metrics of its own, as may a source,
    #   measures: {name of the metric: values [B, ...] finished -> float [B]}, whose mean is the metric.


# (record, keys of each stream or None) -> Example, with the conditions that the network takes
Prepare = Callable[..., Example]


def preparation(spec: Spec, declared: Declared, rates: Mapping[str, float] | None = None) -> Prepare:
    """`spec.prepare` for a network that takes the conditions `declared`: others are left out, and those that the record
    lacks get their default. rates: the probability, by name, with which training hides a condition."""
    rates, nulls = rates or {}, conditions.nulls(declared)

    def prepare(record: Record, keys: Callable[[str], Keys] | None = None) -> Example:
        example = spec.prepare(record, keys)
        cond: dict[str, Any] = {}
        for name, one in declared.items():
            if name not in example.cond and one.default is None:
                raise ConfigError(f"The network needs the condition {name!r}, which has no default, and the data do "
                                  f"not hold it. They hold: {', '.join(example.cond) or 'none'}.")
            cond[name] = example.cond[name] if name in example.cond else jnp.asarray(
                one.rows(one.default, len(example.x0)))
        return example._replace(cond=cond if keys is None else conditions.dropped(cond, rates, nulls, keys))
    return prepare


def check_stored(spec: Spec, record: Mapping[str, Any], kind: str, where: str) -> None:
    """Raises DataError unless one record (without B) of the source `where` holds what this kind of data needs. Only a
    network needs a label (`core.conditions.check_record`)."""
    for name in spec.stored:
        if name not in record and name != "label":
            raise DataError(f"data.kind = {kind!r} takes records that hold {name!r}, but {where} gives "
                            f"{', '.join(record)}. Choose the kind that fits the data, or another source.")
