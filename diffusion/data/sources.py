"""Data sources: random access to (image, label), each data set checked when it is opened.

A `Source` holds images as uint8 in 0..255, and labels of 0 .. num_classes - 1; `gather_examples` and `check_images`
enforce this. Scaling and augmentation are in `augment.py`, inside the training step.
"""
import dataclasses
import gzip
import math
import pathlib
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from diffusion.data.augment import TO_UINT8
from diffusion.errors import DataError, NoSplit
from diffusion.io.pictures import by
from diffusion.io.reading import check_room, expanded, reading


class Source(Protocol):
    """N examples with integer labels. `source[i]` -> {"image": uint8 [H, W, C], "label": integer}, for 0 <= i < N, or
    another array that a kind of data takes; or, of a source with the attribute `encoded`, {"file": `files.File`, ...},
    which the kind decodes. Other entries, arrays of one shape each, are conditions for networks that declare them.

    A source that reads many examples faster than one by one may have `__getitems__(indices)` -> list of examples, or,
    in memory, `gather(indices)` -> arrays [b, ...] by name.
    """
    num_classes: int  # labels are 0 .. num_classes - 1

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A data set in memory: images uint8 [N, H, W, C], labels int32 [N]."""
    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise DataError(f"Images must be uint8 [N, H, W, C], but they are {self.images.dtype} "
                            f"{list(self.images.shape)}. {TO_UINT8}")
        if self.labels.dtype != np.int32 or self.labels.shape != self.images.shape[:1]:
            raise DataError(f"Labels must be int32 [{len(self.images)}], but they are {self.labels.dtype} "
                            f"{list(self.labels.shape)}.")
        if self.labels.min(initial=0) < 0:
            raise DataError(f"Labels must be 0 or more, but the label of example {int(self.labels.argmin())} is "
                            f"{self.labels.min()}.")

    @property
    def num_classes(self) -> int:
        return int(self.labels.max(initial=0)) + 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.images[i], "label": self.labels[i]}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices` [b]."""
        return {"image": self.images[indices], "label": self.labels[indices]}


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A source whose examples pass through `load(raw, None)` of their kind."""
    source: Source
    load: Callable[[dict[str, Any], Any], dict[str, Any]]

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.load(self.source[i], None)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self.load(raw, None) for raw in read_examples(self.source, indices)]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """The examples of a source at `rows` [n], read when they are asked for."""
    source: Source
    rows: np.ndarray

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.source[int(self.rows[i])]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return read_examples(self.source, [int(self.rows[i]) for i in indices])


def drawn(source: Source, kind: Any) -> tuple[Source, Callable | None]:
    """What training reads, and the kind's `load` that it applies with draws; None: the source's examples are all that
    they ever are."""
    return (source.source, kind.load) if kind.draws and isinstance(source, Loaded) else (source, None)


def read_examples(source: Source, indices: Sequence[int]) -> list[dict[str, Any]]:
    """The examples at `indices`, one by one or together, whichever the source does faster."""
    return source.__getitems__(indices) if hasattr(source, "__getitems__") else [source[i] for i in indices]


def gather_examples(source: Source, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """The examples at `indices` [b], in that order: {"image": uint8 [b, H, W, C], "label": int32 [b]}, and arrays
    [b, ...] of the other entries that a source's examples have.

    Raises DataError if their images are not uint8 and all of one shape, or a label is not in 0 .. num_classes - 1.
    """
    if hasattr(source, "gather"):  # in memory: one gather instead of b reads
        return source.gather(np.asarray(indices))
    indices = [int(i) for i in indices]
    return stacked(read_examples(source, indices), indices, source.num_classes)


def stacked(examples: Sequence[dict[str, Any]], indices: Sequence[int], num_classes: int) -> dict[str, np.ndarray]:
    """The examples at `indices` as arrays [b, ...] by name. Raises DataError as `gather_examples`."""
    for name in examples[0]:
        shapes = {np.shape(e[name]): i for i, e in zip(indices, examples, strict=True)}
        if len(shapes) > 1:
            found = ", ".join(f"{name} {i} is {by(shape)}" for shape, i in shapes.items())
            raise DataError(f"All {name}s of a data set must have the same size, but {found}. "
                            + ("Resize them to one size and prepare the data set again, or choose data.crop."
                               if name == "image" else "Make them of one shape."))
    for i, example in zip(indices, examples):
        if "image" in example and example["image"].dtype != np.uint8:
            raise DataError(f"Images must be uint8, but image {i} is {example['image'].dtype}. {TO_UINT8}")
        if not 0 <= (label := int(example.get("label", 0))) < num_classes:
            raise DataError(f"The label of example {i} is {label}, but the data set's classes are 0 .. "
                            f"{num_classes - 1}. Correct its label; an unconditional model "
                            "(config.network.num_classes=0) needs none.")
    return {name: np.array([e["label"] for e in examples], np.int32) if name == "label" else
            np.stack([e[name] for e in examples]) for name in examples[0]}


def without_labels(source: Source) -> Source:
    """The same images, each with label 0, for an unconditional model: its data set may have labels outside the classes,
    such as -1 for unlabelled examples."""
    if isinstance(getattr(source, "labels", None), np.ndarray):
        return dataclasses.replace(source, labels=np.zeros_like(source.labels))
    if isinstance(source, (Loaded, Part)):
        return dataclasses.replace(source, source=without_labels(source.source))
    return dataclasses.replace(source, labelled=False) if hasattr(source, "labelled") else source


def check_images(source: Source, height: int, width: int, channels: int) -> None:
    """Compares the first image with the shape the network is built for. Raises DataError naming both."""
    if not len(source):
        raise DataError("The data set has no images.")
    image = np.asarray(source[0]["image"])
    if image.dtype != np.uint8 or image.ndim != 3:
        raise DataError(f"Images must be uint8 [H, W, C], but the first one is {image.dtype} {list(image.shape)}. "
                        f"{TO_UINT8}")
    if image.shape == (height, width, channels):
        return
    h, w, c = image.shape
    size = h if h == w else f"{h},{w}"
    raise DataError(f"The data set's images are {by(image.shape)} (height x width x channels), but the config asks for "
                    f"{height}x{width}x{channels} (config.data.size, config.data.channels). Set "
                    f"--config.data.size={size} --config.data.channels={c} or choose another data set.")


def digits(split: str) -> ArraySource:
    """scikit-learn's 1,797 hand-written digits: images [N, 8, 8, 1], grey levels 0..16 mapped to round(255 x/16).

    split: "test" is every fifth image (indices 0, 5, 10, ...: 360 images), "train" the other 1,437, "all" both.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise DataError("The digits data set comes with scikit-learn, which is not installed. Install the extra: "
                        "pip install 'diffusion[digits]'") from e
    levels, labels = load_digits(return_X_y=True)
    images = np.round(levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    held_out = np.arange(len(images)) % 5 == 0
    rows = {"train": ~held_out, "test": held_out, "all": np.full(len(images), True)}
    if split not in rows:
        raise NoSplit(f"The digits have no split {split!r}. Choose one of: {', '.join(rows)}.")
    return ArraySource(images[rows[split]], labels[rows[split]].astype(np.int32))


_IDX_FILES = {"train": "train", "test": "t10k"}
_IDX_HELP = ("The folder must hold MNIST's four files, train-images-idx3-ubyte, train-labels-idx1-ubyte, "
             "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, plain or .gz. Fashion-MNIST in this form is Debian's "
             "package dataset-fashion-mnist, which installs to /usr/share/datasets/fashion-mnist.")


def idx(folder: str, split: str) -> ArraySource:
    """A data set in MNIST's idx files: images uint8 [N, H, W, 1], labels int32 [N]; split "train" or "test".

    Raises DataError for a missing folder or file, a wrong magic number, and sizes that do not match the data.
    """
    if split not in _IDX_FILES:
        raise NoSplit(f"An idx data set has no split {split!r}. Choose one of: {', '.join(_IDX_FILES)}.")
    if not (folder := expanded(folder)).is_dir():
        raise DataError(f"There is no folder {str(folder)!r}. {_IDX_HELP}")
    images, path = _read_idx(folder, f"{_IDX_FILES[split]}-images-idx3-ubyte", rank=3)
    labels, _ = _read_idx(folder, f"{_IDX_FILES[split]}-labels-idx1-ubyte", rank=1)
    if len(images) != len(labels):
        raise DataError(f"{path} holds {len(images)} images, but there are {len(labels)} labels: the two files belong "
                        f"to different data sets, or one is damaged. {_IDX_HELP}")
    return ArraySource(images[..., None], labels.astype(np.int32))


def _read_idx(folder: pathlib.Path, name: str, *, rank: int) -> tuple[np.ndarray, pathlib.Path]:
    """The uint8 array of an idx file: a 4-byte magic number 0x0800 + rank, `rank` big-endian sizes, the bytes."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise DataError(f"{folder} holds neither {name} nor {name}.gz. {_IDX_HELP}")
    with (reading(f"{path} is truncated or damaged", "Copy or download it again."),
          (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file):
        head = file.read(4 * (1 + rank))
        magic = int.from_bytes(head[:4], "big")
        if len(head) < 4 * (1 + rank) or magic != 0x800 + rank:
            raise DataError(f"{path} does not start as an idx file of {rank} dimension(s) of uint8: its magic number "
                            f"is 0x{magic:08x}, not 0x{0x800 + rank:08x}. {_IDX_HELP}")
        shape = struct.unpack(f">{rank}I", head[4:])
        size = math.prod(shape)
        check_room(size, f"The content of {path}")
        data, found = np.empty(size, np.uint8), 0
        while found < size and (number := file.readinto(memoryview(data)[found:])):
            found += number
        if found < size or file.read(1):
            there = "more" if found == size else f"{found}"
            raise DataError(f"{path} should hold {by(shape)} = {size} bytes, but has {there}: the file is "
                            "truncated or damaged. Copy or download it again.")
    return data.reshape(shape), path


def idx_files(*, split: str, dir: str = "data") -> ArraySource:
    """`idx` with its config keys as arguments."""
    return idx(dir, split)


SOURCES = {"digits": digits, "idx": idx_files}
