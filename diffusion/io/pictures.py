"""Pictures that a user gives: files to uint8 arrays, each checked."""
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from diffusion.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def read(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 [N, H, W, C] of one picture, of all in a folder by name, or of `arr_0` in a .npz as `save_samples` writes.

    Raises DataError if there are none, one cannot be read, or has not `shape` [H, W, C].
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS and p.stem != "grid")
        if not files:
            raise DataError(f"There are no pictures in {path}: files that end in {', '.join(ENDINGS)}.")
        return np.concatenate([read(file, shape) for file in files])
    if path.suffix == ".npz":
        return _checked(_archive(path), shape, path)
    picture = np.asarray(_opened(path).convert("L" if shape[-1] == 1 else "RGB"))
    return _checked(picture.reshape(1, *picture.shape[:2], -1), shape, path)


def read_mask(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """bool [H, W, 1], where the picture is white; it has black and white alone. Raises DataError otherwise."""
    levels = np.asarray(_opened(path).convert("L"))[..., None]
    if levels.shape[:2] != shape[:2]:
        raise DataError(f"The mask {path} is {_by(levels.shape[:2])} (height x width), the images of this model are "
                        f"{_by(shape[:2])}. Scale it without smoothing, or draw it anew.")
    if np.any((levels > 16) & (levels < 239)):
        raise DataError(f"The mask {path} has greys in it. White is drawn anew, black is kept: use these two alone, in "
                        "a PNG, since a JPEG blurs edges.")
    return levels > 127


def _opened(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
        return picture
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a picture that can be read, or is damaged: {error}") from error


def _archive(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as found:
            if "arr_0" not in found:
                raise DataError(f"{path} has no array arr_0, but {', '.join(found) or 'none'}.")
            array = found["arr_0"]
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a .npz of plain arrays, or is damaged: {error}") from error
    if array.dtype != np.uint8 or array.ndim != 4 or not len(array):
        raise DataError(f"{path}: arr_0 must be uint8 [N, H, W, C] with N > 0, got {array.dtype} {list(array.shape)}.")
    return array


def _checked(images: np.ndarray, shape: tuple[int, int, int], path: Path) -> np.ndarray:
    if images.shape[1:] != shape:
        raise DataError(f"{path} is {_by(images.shape[1:])} (height x width x channels), the images of this model are "
                        f"{_by(shape)}. Crop or scale it to that.")
    return images


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
