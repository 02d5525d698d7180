"""What is read is loaded on the host: crops of larger images, drawn by the example's place in the stream."""
import numpy as np
import pytest

from diffusion import build
from diffusion import config as config_lib
from diffusion.data import pipeline, sources
from diffusion.errors import ConfigError, DataError
from diffusion.kinds.image import image

COUNT, SIZE = 10, (9, 12)
# Each pixel holds its row and column, so that a crop shows its place.
PLACES = np.stack(np.broadcast_arrays(np.arange(9)[:, None], np.arange(12)[None]), axis=-1).astype(np.uint8)
IMAGES = np.concatenate([np.broadcast_to(PLACES, (COUNT, *SIZE, 2)),
                         np.broadcast_to(np.arange(COUNT)[:, None, None, None], (COUNT, *SIZE, 1))], axis=-1)
SOURCE = sources.ArraySource(IMAGES.astype(np.uint8), (np.arange(COUNT) % 3).astype(np.int32))
SPEC = image(size=(4, 8), channels=3, crop="random")


def read(shard_count=1, seed=0, batches=6, start=0, **kwargs):
    """{place in the stream: the image there} of the first batches of 4."""
    found = {}
    for index in range(shard_count):
        it = pipeline.batches(SOURCE, batch_size=4, seed=seed, shard_index=index, shard_count=shard_count,
                              load=SPEC.load, **kwargs)
        it.set_state({"next_example": 4 * start})
        for k in range(start, batches):
            batch = next(it)
            found |= {4 * k + int(p): x for p, x in zip(batch["position"], batch["image"])}
        it.close()
    return found


def corner(x):
    return int(x[0, 0, 0]), int(x[0, 0, 1])


def test_a_crop_is_a_part_of_its_image_and_all_places_come():
    found = read(batches=100)
    order = pipeline.examples(np.arange(400), size=COUNT, seed=0)
    for place, x in found.items():
        y, left = corner(x)
        np.testing.assert_array_equal(x, IMAGES[order[place]][y:y + 4, left:left + 8])
    assert {corner(x) for x in found.values()} == {(y, x) for y in range(6) for x in range(5)}
    in_a_batch = [len({corner(found[4 * k + p]) for p in range(4)}) for k in range(100)]
    assert np.mean(in_a_batch) > 3.5  # of 4 draws from 30 places


def test_a_draw_is_of_the_seed_and_the_place_alone():
    one = read()
    for other in (read(shard_count=2), read(start=3)):
        for place, x in other.items():
            np.testing.assert_array_equal(x, one[place])
    assert any(corner(x) != corner(one[place]) for place, x in read(seed=1).items())
    draws = [pipeline.generator(0, place).integers(2**32) for place in range(100)]
    assert len(set(draws)) == 100 and draws[7] == pipeline.generator(0, 7).integers(2**32)


def test_programs_that_do_not_train_read_the_middle():
    (x,) = sources.gather_examples(sources.Loaded(SOURCE, SPEC.load), [3])["image"]
    assert corner(x) == (2, 2) and x.shape == (4, 8, 3) and x[0, 0, 2] == 3


def config_of(tmp_path, **changes):
    np.savez(tmp_path / "data.npz", image=IMAGES.astype(np.uint8), label=np.arange(COUNT) % 3)
    values = {"data.path": str(tmp_path / "data.npz"), "data.size": (4, 8), "data.crop": "random",
              "network.channels": 8, "network.multipliers": (1,), "network.blocks": 1, "network.groups": 4,
              "network.attention_resolutions": (), "process.steps": 20, "sample.steps": 5, "train.batch_size": 4,
              "train.duration": "4 steps", "train.log_every": "2 steps", "train.sample_every": "4 steps",
              "train.checkpoint_every": "2 steps", "optimizer.warmup": "2 steps", "ema.half_life": "8 images"}
    return config_lib.override(config_lib.base(data="file"),
                               values | {key.replace("__", "."): value for key, value in changes.items()})


def test_training_reads_crops_and_others_the_middle(tmp_path):
    config = config_of(tmp_path)
    data = build.training(config, build.model(config)).data
    batches = [next(data)["image"] for _ in range(5)]
    assert batches[0].shape == (4, 4, 8, 3) and len({corner(x) for batch in batches for x in batch}) > 3
    assert corner(build.training_images(config)[0]["image"]) == (2, 2)
    centred = config_of(tmp_path, data__crop="center", data__on_device=True)
    parts = build.training(centred, build.model(centred))
    assert parts.dataset["image"].shape == (COUNT, 4, 8, 3)


@pytest.mark.parametrize("changes, error, message", [
    (dict(data__on_device=True), ConfigError, "data.on_device = True: holds each example once, but data.crop = 'ran"),
    (dict(data__size=(10, 8)), DataError, "An image is 9x12 .height x width., smaller than the 10x8"),
    (dict(data__crop="none"), DataError, "are 9x12x3 .* but the config asks for 4x8x3"),
    (dict(data__crop="top"), ConfigError, "data.crop = 'top' is not known"),
])
def test_what_cannot_be_cut(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        config = config_of(tmp_path, **changes)
        build.training(config, build.model(config))
