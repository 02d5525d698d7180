"""Whether the digit of a clip moves by the law of the moving digits (`data/moving_digits.py`), from its pixels alone.

The same functions take generated and real clips, uint8 [N, T, H, W], of one digit. The digit's place is measured by its
centroid, and compared with all paths that the law allows: whole velocities of -4 .. 4, constant between the walls;
places are 0 .. room - 1 for room = H - digit (W - digit), and one beyond is set to the nearest. There, the
deterministic law turns the velocity's component around; the stochastic one takes any from 1 .. 4 inward, and any of
-4 .. 4 for the other component.
"""
import itertools
from collections.abc import Iterable

import numpy as np

SPEED = 4         # of the law: the largest component of a velocity, pixels a frame
DARKEST = 48      # grey levels below this are background: samples are not perfectly black
LEAST_MASS = 0.3  # of the brightest frame's, below which a frame shows no digit
LEAST_INSIDE = 0.9  # of a frame's mass, in the square where its digit may be

State = tuple[int, int, int, int]  # row, column, and their velocities


def centroids(clips: np.ndarray) -> np.ndarray:
    """The centre of mass of each frame, row and column in pixels: uint8 [N, T, H, W] -> float64 [N, T, 2].

    NaN for frames without a digit: the sum of their levels above `DARKEST` is less than `LEAST_MASS` of that of the
    clip's brightest frame. Raises ValueError for another shape or type.
    """
    clips = np.asarray(clips)
    if clips.ndim != 4 or clips.dtype != np.uint8:
        raise ValueError(f"expected clips uint8 [N, T, H, W], got {clips.dtype} {list(clips.shape)}")
    bright = np.maximum(clips.astype(np.float64) - DARKEST, 0)
    mass = bright.sum((2, 3))
    rows, columns = np.arange(clips.shape[2]), np.arange(clips.shape[3])
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.stack([bright.sum(3) @ rows, bright.sum(2) @ columns], axis=-1) / mass[..., None]
    found[mass < LEAST_MASS * mass.max(1, keepdims=True, initial=1e-9)] = np.nan
    return found


def follows_law(clips: np.ndarray, *, digit: int, deterministic: bool = True, tolerance: float = 1.0) -> np.ndarray:
    """Whether a path of the law stays within `tolerance` pixels, in rows and columns, of the centroid of each clip in
    every frame: uint8 [N, T, H, W] -> bool [N].

    digit: height and width of the square in which a digit moves, pixels. Its centroid may be up to 2 pixels from the
    middle of the square (MNIST's are within 1), constantly so over the clip. At least `LEAST_INSIDE` of each frame's
    mass must be in that square, so that a picture without a digit, such as noise, whose centroid stands still, does not
    follow the law.
    """
    room, tracks = [side - digit for side in np.shape(clips)[2:]], centroids(clips)
    compact = (_inside(clips, tracks, digit / 2 + 2) >= LEAST_INSIDE).all(1)
    found = [_allowed(track, room, (digit - 1) / 2, deterministic, tolerance) for track in tracks]
    return np.array(found, bool) & compact


def _inside(clips: np.ndarray, tracks: np.ndarray, reach: float) -> np.ndarray:
    """The share of each frame's mass that is at most `reach` rows and columns from its centroid, [N, T]."""
    bright = np.maximum(clips.astype(np.float64) - DARKEST, 0)
    rows, columns = (np.abs(np.arange(n) - tracks[..., axis, None]) <= reach for axis, n in enumerate(clips.shape[2:]))
    return np.einsum("nthw,nth,ntw->nt", bright, rows, columns) / np.maximum(bright.sum((2, 3)), 1e-9)


def speeds(clips: np.ndarray) -> np.ndarray:
    """The largest step of the centroid in rows or columns, pixels a frame: uint8 [N, T, H, W] -> float64 [N]; NaN if a
    frame has no digit. At most 4 by the law; 0 for a digit that stands still."""
    return np.abs(np.diff(centroids(clips), axis=1)).max((1, 2), initial=0)


def _allowed(track: np.ndarray, room: list[int], middle: float, deterministic: bool, tolerance: float) -> bool:
    """Whether some path of the law is within the tolerance of track [T, 2]."""
    if np.isnan(track).any():
        return False
    velocities = range(-SPEED, SPEED + 1)
    starts = [[p for p in range(room[axis]) if abs(track[0, axis] - middle - p) <= 2] for axis in (0, 1)]
    # The centroid's distance from the corner is taken from the first frame, once for each place that it may have there.
    for y, x in itertools.product(*starts):
        seen = track - track[0] + (y, x)
        states = {(y, x, *velocity) for velocity in itertools.product(velocities, velocities)}
        for place in seen[1:]:
            states = {state for before in states for state in _next(before, place, room, deterministic, tolerance)}
        if states:
            return True
    return False


def _next(state: State, seen: np.ndarray, room: list[int], deterministic: bool, tolerance: float) -> Iterable[State]:
    """The states one frame later whose places are within the tolerance of the place seen."""
    y, x, dy, dx = state
    place = [y + dy, x + dx]
    held = [min(max(p, 0), n - 1) for p, n in zip(place, room)]
    if any(abs(p - s) > tolerance for p, s in zip(held, seen)):
        return ()
    velocities = {(dy, dx)}
    for axis in (0, 1):
        if place[axis] == held[axis]:
            continue
        inward = 1 if place[axis] < 0 else -1
        if deterministic:
            velocities = {tuple(-v if a == axis else v for a, v in enumerate(pair)) for pair in velocities}
        else:
            drawn = itertools.product([inward * n for n in range(1, SPEED + 1)], range(-SPEED, SPEED + 1))
            velocities = {pair if axis == 0 else pair[::-1] for pair in drawn}
    return [(*held, *velocity) for velocity in velocities]
