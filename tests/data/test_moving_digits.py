"""Moving digits: the law of Denton & Fergus (2018), and that seed and index fix a clip."""
import moving_digits
import numpy as np
import pytest

from diffusion import config as config_lib
from diffusion.build import kinds
from diffusion.data.moving_digits import SPEED, moving_mnist, path
from diffusion.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return moving_digits.write_idx(tmp_path_factory.mktemp("digits") / "idx")


def source(folder, split="train", **keys):
    return moving_mnist(split=split, dir=folder, **{"size": 64, "frames": 12} | keys)


def steps_of(places, room):
    """For each step of a path [T, 2]: where it began, its length, and whether it was cut short by a wall (maybe)."""
    step = np.diff(places, axis=0)
    return step, (places[1:] == 0) | (places[1:] == room - 1)


def test_digits_move_at_whole_velocities_between_walls(folder):
    made = source(folder, digits=1)
    room, bounces, starts = 64 - 32, 0, []
    for i in range(200):
        (places,) = made.trajectory(i).places
        assert places.min() >= 0 and places.max() <= room - 1
        step, at_wall = steps_of(places, room)
        assert np.abs(step).max() <= SPEED
        for axis in (0, 1):
            velocity = step[0, axis]
            for t in range(1, len(step)):
                if step[t, axis] != velocity:  # only at a wall, and then it is turned around
                    assert at_wall[t - 1, axis] or at_wall[t, axis]
                    if not at_wall[t, axis]:
                        assert step[t, axis] * velocity <= 0 or abs(step[t, axis]) > abs(velocity)
                        bounces += 1
                        velocity = step[t, axis]
        starts.append(places[0])
    assert bounces > 50
    starts = np.array(starts)
    assert starts.min() < 3 and starts.max() > room - 4


def test_a_reflection_keeps_the_speed_and_a_random_one_does_not(folder):
    """Velocity -3 from row 4, with room for 32: 4, 1, then the wall at 0, and away from it."""
    words = [[6, 8, 0, 0]] * 7
    assert path([4, 10], [-3, 0], [32, 32], words, True) == [(y, 10) for y in (4, 1, 0, 3, 6, 9, 12)]
    # 1 + 6 % 4 = 3 inward, and 8 % 9 - 4 = 4 to the right.
    assert path([3, 10], [-1, 0], [32, 32], words, False) == [(3, 10), (2, 10), (1, 10), (0, 10), (0, 10), (3, 14),
                                                             (6, 18)]
    assert path([30, 30], [4, 2], [32, 32], words[:3], True) == [(30, 30), (31, 31), (27, 29)]


def test_random_bounces_have_all_velocities(folder):
    made = source(folder, digits=1, deterministic=False, frames=40)
    inward, other = set(), set()
    for i in range(300):
        (places,) = made.trajectory(i).places
        step, _ = steps_of(places, 32)
        for t in range(1, len(step) - 1):
            if places[t, 0] == 0 and step[t - 1, 0] < 0 < step[t, 0] and 4 < places[t, 1] < 27:
                inward.add(int(step[t, 0]))
                other.add(int(step[t, 1]))
    assert inward == {1, 2, 3, 4} and other == set(range(-4, 5))


def test_pixels_are_the_digits_at_their_places(folder):
    made = source(folder, digits=2, frames=5)
    clip, (which, labels, places) = made[7], made.trajectory(7)
    assert clip["video"].shape == (5, 64, 64, 1) and clip["video"].dtype == np.uint8
    assert clip["label"] == labels[0] == made.digits.labels[which[0]] and made.num_classes == 10
    expected = np.zeros((5, 64, 64), int)
    for n, own in zip(which, places):
        for frame, (y, x) in zip(expected, own):
            frame[y:y + 32, x:x + 32] += made.scaled(n)
    np.testing.assert_array_equal(clip["video"][..., 0], np.minimum(expected, 255))


def test_overlapping_digits_are_clipped(folder):
    made = source(folder, digits=12, frames=1)
    assert max(made[i]["video"].max() for i in range(5)) == 255


def test_seed_and_index_fix_a_clip(folder):
    made, again = source(folder), source(folder)
    np.testing.assert_array_equal(made[5]["video"], again[5]["video"])
    np.testing.assert_array_equal(made.__getitems__([9, 5])[1]["video"], made[5]["video"])
    assert not np.array_equal(made[5]["video"], made[6]["video"])
    np.testing.assert_array_equal(source(folder, frames=20)[5]["video"][:12], made[5]["video"])
    assert source(folder, "test").trajectory(5).places.tolist() != made.trajectory(5).places.tolist()
    # The first clip of the training split, written down: a later NumPy or a change of ours would show.
    assert made.trajectory(0).which == (29, 15)
    assert made.trajectory(0).places[:, :2].tolist() == [[[18, 25], [17, 24]], [[23, 28], [19, 31]]]


def test_the_frames_before_a_clip_are_its_first(folder):
    whole, parted = source(folder, frames=5)[3], source(folder, frames=3, past=2)[3]
    np.testing.assert_array_equal(parted["frames"], whole["video"][:2])
    np.testing.assert_array_equal(parted["video"], whole["video"][2:])
    assert set(whole) == {"video", "label"} and parted["label"] == whole["label"]


def test_it_is_the_data_of_a_config(folder):
    config = config_lib.base(data="moving_mnist")
    found = kinds.source(config_lib.override(config, {"data.dir": folder, "data.size": (40, 48), "data.frames": 3,
                                                      "data.digits": 1, "data.clips": 7}))
    assert len(found) == 7 and found[6]["video"].shape == (3, 40, 48, 1)


@pytest.mark.parametrize("keys, words", [({"data.digit": 64}, "config.data.digit = 64: must be positive and less than"),
                                         ({"data.digits": 0}, "1 or more"), ({"data.clips": 0}, "must be positive"),
                                         ({"data.frames": 0}, "1 or more"), ({"data.split": "all"}, "train, test")])
def test_wrong_keys(folder, keys, words):
    config = config_lib.override(config_lib.base(data="moving_mnist"), {"data.dir": folder, "data.size": 64})
    with pytest.raises(ConfigError, match=words):
        kinds.source(config_lib.override(config, keys))


def test_without_mnist():
    with pytest.raises(DataError, match="There is no folder"):
        moving_mnist(split="train", dir="/nowhere")
