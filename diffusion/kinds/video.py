"""Clips: uint8 [T, H, W, C] on disk, floats in [-1, 1] in a training step."""
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from diffusion.data import crops
from diffusion.data.augment import random_flip, to_float
from diffusion.data.files import File
from diffusion.errors import DataError, require
from diffusion.io import clips, images, pictures
from diffusion.io.pictures import by
from diffusion.kinds.base import Example, Record, check_stored
from diffusion.kinds.image import Crop, sides
from diffusion.typing import Keys


@dataclass(frozen=True, kw_only=True)
class VideoSpec:
    """Clips of one number of frames, height, width and number of channels."""
    shape: tuple[int, int, int, int]  # [T, H, W, C]
    past: int = 0                # frames before each clip, which are the condition "frames"
    flip: bool = False           # mirror each clip with probability 1/2
    every: int = 1               # of the frames of a file, every so many
    crop: str = "edm"            # how the frames of files get this size: none, or one of `data.crops`
    background: str = "white"    # behind transparent parts
    bounds = (-1.0, 1.0)
    levels = 256
    field, called, endings = "video", "clip", clips.ENDINGS
    frame_endings = pictures.ENDINGS  # of the files in a folder of frames
    draws = True                 # the part of a longer file
    scaling = ()
    rounding = "uint8: rint((clip(x, -1, 1) + 1) 127.5)"

    @property
    def stored(self) -> dict:
        """The bytes of a clip and of the frames before it, and a label."""
        before = {"frames": ((self.past, *self.shape[1:]), np.uint8)} if self.past else {}
        return {"video": (self.shape, np.uint8), "label": ((), np.int32), **before}

    @property
    def span(self) -> int:
        """The frames of a file from the first to the last that a clip has, with those before it."""
        return (self.past + self.shape[0] - 1) * self.every + 1

    def check(self, source: Sequence, where: str) -> None:
        """Raises DataError if the first clip is not uint8 of this shape, or cannot be read."""
        if not len(source):
            raise DataError(f"{where} has no clips.")
        encoded = getattr(source, "encoded", False)
        if not encoded:
            check_stored(self, source[0], "video", where)
        record = self.load(source[0], None) if encoded else source[0]
        clip = np.asarray(record["video"])
        if clip.dtype != np.uint8 or clip.ndim != 4:
            raise DataError(f"The clips of {where} must be uint8 [T, H, W, C], but the first one is {clip.dtype} "
                            f"{list(clip.shape)}.")
        if clip.shape != self.shape:
            t, h, w, c = clip.shape
            raise DataError(f"The clips of {where} are {by(clip.shape)} (frames x height x width x channels), but the "
                            f"config asks for {by(self.shape)}. Set --config.data.frames={t} --config.data.size="
                            f"{h if h == w else f'{h},{w}'} --config.data.channels={c}, or choose another data set.")
        before = np.asarray(record.get("frames", np.zeros(0, np.uint8)))
        if self.past and (before.shape != (self.past, *self.shape[1:]) or before.dtype != np.uint8):
            raise DataError(f"The clips of {where} need the array frames, uint8 {[self.past, *self.shape[1:]]}, of "
                            f"what is before them (data.past), but it is {before.dtype} {list(before.shape)}.")

    def needs_load(self, encoded: bool) -> bool:
        """Whether clips are files; arrays are used as they are."""
        return encoded

    def load(self, raw: dict, rng: np.random.Generator | None) -> dict:
        """{"file": a File, or those of all frames, ...} -> "video" uint8 [T, H, W, C]: from the first frame on or, with
        an rng, from a random one, and where the crop is random, cut at one place. Raises DataError that names a file
        which is too short, cannot be read, or has frames of different sizes."""
        files, rest = raw["file"], {name: value for name, value in raw.items() if name != "file"}
        place = None if rng is None else rng.integers(2**63)
        if isinstance(files, tuple):
            where = f"{files[0].where} and what follows it"
            first = self._first(len(files), where, rng)
            found = self._cut(map(self._picture, files[first:first + self.span:self.every]), where, place)
            return self._parted(list(found), rest)
        found = self._cut(clips.frames(files.content, files.where, files.ending, channels=self.shape[-1],
                                       background=self.background), files.where, place)
        first = 0
        if rng is not None:  # only the last frame tells how many there are
            found = list(found)
            first = self._first(len(found), files.where, rng)
        number = self.past + self.shape[0]
        found = clips.taken(iter(found), first, number, self.every)
        if len(found) < number:
            self._first((len(found) - 1) * self.every + 1, files.where, rng)
        return self._parted(found, rest)

    def _parted(self, frames: list[np.ndarray], rest: dict) -> dict:
        """The record of past + T frames."""
        before = {"frames": np.stack(frames[:self.past])} if self.past else {}
        return {"video": np.stack(frames[self.past:]), **before, **rest}

    def _first(self, number: int, where: str, rng: np.random.Generator | None) -> int:
        """Where a clip of a file of `number` frames begins. Raises DataError if the file is too short."""
        if number < self.span:
            every = f", every {self.every} of which a clip takes" if self.every > 1 else ""
            raise DataError(f"{where} has {number} frames{every}, fewer than the {self.span} that clips of data.frames "
                            f"= {self.shape[0]}{f' and data.past = {self.past}' * (self.past > 0)} need. Remove it, or "
                            "ask for fewer.")
        return 0 if rng is None else int(rng.integers(number - self.span + 1))

    def _picture(self, file: File) -> Image.Image:
        return pictures.decoded(io.BytesIO(file.content), file.where, channels=self.shape[-1],
                                background=self.background)

    def _cut(self, found: Iterator[Image.Image], where: str, place: int | None) -> Iterator[np.ndarray]:
        """Each frame uint8 [H, W, C]; random crops cut all frames at the same place."""
        size, before = self.shape[1:3], None
        for i, frame in enumerate(found):
            if before not in (None, frame.size):
                raise DataError(f"The frames of {where} have different sizes: one is {by(before[::-1])} (height x "
                                f"width), number {i} is {by(frame.size[::-1])}. Make them of one size, or remove it.")
            before = frame.size
            if self.crop != "none":
                rng = None if place is None else np.random.Generator(np.random.Philox(key=int(place)))
                try:
                    frame = crops.CROPS[self.crop](frame, size, rng if self.crop in crops.DRAWS else None)
                except DataError as error:
                    raise DataError(f"{where} {error}") from None
            elif frame.size != size[::-1]:
                raise DataError(f"The frames of {where} are {by(before[::-1])} (height x width), but config.data.size "
                                f"is {by(size)}: set that, or data.crop=edm, which cuts and scales them.")
            frame = np.asarray(frame)
            yield frame if frame.ndim == 3 else frame[..., None]

    def describe(self, raw: dict) -> str:
        """The size and length of a clip as it is stored, in a text for people."""
        if "file" not in raw:
            return f"{by(raw['video'].shape)} array"
        files = raw["file"]
        if isinstance(files, tuple):
            with Image.open(io.BytesIO(files[0].content), formats=pictures.FORMATS) as image:
                return f"{image.height}x{image.width} {len(files)} {image.format} frames"
        found = list(clips.frames(files.content, files.where, files.ending, channels=3))
        return f"{found[0].height}x{found[0].width} {len(found)} frames {files.ending[1:].upper()}"

    def prepare(self, record: Record, keys: Callable[[str], Keys] | None = None) -> Example:
        """{"video": uint8 [B, T, H, W, C], ...} -> x0 in [-1, 1], and the record's other entries as conditions."""
        x0, cond = to_float(record["video"]), {name: value for name, value in record.items() if name != "video"}
        if self.flip and keys is not None:
            x0 = random_flip(keys("flip"), x0)
            cond |= {"frames": random_flip(keys("flip"), cond["frames"])} if self.past else {}
        return Example(x0, cond)

    def finish(self, x0: np.ndarray) -> np.ndarray:
        """uint8 of samples in [-1, 1]."""
        return images.to_uint8(x0)

    def pictures(self, values: np.ndarray) -> np.ndarray:
        """The frames, uint8 [B, T, H, W, C]."""
        return values

    def write(self, folder: Path, batches: Iterable[np.ndarray], count: int, titles: Sequence[str] = ()) -> str:
        """.gif files, a contact sheet, a film of the first clips if the extra `video` is installed, and samples.npz."""
        clips.save_clips(folder, batches, count=count, titles=titles)
        return f"grid.png{', grid.mp4' * clips.films_are_written()} and samples.npz"

    def preview(self, path: Path, samples: np.ndarray, titles: Sequence[str] = ()) -> None:
        """A contact sheet: a row for each clip, a column for each frame."""
        images.save_png(path, clips.contact_sheet(samples, titles))

    def gap(self, first: float, last: float) -> np.ndarray:
        """The frames `first` .. `last` - 1, [T, 1, 1, 1]."""
        frames = np.arange(self.shape[0])
        hidden = (first <= frames) & (frames < last)
        require(hidden.any() and not hidden.all(), "gap", (first, last), f"must be a part of the {self.shape[0]} "
                                                                         "frames of a "
                "clip.")
        return hidden[:, None, None, None]

    def pooled(self, x0: np.ndarray) -> np.ndarray:
        """Averages over at most 4 parts of the time, of the height and of the width, for each channel; of more than 4
        channels over all of them."""
        x0 = x0 if x0.shape[-1] <= 4 else x0.mean(-1, keepdims=True)
        found = np.asarray(x0, np.float64)
        for axis in (1, 2, 3):
            edges = np.linspace(0, x0.shape[axis], min(4, x0.shape[axis]) + 1).astype(int)
            lengths = np.diff(edges).reshape([-1 if i == axis else 1 for i in range(5)])
            found = np.add.reduceat(found, edges[:-1], axis) / lengths
        return found.reshape(len(x0), -1)


def video(*, size: int | tuple[int, int] = 64,  # height and width of an image, pixels: one number, or both
          channels: int = 3,                    # of an image
          frames: int = 16,                     # of a clip
          past: int = 0,                        # frames before a clip that the network is told, to predict what follows
          every: int = 1,                       # of a file, take every so many frames
          flip: bool = False,                   # mirror each image with probability 1/2
          crop: Crop = "edm",
          background: Literal["white", "black", "gray"] = "white",  # behind transparent parts
          ) -> VideoSpec:
    """Clips of bytes, scaled to [-1, 1] (Ho et al. 2022, "Video Diffusion Models")."""
    require(channels >= 1, "channels", channels, "must be positive.")
    require(frames >= 1, "frames", frames, "must be 1 or more.")
    require(past >= 0, "past", past, "must not be negative.")
    require(every >= 1, "every", every, "must be 1 or more.")
    return VideoSpec(shape=(frames, *sides(size), channels), past=past, flip=flip, every=every, crop=crop,
                     background=background)


KINDS = {"video": video}
