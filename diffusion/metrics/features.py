"""Features of a stream of examples, and their statistics: exact sums, some of the features, class probabilities.

Memory does not grow with the number of examples, apart from a few numbers of each. Results do not depend on the batches
of the stream or the number of devices: each device gets ROWS examples at a time, always the same ones together, and the
sums are exact.
"""
import functools
import hashlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion.errors import DataError, DivergedError
from diffusion.metrics import moments
from diffusion.metrics.extractors import Extractor
from diffusion.metrics.frechet import Statistics
from diffusion.metrics.inception_score import Score
from diffusion.parallel import sharding

ROWS = 32     # examples per device at a time; 8 is a fifth faster on a CPU, but sums then depend on how many devices
GROUPS = 10   # parts of the set with separate sums, for error bars


# finished values [B, ...] -> a number of each, [B], whose mean is a metric
Measure = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The statistics collected from one set of examples."""
    count: int
    shape: tuple[int, ...]                     # an example's, such as [H, W, C]
    groups: list[moments.Sums]                 # of "pool", for GROUPS parts of the set in order
    spatial: Statistics | None                 # if the extractor has such features
    kept: np.ndarray                           # float32 [K, D]: the features of the first K examples
    recognised: np.ndarray | None = None       # int32 [K, n]: the classes that a classifier sees in their pictures
    labels: np.ndarray | None = None           # int32 [K]: their labels; of samples, those asked for
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)  # float64 [count] by name, see Measure
    score: tuple[float, float] | None = None   # the Inception Score
    digest: str = ""                           # SHA-256 of all examples
    repeated: int = 0                          # examples equal to an earlier one, byte for byte
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def sums(self) -> moments.Sums:
        return sum(self.groups[1:], self.groups[0])

    def statistics(self) -> Statistics:
        return self.sums.statistics()


def collect(extractor: Extractor, values: Iterable[np.ndarray], count: int, *, mesh: Mesh, keep: int,
            measures: Mapping[str, Measure] = types.MappingProxyType({}), called: str = "image",
            shuffled: bool = False, report: Callable[[int], None] = lambda n: None) -> Collected:
    """Statistics of the first `count` examples, given as finished values [b, ...] that the extractor takes, such as
    images uint8 [b, H, W, 1 or 3], in batches of any sizes.

    keep: how many of the features stay, from the first on. measures: computed of all examples, by name. called: one
    example, in messages. shuffled: score random parts of the set, which may be sorted by class. report: called with the
    number of newly finished examples. All processes must get the same examples. Raises DataError for examples of
    another kind or too few of them; DivergedError for features that are not finite.
    """
    of_inputs, zeros, add = compile_steps(extractor, mesh)
    params = jax.device_put(extractor.params, sharding.replicated(mesh))
    rows = ROWS * sharding.batch_shards(mesh)
    together = max(1, moments.ROWS // rows)  # batches per summation: the matrices of the sums are large
    seen, kept, recognised, score, groups, spatial = Ledger(count, called), [], [], None, [], None
    stream, measured = Buffer(seen.through(values)), {name: [] for name in measures}
    pending: list = []  # a dispatch runs while the host reads the previous one

    def settle():
        nonlocal score
        while pending:
            first, number, ok, features, logits, classes = pending.pop()
            ok, features = np.asarray(ok)[:number], np.asarray(features)[:number]
            if not ok.all():
                raise DivergedError(f"The features of {called} {first + int(np.argmin(ok))} are not finite, or far "
                                    f"beyond the range of {extractor.name}: are its weights damaged?")
            if first < keep:
                kept.append(features[:keep - first])
                if classes is not None:
                    recognised.append(np.asarray(classes)[:number][:keep - first])
            if logits is not None:
                score = score or Score(count, logits.shape[1], shuffled=shuffled)
                score.add(np.asarray(logits)[:number])
            report(number)

    ends, begin, total = [(g + 1) * count // GROUPS for g in range(GROUPS)], 0, zeros()
    held: list = []  # batches not summed yet, with the places of their examples
    for first in range(0, count, rows):
        number = min(rows, count - first)
        batch = stream.take(number)
        if len(batch) < number:
            raise DataError(f"There are {seen.count} {called}s, but {count} are to be evaluated.")
        for name, measure in measures.items():
            measured[name].append(np.asarray(measure(batch), np.float64))
        batch = np.concatenate([extractor.inputs(batch[i:i + ROWS]) for i in range(0, number, ROWS)])
        batch = np.concatenate([batch, np.zeros((rows - number, *batch.shape[1:]), batch.dtype)])
        found, ok = of_inputs(params, sharding.put_rows(batch, mesh))
        settle()
        pending.append((first, number, ok, found["pool"], found.get("logits"), found.get("recognised")))
        held.append((found, np.arange(first, first + rows)))
        while True:  # for each part of the set with some of these examples
            end = ends[len(groups)]
            ended = first + number >= end
            if ended or len(held) == together:
                filled = (held * together)[:together]
                index = np.concatenate([places for _, places in filled])
                valid = (index >= begin) & (index < end) & (np.arange(together * rows) < len(held) * rows)
                total = add(total, [outputs for outputs, _ in filled], valid)
                held = held[-1:] if first + number > end else []
            if not ended:
                break
            sums = {name: moments.Sums.from_total(one, extractor.kind.limits[name]) for name, one in total.items()}
            groups.append(sums["pool"])
            if "spatial" in sums:
                spatial = sums["spatial"] + spatial if spatial else sums["spatial"]
            begin, total = end, zeros()
            if first + number == end:
                break
    settle()
    return Collected(count=count, shape=seen.shape, groups=groups, spatial=spatial and spatial.statistics(),
                     kept=np.concatenate(kept) if kept else np.zeros((0, 0), np.float32),
                     recognised=np.concatenate(recognised) if recognised else None,
                     measured={name: np.concatenate(parts) for name, parts in measured.items()},
                     score=score and score.result(), digest=seen.digest(), repeated=seen.repeated)


def placed(shape: tuple[int, ...], mesh: Mesh):
    """The sharding of a matrix of sums: its rows over the batch's devices if they divide it, else replicated."""
    fits = len(shape) == 4 and shape[2] % sharding.batch_shards(mesh) == 0
    return sharding.over_batch(mesh, 2) if fits else sharding.replicated(mesh)


def outputs(extractor: Extractor) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of an extractor's outputs for one example: "pool", and "logits", "spatial" and "recognised" if it has
    them."""
    return jax.eval_shape(extractor.features, extractor.params, extractor.example)


@functools.lru_cache(maxsize=2)  # evaluations of one program share them
def compile_steps(extractor: Extractor, mesh: Mesh):
    """(params, inputs [B, ...]) -> (features by name, ok [B]: whether all are finite and within limits);
    () -> empty sums, of the outputs that the extractor has limits for; and
    (sums, features of some batches, valid [all their examples]) -> sums."""
    limits, everywhere = extractor.kind.limits, sharding.replicated(mesh)

    def of_inputs(params, inputs):
        # Each device computes the features of its examples independently; then all devices get all rows, and each sums
        # its rows of the matrices.
        found = jax.lax.with_sharding_constraint(extractor.features(params, inputs), sharding.over_batch(mesh))
        fine = [jnp.all(jnp.abs(found[name]) < limit, 1) for name, limit in limits.items()]  # false for NaN, too
        return found, jnp.all(jnp.stack(fine), 0)

    shapes = outputs(extractor)

    def zeros():
        return {name: moments.zeros(shapes[name].shape[-1]) for name in limits}

    def add(total, found, valid):
        return {name: moments.add(total[name], jnp.concatenate([batch[name] for batch in found]), valid, limit)
                for name, limit in limits.items()}

    shardings = jax.tree.map(lambda x: placed(x.shape, mesh), jax.eval_shape(zeros))
    return (jax.jit(of_inputs, out_shardings=everywhere), jax.jit(zeros, out_shardings=shardings),
            jax.jit(add, donate_argnums=0, out_shardings=shardings))


def digest_of(values: Iterable[np.ndarray], count: int) -> str:
    """`Collected.digest` of the first `count` examples, without computing features."""
    seen = Ledger(count)
    for _ in seen.through(values):
        pass
    return seen.digest()


class Buffer:
    """Turns batches of any sizes into batches of requested sizes."""

    def __init__(self, batches: Iterable[np.ndarray]):
        self.batches, self.rest = iter(batches), []

    def take(self, number: int) -> np.ndarray:
        """The next `number` examples, fewer at the end."""
        while sum(map(len, self.rest)) < number and (batch := next(self.batches, None)) is not None:
            self.rest.append(batch)
        together = np.concatenate(self.rest) if self.rest else np.zeros((0,), np.uint8)
        self.rest = [together[number:]]
        return together[:number]


class Ledger:
    """Records the examples that pass through: number, shape, digest, and repeated ones."""

    def __init__(self, limit: int, called: str = "image"):
        self.limit, self.called, self.count, self.repeated, self.shape = limit, called, 0, 0, ()
        self._sha256, self._examples, self._hash = hashlib.sha256(), set(), hashlib.blake2b

    def through(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The batches up to `limit` examples. Raises DataError for a batch whose examples' shape differs from the
        first."""
        for batch in batches:
            batch = np.asarray(batch)[:self.limit - self.count]
            self.shape = self.shape or batch.shape[1:]
            if batch.shape[1:] != self.shape:
                raise DataError(f"{self.called.capitalize()} {self.count} is {batch.shape[1:]}, but the "
                                f"{self.called}s before it are {self.shape}.")
            self._sha256.update(np.ascontiguousarray(batch).tobytes())
            for example in batch:
                key = self._hash(np.ascontiguousarray(example).tobytes(), digest_size=16).digest()
                self.repeated += key in self._examples
                self._examples.add(key)
            self.count += len(batch)
            yield batch
            if self.count == self.limit:
                return

    def digest(self) -> str:
        return self._sha256.hexdigest()
