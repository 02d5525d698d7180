"""Images and labels from forms that are common to all data sets: an npz file, a folder of image files."""
import pathlib
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffusion.errors import DataError

# split -> (images uint8 [N, H, W, C], labels int32 [N])
Splits = dict[str, tuple[np.ndarray, np.ndarray]]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_NAMES = ("train", "test")


def read_npz(path: pathlib.Path) -> Splits:
    """train_images uint8 [N, H, W, C] and train_labels integer [N], and the same for test if it is there."""
    try:
        with np.load(path, allow_pickle=False) as file:  # a pickle could run any code
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise DataError(f"{path} cannot be read as an .npz file of plain arrays ({e}). Write it again, with "
                        "numpy.savez.") from e
    keys = [f"{split}_{kind}" for split in _NAMES for kind in ("images", "labels")]
    wanted = keys if "test_images" in arrays or "test_labels" in arrays else keys[:2]
    missing = [key for key in wanted if key not in arrays]
    if missing:
        raise DataError(f"{path} has no {' and no '.join(missing)}. It must have {', '.join(keys[:2])}, and may have "
                        f"{', '.join(keys[2:])}; it has: {', '.join(arrays) or 'nothing'}.")
    for key in wanted[1::2]:
        if arrays[key].ndim != 1 or not np.issubdtype(arrays[key].dtype, np.integer):
            raise DataError(f"{key} in {path} must be integers [N], but it is {arrays[key].dtype} "
                            f"{list(arrays[key].shape)}.")
    return {image.split("_")[0]: (arrays[image], arrays[label].astype(np.int32))
            for image, label in zip(wanted[::2], wanted[1::2], strict=True)}


def read_image_folder(folder: pathlib.Path, class_names: Sequence[str]) -> Splits:
    """folder/{train,test}/CLASS/*, CLASS a name or a number from 0; sorted by class, then by file name."""
    return {split: _read_classes(folder / split, class_names) for split in _NAMES if (folder / split).is_dir()}


def _read_classes(folder: pathlib.Path, class_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    label_of = {name: i for i, name in enumerate(class_names)} | {str(i): i for i in range(len(class_names))}
    class_folders = [p for p in folder.iterdir() if p.is_dir()]
    unknown = sorted(p.name for p in class_folders if p.name not in label_of)
    if unknown:
        raise DataError(f"{folder} has the folder(s) {', '.join(unknown[:5])}, which name no class. Name them by the "
                        f"classes ({', '.join(class_names)}) or by number, 0..{len(class_names) - 1}.")
    files = sorted((label_of[p.name], file) for p in class_folders for file in p.iterdir()
                   if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataError(f"{folder} has no images: expected {folder}/CLASS/*.png (or {', '.join(_SUFFIXES[1:])}).")
    images, first = [], files[0][1]
    for _, file in tqdm(files, desc=f"reading {folder.name}", unit=" images", mininterval=1):
        try:
            image = np.asarray(Image.open(file).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as e:  # Pillow raises SyntaxError for broken PNG chunks
            raise DataError(f"{file} cannot be read as an image ({e}). Replace or remove it.") from e
        if images and image.shape != images[0].shape:
            raise DataError(f"{file} is {image.shape[0]}x{image.shape[1]}, but {first} is {images[0].shape[0]}x"
                            f"{images[0].shape[1]}. Resize all images to one size.")
        images.append(image)
    return np.stack(images), np.array([label for label, _ in files], np.int32)
