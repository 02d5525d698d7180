"""Sources of arrays in memory: .npy and .npz files, and a mixture of Gaussians in the plane."""
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diffusion.errors import DataError, NoSplit, require
from diffusion.io import npz
from diffusion.io.reading import check_room, expanded, ordinary, reading

FIELDS = {"x", "image", "audio", "video"}  # the names of the data's array, by kind


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Examples in memory: arrays [N, ...] by name. "x", "image", "audio" or "video" is the data, "label" integers from
    0, "mask" true where the data are valid; others are conditions for networks that declare them."""
    arrays: Mapping[str, np.ndarray]
    where: str = "the data"

    def __post_init__(self):
        counts = {name: len(array) if np.ndim(array) else None for name, array in self.arrays.items()}
        if None in counts.values() or len(set(counts.values())) != 1:
            raise DataError(f"The arrays of {self.where} must be [N, ...] with one N: "
                            f"{', '.join(f'{name} {list(np.shape(a))}' for name, a in self.arrays.items()) or 'none'}.")
        if "mask" in self.arrays:
            self._check_mask()
        for name, array in self.arrays.items():
            if np.issubdtype(array.dtype, np.floating):
                self._check_finite(name, array)
        if "label" in self.arrays:
            label = self.arrays["label"]
            if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer) or label.min(initial=0) < 0:
                raise DataError(f"label in {self.where} must be integers [N] from 0, but it is {label.dtype} "
                                f"{list(label.shape)} from {label.min(initial=0)}.")
            object.__setattr__(self, "arrays", {**self.arrays, "label": label.astype(np.int32)})

    def _check_mask(self) -> None:
        x, mask = self.arrays.get("x"), self.arrays["mask"]
        if mask.dtype.kind not in "buif" or not np.isin(mask, (0, 1)).all():
            raise DataError(f"mask in {self.where} must be true or false (1 or 0) for each entry, but it is "
                            f"{mask.dtype} with other values.")
        if x is not None and (mask.ndim > x.ndim or any(n not in (1, m) for n, m in zip(mask.shape[1:], x.shape[1:]))):
            raise DataError(f"mask in {self.where} is {list(mask.shape)}: it must have the first axes of x, "
                            f"{list(x.shape)}.")
        empty = np.flatnonzero(~mask.astype(bool).any(axis=tuple(range(1, mask.ndim))))
        if len(empty):
            raise DataError(f"The mask of example {empty[0]} in {self.where} has no valid entry, and so has that of "
                            f"{len(empty) - 1} others: remove these examples.")

    def _check_finite(self, name: str, array: np.ndarray) -> None:
        bad = ~np.isfinite(array.reshape(len(array), array.size // max(len(array), 1))).all(axis=1)
        if name == "x" and "mask" in self.arrays:  # what is masked may hold anything
            mask = np.asarray(self.arrays["mask"], bool)
            valid = mask.reshape(*mask.shape, *[1] * (array.ndim - mask.ndim))
            bad = (~np.isfinite(array) & valid).reshape(len(array), -1).any(axis=1)
        if bad.any():
            first = int(np.argmax(bad))
            raise DataError(f"{name} of example {first} in {self.where} is NaN or infinite"
                            + (f", and so are {bad.sum() - 1} others" if bad.sum() > 1 else "")
                            + ". Remove these examples, or replace the values.")

    @property
    def num_classes(self) -> int:
        return int(self.arrays["label"].max(initial=0)) + 1 if "label" in self.arrays else 1

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return {name: array[i] for name, array in self.arrays.items()}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices` [b]."""
        return {name: array[indices] for name, array in self.arrays.items()}


def file(*, split: str,
         path: str = "data/{split}.npz",  # .npz with the array x (or image), and label, mask, conditions; or .npy of x
         ) -> Records:
    """Arrays of a .npz or .npy file, held in memory."""
    require("{split}" in path or split == "train", "split", split, "is another split than train, so that data.path "
            "must contain {split}, which is replaced by it.")
    found = expanded(path.replace("{split}", split))
    if not found.is_file():
        raise DataError(f"There is no file {str(found)!r} (config.data.path, config.data.split).")
    return read_file(found, "train")


def read_file(found: Path, split: str) -> Records:
    """The split of a .npy or .npz. Raises NoSplit if it holds another alone."""
    if found.suffix == ".npy":
        with reading(f"{found} cannot be read as a plain array", "Write it again, with numpy.save."):
            content = ordinary(found).read_bytes()
            check_room(2 * len(content), f"The content of {found}")
            array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
            arrays = {_name_of(array): array}
    else:
        arrays = npz.read_npz(found)
    if split != "train" and f"{split}_images" not in arrays:
        raise NoSplit(f"{found} has no split {split!r}: its arrays are the split train.")
    arrays = _usual_names(arrays, split)
    if not FIELDS & set(arrays):
        raise DataError(f"{found} must hold an array named x, of floats, image or video, of bytes, or audio, of "
                        f"sound. It holds: {', '.join(arrays) or 'none'}.")
    return Records(arrays, str(found))


def _usual_names(arrays: dict[str, np.ndarray], split: str) -> dict[str, np.ndarray]:
    """The arrays by our names, of the names in use: arr_0 and arr_1 (labels) of published samples and of our own, and
    SPLIT_images and SPLIT_labels."""
    for data, label in (("arr_0", "arr_1"), (f"{split}_images", f"{split}_labels")):
        if data in arrays and not FIELDS & set(arrays):
            found = {_name_of(arrays[data]): arrays[data]}
            return found | ({"label": arrays[label]} if label in arrays else {})
    return arrays


def _name_of(array: np.ndarray) -> str:
    if array.dtype == np.int16 and array.ndim == 3:  # as clips of sound are written
        return "audio"
    return {4: "image", 5: "video"}.get(array.ndim, "x") if array.dtype == np.uint8 else "x"


def mixture(*, split: str,
            points: int = 20_000,   # number of points
            modes: int = 8,         # Gaussians, evenly on a circle
            radius: float = 4.0,    # of the circle
            spread: float = 0.3,    # standard deviation of each Gaussian
            ) -> Records:
    """Points of the plane from a mixture of Gaussians on a circle, whose number is the label."""
    require(points >= 1, "points", points, "must be positive.")
    require(modes >= 1, "modes", modes, "must be positive.")
    splits = ("train", "test")
    if split not in splits:
        raise DataError(f"The mixture has no split {split!r}. Choose one of: {', '.join(splits)}.")
    rng = np.random.Generator(np.random.Philox(key=splits.index(split)))
    label = (np.arange(points) % modes).astype(np.int32)
    angle = 2 * np.pi * label / modes
    centre = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Records({"x": (centre + spread * rng.standard_normal((points, 2))).astype(np.float32), "label": label},
                   "the mixture")


SOURCES = {"file": file, "mixture": mixture}
