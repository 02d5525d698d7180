"""Features of a stream of images, and their statistics: exact sums, some of the features, class probabilities.

Memory does not grow with the number of images. Results do not depend on the batches of the stream or the number of
devices: each device gets ROWS images at a time, always the same ones together, and the sums are exact.
"""
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
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

ROWS = 32     # images per device at a time; 8 is a fifth faster on a CPU, but sums then depend on the number of devices
GROUPS = 10   # parts of the set with separate sums, for error bars


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The statistics collected from one set of images."""
    count: int
    shape: tuple[int, ...]                     # an image's, [H, W, C]
    groups: list[moments.Sums]                 # of "pool", for GROUPS parts of the set in order
    spatial: Statistics | None                 # if the extractor has such features
    kept: np.ndarray                           # float32 [K, D]: the features of the first K images
    score: tuple[float, float] | None = None   # the Inception Score
    digest: str = ""                           # SHA-256 of all images
    repeated: int = 0                          # images equal to an earlier one, byte for byte
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def sums(self) -> moments.Sums:
        return sum(self.groups[1:], self.groups[0])

    def statistics(self) -> Statistics:
        return self.sums.statistics()


def collect(extractor: Extractor, images: Iterable[np.ndarray], count: int, *, mesh: Mesh, keep: int,
            report: Callable[[int], None] = lambda n: None) -> Collected:
    """Statistics of the first `count` images, given as uint8 [b, H, W, 1 or 3] in batches of any sizes.

    keep: how many of the features stay, from the first on. report: called with the number of newly finished images. All
    processes must get the same images. Raises DataError for images of another kind or too few images; DivergedError
    for features that are not finite.
    """
    of_images, zeros, add = compile_steps(extractor, mesh)
    params = jax.device_put(extractor.params, sharding.replicated(mesh))
    rows = ROWS * sharding.batch_shards(mesh)
    together = max(1, moments.ROWS // rows)  # batches per summation: the matrices of the sums are large
    seen, kept, score, groups, spatial = ImageLedger(count), [], None, [], None
    stream = ImageBuffer(seen.through(images))
    pending: list = []  # a dispatch runs while the host reads the previous one

    def settle():
        nonlocal score
        while pending:
            first, number, ok, features, logits = pending.pop()
            ok, features = np.asarray(ok)[:number], np.asarray(features)[:number]
            if not ok.all():
                raise DivergedError(f"The features of image {first + int(np.argmin(ok))} are not finite, or far beyond "
                                    f"the range of {extractor.name}: are its weights damaged?")
            if first < keep:
                kept.append(features[:keep - first])
            if logits is not None:
                score = score or Score(count, logits.shape[1])
                score.add(np.asarray(logits)[:number])
            report(number)

    ends, begin, total = [(g + 1) * count // GROUPS for g in range(GROUPS)], 0, zeros()
    held: list = []  # batches not summed yet, with the places of their images
    for first in range(0, count, rows):
        number = min(rows, count - first)
        batch = stream.take(number)
        if len(batch) < number:
            raise DataError(f"There are {seen.count} images, but {count} are to be evaluated.")
        batch = np.concatenate([batch, np.zeros((rows - number, *batch.shape[1:]), np.uint8)])
        found, ok = of_images(params, sharding.put_rows(batch, mesh))
        settle()
        pending.append((first, number, ok, found["pool"], found.get("logits")))
        held.append((found, np.arange(first, first + rows)))
        while True:  # for each part of the set with some of these images
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
                     score=score and score.result(), digest=seen.digest(), repeated=seen.repeated)


def placed(shape: tuple[int, ...], mesh: Mesh):
    """The sharding of a matrix of sums: its rows over the batch's devices if they divide it, else replicated."""
    fits = len(shape) == 4 and shape[2] % sharding.batch_shards(mesh) == 0
    return sharding.over_batch(mesh, 2) if fits else sharding.replicated(mesh)


def outputs(extractor: Extractor) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of an extractor's outputs for one image: "pool", and "logits" and "spatial" if it has them."""
    return jax.eval_shape(extractor.features, extractor.params, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8))


@functools.lru_cache(maxsize=2)  # evaluations of one program share them
def compile_steps(extractor: Extractor, mesh: Mesh):
    """(params, images uint8 [B,H,W,C]) -> (features by name, ok [B]: whether all are finite and within limits);
    () -> empty sums, of the outputs that the extractor has limits for; and
    (sums, features of some batches, valid [all their images]) -> sums."""
    limits, everywhere = extractor.kind.limits, sharding.replicated(mesh)

    def of_images(params, images):
        # Each device computes the features of its images independently; then all devices get all rows, and each sums
        # its rows of the matrices.
        found = jax.lax.with_sharding_constraint(extractor.features(params, images), sharding.over_batch(mesh))
        fine = [jnp.all(jnp.abs(found[name]) < limit, 1) for name, limit in limits.items()]  # false for NaN, too
        return found, jnp.all(jnp.stack(fine), 0)

    shapes = outputs(extractor)

    def zeros():
        return {name: moments.zeros(shapes[name].shape[-1]) for name in limits}

    def add(total, found, valid):
        return {name: moments.add(total[name], jnp.concatenate([batch[name] for batch in found]), valid, limit)
                for name, limit in limits.items()}

    shardings = jax.tree.map(lambda x: placed(x.shape, mesh), jax.eval_shape(zeros))
    return (jax.jit(of_images, out_shardings=everywhere), jax.jit(zeros, out_shardings=shardings),
            jax.jit(add, donate_argnums=0, out_shardings=shardings))


def digest_of(images: Iterable[np.ndarray], count: int) -> str:
    """`Collected.digest` of the first `count` images, without computing features."""
    seen = ImageLedger(count)
    for _ in seen.through(images):
        pass
    return seen.digest()


class ImageBuffer:
    """Turns batches of any sizes into batches of requested sizes."""

    def __init__(self, batches: Iterable[np.ndarray]):
        self.batches, self.rest = iter(batches), []

    def take(self, number: int) -> np.ndarray:
        """The next `number` images, fewer at the end."""
        while sum(map(len, self.rest)) < number and (batch := next(self.batches, None)) is not None:
            self.rest.append(batch)
        together = np.concatenate(self.rest) if self.rest else np.zeros((0,), np.uint8)
        self.rest = [together[number:]]
        return together[:number]


class ImageLedger:
    """Records the images that pass through: number, shape, digest, and repeated images."""

    def __init__(self, limit: int):
        self.limit, self.count, self.repeated, self.shape = limit, 0, 0, ()
        self._sha256, self._images, self._hash = hashlib.sha256(), set(), hashlib.blake2b

    def through(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The batches up to `limit` images. Raises DataError for a batch that is not uint8 [b, H, W, 1 or 3], or whose
        size differs from the first."""
        for batch in batches:
            batch = np.asarray(batch)[:self.limit - self.count]
            if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[-1] not in (1, 3):
                raise DataError(f"Images must be uint8 [N, H, W, 3] (or 1: grey), got {batch.dtype} "
                                f"{list(batch.shape)}.")
            self.shape = self.shape or batch.shape[1:]
            if batch.shape[1:] != self.shape:
                raise DataError(f"Image {self.count} is {batch.shape[1:]}, but the images before it are {self.shape}.")
            self._sha256.update(np.ascontiguousarray(batch).tobytes())
            for image in batch:
                key = self._hash(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
                self.repeated += key in self._images
                self._images.add(key)
            self.count += len(batch)
            yield batch
            if self.count == self.limit:
                return

    def digest(self) -> str:
        return self._sha256.hexdigest()
