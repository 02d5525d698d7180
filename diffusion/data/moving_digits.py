"""Digits that move and bounce off the walls, made from MNIST's files: seed and index fix each clip."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from diffusion.data.sources import ArraySource, idx
from diffusion.errors import require
from diffusion.metrics import moving_digits

SPEED = 4  # the largest component of a velocity, pixels a frame
_SPLITS = ("train", "test")


class Trajectory(NamedTuple):
    """How one clip was made."""
    which: tuple[int, ...]    # the digits, as indices of MNIST's split
    labels: tuple[int, ...]   # what they show
    places: np.ndarray        # int32 [digits, T, 2]: row and column of each one's upper left corner


@dataclass(frozen=True, eq=False)
class MovingDigits:
    """Clips uint8 [T, H, W, 1] of digits that move by whole pixels and bounce off the walls, added up and clipped.

    The law is that of Denton & Fergus (2018), "Stochastic Video Generation with a Learned Prior", as in their code
    (edenton/svg, data/moving_mnist.py): digits scaled to a square, velocities of -4 .. 4 in both directions, and a
    position beyond a wall set onto it. There, the deterministic law turns the velocity's component around; the
    stochastic one draws it from 1 .. 4 inward, and the other component from -4 .. 4. The last row and column of places
    are never reached, as in their code. Clip i of a seed is the same in any order, and its first frames are the same
    for any number of frames.
    """
    digits: ArraySource
    seed: int
    size: tuple[int, int]        # height and width of a frame, pixels
    frames: int
    number: int                  # digits in a clip
    digit: int                   # height and width of a digit, pixels
    clips: int
    deterministic: bool
    past: int = 0                # of the frames, the first that are given for themselves
    num_classes = 10

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, i: int) -> dict[str, Any]:
        """{"video": uint8 [T - past, H, W, 1], "frames": the past ones before, "label": what the first digit shows}."""
        made, (height, width) = self.trajectory(i), self.size
        video = np.zeros((self.frames, height, width), np.uint8 if self.number == 1 else np.uint16)
        for which, places in zip(made.which, made.places.tolist()):
            shape = self.scaled(which)
            for frame, (y, x) in zip(video, places):
                frame[y:y + self.digit, x:x + self.digit] += shape
        video = np.minimum(video, 255).astype(np.uint8)[..., None]
        return {"video": video[self.past:], "label": np.int32(made.labels[0]),
                **({"frames": video[:self.past]} if self.past else {})}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[i] for i in indices]

    @property
    def measures(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """The metric `centroid_law` of clips uint8 [B, T, H, W, 1] of one digit: whether it moves by the law."""
        if self.number > 1:
            return {}
        return {"centroid_law": lambda clips: moving_digits.follows_law(
            clips[..., 0], digit=self.digit, deterministic=self.deterministic)}

    def trajectory(self, i: int) -> Trajectory:
        """The digits of clip i and their places."""
        starts = self.number * 5
        # Words of Philox, not `integers`: NumPy guarantees that these stay the same in later versions.
        key = np.array([self.seed, i], np.uint64)
        words = np.random.Philox(key=key).random_raw(starts + 4 * self.number * self.frames).tolist()
        which, places = [], []
        room = [side - self.digit for side in self.size]
        for n in range(self.number):
            first, y, x, dy, dx = words[5 * n:5 * n + 5]
            which.append(first % len(self.digits))
            begins = [starts + 4 * (t * self.number + n) for t in range(self.frames)]
            draws = [words[begin:begin + 4] for begin in begins]
            places.append(path([y % room[0], x % room[1]], [_velocity(dy), _velocity(dx)], room, draws,
                               self.deterministic))
        return Trajectory(tuple(which), tuple(int(self.digits.labels[i]) for i in which), np.array(places, np.int32))

    def scaled(self, which: int) -> np.ndarray:
        """The digit uint8 [digit, digit], scaled bilinearly."""
        image = Image.fromarray(self.digits.images[which, ..., 0])
        return np.asarray(image.resize((self.digit, self.digit), Image.Resampling.BILINEAR))


def path(place: Sequence[int], velocity: Sequence[int], room: Sequence[int], draws: Sequence[Sequence[int]],
         deterministic: bool) -> list[tuple[int, int]]:
    """Row and column in each of len(draws) frames, from a place of 0 .. room - 1 in both directions.

    draws: for each frame four random words, two for a bounce at the upper or lower wall, two for the left or right.
    """
    place, velocity, found = list(place), list(velocity), []
    for words in draws:
        for axis in (0, 1):
            if 0 <= place[axis] < room[axis]:
                continue
            inward = 1 if place[axis] < 0 else -1
            place[axis] = 0 if inward == 1 else room[axis] - 1
            if deterministic:
                velocity[axis] = -velocity[axis]
            else:
                velocity[axis] = inward * (1 + words[2 * axis] % SPEED)
                velocity[1 - axis] = _velocity(words[2 * axis + 1])
        found.append((place[0], place[1]))
        place = [place[0] + velocity[0], place[1] + velocity[1]]
    return found


def _velocity(word: int) -> int:
    return word % (2 * SPEED + 1) - SPEED


def moving_mnist(*, split: str,
                 dir: str = "data",
                 size: int | tuple[int, int] = 64,
                 frames: int = 16,
                 past: int = 0,
                 digits: int = 2,            # digits that move in a clip
                 digit: int = 32,            # their height and width, pixels
                 clips: int = 60_000,        # clips in the split, each made when it is read
                 deterministic: bool = True,  # digits are reflected by the walls; else leave them at random velocities
                 ) -> MovingDigits:
    """Moving MNIST: digits of data.dir's idx files that move and bounce (Denton & Fergus 2018)."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    require(split in _SPLITS, "split", split, f"is not a split of the moving digits, which are {', '.join(_SPLITS)}.")
    require(1 <= digit < min(sides), "digit", digit, f"must be positive and less than the {min(sides)} pixels of a "
            "frame's side (data.size), so that the digits can move.")
    require(digits >= 1, "digits", digits, "must be 1 or more.")
    require(frames >= 1, "frames", frames, "must be 1 or more.")
    require(past >= 0, "past", past, "must not be negative.")
    require(clips >= 1, "clips", clips, "must be positive.")
    return MovingDigits(idx(dir, split), _SPLITS.index(split), sides, frames + past, digits, digit, clips,
                        deterministic, past)


SOURCES = {"moving_mnist": moving_mnist}
