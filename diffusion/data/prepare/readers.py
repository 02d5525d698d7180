"""Reads images and labels from the forms common to all data sets: an npz file, a folder of image files."""
import pathlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from diffusion.data.augment import TO_UINT8
from diffusion.errors import DataError
from diffusion.io import npz, pictures

# split -> (images uint8 [N, H, W, C], labels int32 [N])
Splits = dict[str, tuple[np.ndarray, np.ndarray]]

_NAMES = ("train", "test")
_LARGEST_LABEL = np.iinfo(np.int32).max


def read_npz(path: pathlib.Path) -> Splits:
    """train_images uint8 [N, H, W, C] and train_labels integer [N], and the same for test if present."""
    found = npz.headers(path)
    keys = [f"{split}_{kind}" for split in _NAMES for kind in ("images", "labels")]
    wanted = keys if "test_images" in found or "test_labels" in found else keys[:2]
    missing = [key for key in wanted if key not in found]
    if missing:
        raise DataError(f"{path} has no {' and no '.join(missing)}. It must have {', '.join(keys[:2])}, and may have "
                        f"{', '.join(keys[2:])}; it has: {', '.join(found) or 'nothing'}.")
    for image, label in zip(wanted[::2], wanted[1::2], strict=True):
        if found[image].dtype != np.uint8 or len(found[image].shape) != 4:
            raise DataError(f"{image} in {path} must be uint8 [N, H, W, C], but it is {found[image]}. {TO_UINT8}")
        if len(found[label].shape) != 1 or not np.issubdtype(found[label].dtype, np.integer):
            raise DataError(f"{label} in {path} must be integers [N], but it is {found[label]}.")
    arrays = npz.read_npz(path, wanted)
    for label in wanted[1::2]:
        if (strange := arrays[label][(arrays[label] < 0) | (arrays[label] > _LARGEST_LABEL)]).size:
            raise DataError(f"{label} in {path} has {strange[0]}, which is not a label: labels are numbers from 0.")
    return {image.split("_")[0]: (arrays[image], arrays[label].astype(np.int32))
            for image, label in zip(wanted[::2], wanted[1::2], strict=True)}


def read_image_folder(folder: pathlib.Path, class_names: Sequence[str]) -> Splits:
    """folder/{train,test}/CLASS/*, CLASS a name or a number from 0; sorted by class, then by file name.

    Prints notes on pictures that are not plain 8-bit colours (`io.pictures`) and on other entries of the folder. Raises
    DataError for pictures that would be left out by mistake: in no class, in two folders of one class, in nested ones.
    """
    others = sorted(p.name for p in folder.iterdir() if p.name not in _NAMES and not p.name.startswith("."))
    if others:
        print(f"note: of {folder} only {' and '.join(_NAMES)} are read, not {_some(others)}.")
    return {split: _read_classes(folder / split, class_names) for split in _NAMES if (folder / split).is_dir()}


def _read_classes(folder: pathlib.Path, class_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    files, seen = _files_by_class(folder, class_names), Counter()
    images, size, whose = [], None, ""
    for _, file in tqdm(files, desc=f"reading {folder.name}", unit=" images", mininterval=1):
        images.append(pictures.decode(file, channels=3, size=size, whose=whose, seen=seen))
        size, whose = images[0].shape[:2], f"but {files[0][1]} is"
    if +seen:
        print(f"note: of the {len(files):,} pictures in {folder}, " + ", ".join(
            f"{count:,} {'is' if count == 1 else 'are'} {what}" for what, count in seen.items()) + ".")
    return np.stack(images), np.array([label for label, _ in files], np.int32)


def _files_by_class(folder: pathlib.Path, class_names: Sequence[str]) -> list[tuple[int, pathlib.Path]]:
    """(label, path) of each picture."""
    label_of = {name: i for i, name in enumerate(class_names)} | {str(i): i for i in range(len(class_names))}
    inside = sorted(folder.iterdir())
    class_folders = [p for p in inside if p.is_dir()]
    if unknown := [p.name for p in class_folders if p.name not in label_of]:
        raise DataError(f"{folder} has the folder(s) {_some(unknown)}, which name no class. Name folders by the "
                        f"classes ({', '.join(class_names)}) or by number, 0..{len(class_names) - 1}.")
    if loose := [p for p in inside if p.suffix.lower() in pictures.ENDINGS and not p.is_dir()]:
        raise DataError(f"{loose[0]} is in no class: move it into {folder}/CLASS.")
    folder_of: dict[int, pathlib.Path] = {}
    for path in class_folders:
        label = label_of[path.name]
        if (other := folder_of.setdefault(label, path)) != path:
            raise DataError(f"{other} and {path} are the same class, {label} ({class_names[label]}). Put their "
                            "pictures into one folder.")
        if nested := sorted(p for p in path.iterdir() if p.is_dir()):
            raise DataError(f"{nested[0]} is a folder in a class's folder, whose pictures would be left out. Move them "
                            f"into {path}.")
    files = [(label, file) for label in sorted(folder_of) for file in pictures.listed(folder_of[label])]
    if not files:
        raise DataError(f"{folder} has no images: expected {folder}/CLASS/*.png (or "
                        f"{', '.join(pictures.ENDINGS[1:])}).")
    return files


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
