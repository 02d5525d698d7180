"""Data sets of drawn pictures for the benchmarks, stored and read as real ones are.

A picture is a small random one, enlarged smoothly, so that its PNG and JPEG are neither as large as those of noise nor
as small as those of one colour.
"""
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from diffusion import build
from diffusion.data.prepare import writer
from diffusion.io import pictures, sound


def drawn(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Pictures uint8 [count, H, W, C]."""
    rng, (height, width, channels) = np.random.default_rng(seed), shape
    small = rng.integers(0, 256, (count, max(height // 8, 2), max(width // 8, 2), channels), dtype=np.uint8)
    return np.stack([np.stack([np.asarray(Image.fromarray(image[..., c]).resize((width, height), Image.BICUBIC))
                               for c in range(channels)], axis=-1) for image in small])


def write_set(folder: str | Path, name: str, shape: tuple[int, ...], count: int, *, split: str = "train",
              classes: int = 1) -> None:
    """Writes the data set `name` of drawn pictures into the folder, as our prepare program does: PNG in array_record
    files."""
    labels = (np.arange(count) % classes).astype(np.int32)
    writer.write(Path(folder) / name / "1.0.0", {split: (drawn(count, shape), labels)}, writer.Layout(
        name=name, description="Drawn pictures.", class_names=tuple(f"class {i}" for i in range(classes)), shape=shape))


def with_data(config: ConfigDict, folder: str | Path, count: int) -> ConfigDict:
    """The config, with drawn pictures in the folder where it names a data set that has to be prepared."""
    if config.data.name == "tfds":
        write_set(folder, config.data.dataset, build.spec(config).shape, count, split=config.data.split,
                  classes=max(config.network.num_classes, 1))
        config.data.dir = str(folder)
    return config


class JpegFolder:
    """A source of the JPEG files in a folder, each decoded when it is read."""
    num_classes = 1

    def __init__(self, folder: str | Path):
        self.files = sorted(Path(folder).glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": pictures.decode(self.files[i], channels=3), "label": 0}

    @classmethod
    def write(cls, folder: Path, count: int, size: int) -> "JpegFolder":
        """Writes drawn pictures of size x size there, quality 90, and returns their source."""
        folder.mkdir(parents=True)
        for i, image in enumerate(drawn(count, (size, size, 3))):
            Image.fromarray(image).save(folder / f"{i:06d}.jpg", quality=90)
        return cls(folder)


def write_photos(folder: Path, count: int, size: int, classes: int = 4) -> None:
    """Writes drawn pictures of size x size as JPEG files of quality 90 in class folders."""
    for i, image in enumerate(drawn(count, (size, size, 3))):
        (path := folder / f"class{i % classes}" / f"{i:06d}.jpg").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=90)


def write_clips(folder: Path, count: int, classes: int = 4) -> None:
    """Writes clips of noise of half a second to a second at 8 kHz as .wav files in class folders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        (path := folder / f"class{i % classes}" / f"{i:06d}.wav").parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sound.wav(rng.integers(-9000, 9000, (rng.integers(4000, 8001), 1)).astype(np.int16), 8000))
