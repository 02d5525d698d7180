import itertools
import pathlib

import numpy as np
import pytest
from absl import flags

from diffusion.data import pipeline
from diffusion.data.array_records import tfds_source
from diffusion.data.prepare import writer
from diffusion.data.sources import ArraySource
from diffusion.errors import ConfigError, DataError

SIZE = 23
GOLDEN_0_0 = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
GOLDEN_7_3 = [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]


def numbered(size=SIZE):
    """Example i has label i and pixels i."""
    labels = np.arange(size, dtype=np.int32)
    return ArraySource(np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (size, 2, 2, 1)).copy(), labels)


class OneByOne:
    """The same examples, from a source that is not in memory."""

    def __init__(self, source):
        self.source, self.num_classes = source, source.num_classes

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        return self.source[i]


def first(iterator, n):
    out = list(itertools.islice(iterator, n))
    iterator.close()
    return out


def equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


def global_batches(n, shard_count, batch_size=8, size=SIZE, seed=0, skip=0):
    """n batches put together from all hosts, by position."""
    hosts = []
    for i in range(shard_count):
        it = pipeline.batches(numbered(size), batch_size=batch_size, seed=seed, shard_index=i, shard_count=shard_count)
        it.set_state({"global_next_index": skip})  # as states were until November 2026
        hosts.append(first(it, n))
    return [{key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            for parts in zip(*hosts, strict=True)]


def test_shapes_and_types():
    (batch,) = first(pipeline.batches(numbered(), batch_size=8, seed=0, shard_index=1, shard_count=2), 1)
    assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
        "image": ("uint8", (4, 2, 2, 1)), "label": ("int32", (4,)), "position": ("int32", (4,))}


def test_each_epoch_is_another_permutation_of_everything():
    labels = np.concatenate([b["label"] for b in first(pipeline.batches(numbered(), batch_size=8, seed=0), SIZE)])
    epochs = labels.reshape(8, SIZE)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(SIZE), (8, SIZE)))
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_image_and_label_stay_together():
    for batch in first(pipeline.batches(numbered(), batch_size=8, seed=0), 5):
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


def test_seeds_give_unrelated_orders():
    orders = {tuple(pipeline.permutation(50, seed, epoch)) for seed in range(-5, 15) for epoch in range(20)}
    assert len(orders) == 400  # none is another's, shifted by an epoch or otherwise


def test_permutation_is_fixed_for_good():
    np.testing.assert_array_equal(pipeline.permutation(10, 0, 0), GOLDEN_0_0)
    np.testing.assert_array_equal(pipeline.permutation(10, 7, 3), GOLDEN_7_3)


def test_permutations_are_uniform():
    n, epochs = 6, 6000
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), pipeline.permutation(n, 1, epoch)] += 1
    chi2 = np.sum((counts - epochs / n) ** 2) / (epochs / n)
    assert chi2 < 52.6  # 25 degrees of freedom, p = 0.001


@pytest.mark.parametrize("shard_count", [1, 2, 4, 8])
def test_hosts_together_are_the_global_batch(shard_count):
    whole = global_batches(7, 1)
    for batch in whole:
        np.testing.assert_array_equal(batch["position"], np.arange(8))
    equal(global_batches(7, shard_count), whole)  # same examples at the same positions, in the same order


def test_index_batches_are_the_same_order():
    source = numbered()
    for shard in (0, 1):
        options = dict(batch_size=6, seed=3, shard_index=shard, shard_count=2)
        indices = first(pipeline.index_batches(SIZE, **options), 9)
        read = first(pipeline.batches(source, **options), 9)
        assert indices[0]["index"].dtype == indices[0]["position"].dtype == np.int32
        arrays = pipeline.to_arrays(source)
        equal([{"image": arrays["image"][i["index"]], "label": arrays["label"][i["index"]], "position": i["position"]}
               for i in indices], read)


def test_any_kind_of_source_gives_the_same_batches():
    equal(first(pipeline.batches(numbered(), batch_size=8, seed=0), 9),
          first(pipeline.batches(OneByOne(numbered()), batch_size=8, seed=0), 9))


def test_batch_k_is_a_pure_function_of_k():
    whole = first(pipeline.batches(numbered(), batch_size=8, seed=0), 40)
    for k in (37, 0, 5):
        it = pipeline.batches(OneByOne(numbered()), batch_size=8, seed=0)
        it.set_state({"next_example": 8 * k})
        equal(first(it, 2), whole[k:k + 2])


def test_a_batch_may_be_larger_than_the_set():
    (batch,) = first(pipeline.batches(numbered(3), batch_size=8, seed=0), 1)
    np.testing.assert_array_equal(np.sort(batch["label"][:3]), np.arange(3))
    np.testing.assert_array_equal(np.sort(batch["label"][3:6]), np.arange(3))
    (batch,) = first(pipeline.batches(numbered(1), batch_size=4, seed=0), 1)
    np.testing.assert_array_equal(batch["label"], 0)


def test_bad_input():
    with pytest.raises(ConfigError, match="multiple of the number of hosts, which is 3, but it is 8"):
        pipeline.batches(numbered(), batch_size=8, seed=0, shard_count=3)
    with pytest.raises(ConfigError, match="positive.*it is 0"):
        pipeline.index_batches(5, batch_size=0, seed=0)
    with pytest.raises(DataError, match="no examples"):
        pipeline.batches(numbered(0), batch_size=8, seed=0)
    with pytest.raises(ValueError, match="shard_index 2 is not in 0..1"):
        pipeline.batches(numbered(), batch_size=8, seed=0, shard_index=2, shard_count=2)


def test_state_continues_exactly_on_another_number_of_hosts():
    whole = global_batches(20, 1)
    hosts = [pipeline.batches(numbered(), batch_size=8, seed=0, shard_index=i, shard_count=2) for i in (0, 1)]
    for host in hosts:
        for _ in range(13):
            next(host)
    states = [host.get_state() for host in hosts]
    assert states[0] == states[1] == {"next_example": 13 * 8}
    for shard_count in (1, 2, 4):
        equal(global_batches(7, shard_count, skip=13), whole[13:])


def test_every_state_can_be_returned_to():
    for source in (numbered(), OneByOne(numbered())):
        data = pipeline.batches(source, batch_size=8, seed=0)
        start = data.get_state()
        whole = list(itertools.islice(data, 12))
        for k in range(12):
            data.set_state(start | {"next_example": 8 * k})
            equal(list(itertools.islice(data, 12 - k)), whole[k:])
        data.close()


@pytest.mark.parametrize("kind", ["batches", "index_batches"])
def test_no_example_is_lost_or_seen_twice_with_another_batch_size_and_number_of_hosts(kind):
    def make(**shards):
        if kind == "batches":
            return pipeline.batches(OneByOne(numbered()), seed=0, **shards)
        return pipeline.index_batches(SIZE, seed=0, **shards)

    def seen(count, hosts, size, state):
        its = [make(batch_size=size, shard_index=i, shard_count=hosts) for i in range(hosts)]
        for it in its:
            it.set_state(state)
        order = [next(it)["label" if kind == "batches" else "index"] for _ in range(count) for it in its]
        assert len({it.get_state()["next_example"] for it in its}) == 1
        state = its[0].get_state()
        for it in its:
            it.close()
        return np.concatenate(order), state

    one, state = seen(4, 1, 8, {"next_example": 0})
    two, state = seen(5, 2, 6, state)
    three, state = seen(6, 4, 12, state)
    assert state == {"next_example": 4 * 8 + 5 * 6 + 6 * 12}
    stream = np.concatenate([pipeline.permutation(SIZE, 0, epoch) for epoch in range(9)])
    np.testing.assert_array_equal(np.concatenate([one, two, three]), stream[:state["next_example"]])


def test_an_error_while_reading_ahead_arrives_as_it_is():
    class Broken(OneByOne):
        def __getitem__(self, i):
            raise DataError(f"Record {i} cannot be read")

    with pytest.raises(DataError, match="Record .* cannot be read"):
        first(pipeline.batches(Broken(numbered()), batch_size=8, seed=0), 1)


@pytest.fixture
def tiny_tfds(tmp_path):
    """(images, a TFDS source of them, the path of its one file)"""
    images = np.random.default_rng(0).integers(0, 256, (SIZE, 4, 4, 3), dtype=np.uint8)
    folder = pathlib.Path(tmp_path, "tiny", "1.0.0")
    writer.write(folder, {"train": (images, np.zeros(SIZE, np.int32))},
                 writer.Layout(name="tiny", description="", class_names=("a",), shape=images.shape[1:]))
    return images, tfds_source("tiny", str(tmp_path), "train"), folder / "tiny-train.array_record-00000-of-00001"


@pytest.fixture
def parsed_flags():
    """Grain's worker processes are handed absl's flags."""
    was_parsed = flags.FLAGS.is_parsed()
    flags.FLAGS.mark_as_parsed()
    yield
    if not was_parsed:
        flags.FLAGS.unparse_flags()


def test_worker_processes_change_nothing(tiny_tfds, parsed_flags):
    images, source, _ = tiny_tfds
    whole = first(pipeline.batches(source, batch_size=8, seed=0), 8)
    np.testing.assert_array_equal(whole[0]["image"], images[pipeline.permutation(SIZE, 0, 0)[:8]])
    workers = pipeline.batches(source, batch_size=8, seed=0, workers=2)
    head = list(itertools.islice(workers, 5))
    state = workers.get_state()
    workers.close()
    alone = pipeline.batches(source, batch_size=8, seed=0)
    alone.set_state(state)
    equal(head + first(alone, 3), whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_record_is_named_by_whoever_reads_it(tiny_tfds, parsed_flags, workers):
    _, source, path = tiny_tfds
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 10] ^= 0xff
    path.write_bytes(data)
    it = pipeline.batches(source, batch_size=8, seed=0, workers=workers)
    try:
        with pytest.raises(DataError, match="Record 0 of .* cannot be read"):
            list(itertools.islice(it, 3))  # one epoch
    finally:
        it.close()


@pytest.mark.parametrize("state", [{}, *({"next_example": place} for place in (-3, 10**30, 1.5, "x", None, [], True))])
def test_a_state_that_is_none_is_refused(state):
    data = pipeline.index_batches(10, batch_size=2, seed=0)
    with pytest.raises((KeyError, ValueError)):
        data.set_state(state)
    assert data.get_state() == {"next_example": 0}
