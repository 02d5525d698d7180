"""The order of the examples, and batches in that order: batch k is a pure function of (seed, k).

One endless stream of examples is cut into global batches. Each epoch is a new permutation of the whole set; epochs
follow each other without a gap, so a batch may end one and begin the next, and may be larger than the set.
Host `shard_index` of `shard_count` gets rows [i b, (i + 1) b) of each global batch, b = batch_size / shard_count, and
their `position`, the places 0..B-1 in the global batch, which key a step's random draws on any number of hosts.

`it.get_state()` is {"next_example": n}, n = the place of the next example in the endless stream, the same on every
host. `it.set_state(state)` continues from there, on any number of hosts and workers and with any batch size: no example
of an epoch is left out or comes twice.
"""
import functools
import sys
import zlib
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from grain.experimental import ElasticIterator

from diffusion.data.sources import Source, gather_examples, read_examples, stacked
from diffusion.errors import ConfigError, DataError

# (raw example, rng) -> record, with a generator for each place of the endless stream
Load = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


def batches(source: Source, *, batch_size: int, seed: int, shard_index: int = 0, shard_count: int = 1,
            workers: int = 0, load: Load | None = None) -> "Batches":
    """This host's rows of batches 0, 1, ...: {"image": uint8 [b, H, W, C], "label": int32 [b], "position": int32 [b]}.

    load: applied to each example as it is read, with draws that are a function of the seed and the example's place in
    the stream. workers: processes that read and decode; 0 reads ahead in one thread. This process reads a source in
    memory, with `gather`, itself, without workers. Worker processes are spawned: absl flags must be parsed and the
    program's entry guarded by `if __name__ == "__main__"`, and the iterator should be closed (`it.close()`) at the end.
    Raises DataError if the set is empty, ConfigError if the shards do not divide batch_size.
    """
    rows = _rows(len(source), batch_size, seed, shard_index, shard_count)
    in_memory = hasattr(source, "gather")
    read = functools.partial(_read, source, rows) if load is None else functools.partial(
        _load, source, rows, load, seed)
    return Batches(read, batch_size, ahead=0 if in_memory else 4,
                   workers=0 if in_memory else workers)


def index_batches(size: int, *, batch_size: int, seed: int, shard_index: int = 0,
                  shard_count: int = 1) -> "Batches":
    """The indices of the batches of `batches`, for `size` examples: {"index": int32 [b], "position": int32 [b]}.

    For data that is held whole on the device. Raises the errors of `batches`.
    """
    return Batches(_rows(size, batch_size, seed, shard_index, shard_count), batch_size, ahead=0, workers=0)


def examples(places: np.ndarray, *, size: int, seed: int) -> np.ndarray:
    """The examples (int32 [B], of a set of `size`) at ascending places [B] int64 of the endless stream."""
    epoch, place = np.divmod(places, size)
    index = np.empty(len(places), np.int32)
    for e in range(epoch[0], epoch[-1] + 1) if len(places) else ():
        here = epoch == e
        index[here] = permutation(size, seed, e)[place[here]]
    return index


def to_arrays(source: Source) -> dict[str, np.ndarray]:
    """All examples of a source, read at once in its order: {"image": uint8 [N, H, W, C], "label": int32 [N]}."""
    return gather_examples(source, range(len(source)))


@functools.lru_cache(maxsize=8)
def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch: int32 [size], each of 0..size-1 once, uniform over all orders.

    Sorts the words of Philox4x64 (Salmon et al. 2011) keyed by (seed, epoch). NumPy guarantees that these never change,
    unlike `Generator.permutation`, so a run resumes in the same order under another version.
    """
    words = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(size)
    order = np.argsort(words, kind="stable").astype(np.int32)
    order.setflags(write=False)
    return order


def _rows(size: int, batch_size: int, seed: int, shard_index: int,
          shard_count: int) -> Callable[[int], dict[str, np.ndarray]]:
    """place -> {"index", "position"} of this host's rows of the global batch that begins at that place."""
    if size < 1:
        raise DataError("The data set has no examples.")
    if batch_size < 1 or batch_size % shard_count:
        raise ConfigError("The batch size must be a positive multiple of the number of hosts, which is "
                          f"{shard_count}, but it is {batch_size}.")
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index {shard_index} is not in 0..{shard_count - 1}")
    b = batch_size // shard_count
    return functools.partial(_host_rows, size=size, seed=seed, positions=range(shard_index * b, (shard_index + 1) * b))


def _host_rows(first: int, *, size: int, seed: int, positions: range) -> dict[str, np.ndarray]:
    position = np.array(positions, np.int32)
    return {"index": examples(first + position.astype(np.int64), size=size, seed=seed), "position": position}


def _read(source: Source, rows: Callable[[int], dict[str, np.ndarray]], first: int) -> dict[str, np.ndarray]:
    at = rows(first)
    return gather_examples(source, at["index"]) | {"position": at["position"]}


def _load(source: Source, rows: Callable[[int], dict[str, np.ndarray]], load: Load, seed: int,
          first: int) -> dict[str, np.ndarray]:
    at = rows(first)
    indices = at["index"].tolist()
    found = [load(raw, generator(seed, first + place)) for raw, place in
             zip(read_examples(source, indices), at["position"].tolist(), strict=True)]
    return stacked(found, indices, source.num_classes) | {"position": at["position"]}


def generator(seed: int, place: int) -> np.random.Generator:
    """The draws of `load` for the example at this place of the endless stream."""
    key = np.array([seed % 2**64, zlib.crc32(b"load")], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, place, 0, 0]))


class Batches:
    """batch(0), batch(B), batch(2B), ... of a batch size B, up to `ahead` of them read in advance.

    An element of the Grain data set is a whole batch, since Grain's cost for each element (some 20 us) would exceed
    that of reading from memory; its ElasticIterator then reads in the same order with any number of workers.
    """

    def __init__(self, batch: Callable[[int], dict[str, Any]], batch_size: int, *, ahead: int, workers: int):
        self._batch, self._size, self._ahead, self._workers = batch, batch_size, ahead, workers
        self._steps = None
        self._next = 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._steps is None:
            self._steps = self._read_from(self._next)
        one = next(self._steps)  # a list of one batch
        self._next += self._size
        return {key: value[0] for key, value in one.items()}

    def get_state(self) -> dict[str, int]:
        return {"next_example": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues from a state of `get_state`. Raises ValueError or KeyError for anything else."""
        self.close()
        # Until November 2026 the state was the number of the next batch.
        place = state["global_next_index"] * self._size if "global_next_index" in state else state["next_example"]
        if type(place) is not int or not 0 <= place < 2**62:
            raise ValueError(f"no place in the data: {place!r}")
        self._next = place

    def close(self) -> None:
        """Ends the workers; another `next` starts them again."""
        if self._steps is not None:
            self._steps.close()
        self._steps = None

    def _read_from(self, first: int) -> grain.DatasetIterator:
        # One thread: more threads are slower, since decoding small images mostly holds Python's lock.
        read = grain.ReadOptions(num_threads=min(self._ahead, 1), prefetch_buffer_size=max(self._ahead, 1))
        processes = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
        begins = grain.MapDataset.range(first, sys.maxsize, self._size)
        return iter(ElasticIterator(begins.map(self._batch), 1, grain.sharding.ShardOptions(0, 1), read_options=read,
                                    multiprocessing_options=processes if self._workers else None))
