"""Prepares a data set from a source of images: read, check against facts about the official data, write."""
import contextlib
import dataclasses
import fcntl
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from diffusion.data.array_records import tfds_source
from diffusion.data.pipeline import to_arrays
from diffusion.data.prepare import readers, writer
from diffusion.data.prepare.readers import Splits
from diffusion.errors import DataError
from diffusion.io import download
from diffusion.io.reading import expanded


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """The facts about an official data set. Images are uint8 [N, H, W, C]."""
    name: str
    version: str
    description: str
    homepage: str
    citation: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    counts: Mapping[str, int]     # split -> number of images, the classes equally frequent
    sha256: Mapping[str, str]     # split -> digest of the images' bytes in official order, where known
    archives: Mapping[str, str]   # file name of an official archive -> md5
    # Reads an official archive or the folder of its files; None if the path is neither.
    read_official: Callable[[pathlib.Path], Splits | None]


def prepare(data_set: DataSet, *, source: str, data_dir: str, allow_other: bool = False) -> pathlib.Path:
    """Writes data_dir/NAME/VERSION from `source` and returns that path; does nothing if it exists.

    The folder is written elsewhere and moved there at the end. Raises DataError for a source that is missing, damaged,
    or not the official data (without allow_other), for a second run at the same time, and for a full disk.
    """
    data_dir = expanded(data_dir)
    target = data_dir / data_set.name / data_set.version
    if target.exists():
        print(f"{target} is already prepared. To prepare it again, delete that folder.")
        return target
    try:
        with only_one(target.parent):
            splits, official = _read(data_set, source, data_dir)
            note = _check(data_set, splits, source=source, official=official, allow_other=allow_other)
            _write(data_set, splits, note, target)
    except OSError as e:
        raise DataError(f"Preparing {target} stopped: {e}. Fix this (a full disk? no permission?) and run the same "
                        "command again; nothing half-finished was left there.") from e
    counts = ", ".join(f"{len(images)} {split}" for split, (images, _) in splits.items())
    print(f"{target} is ready: {counts} images. {note}".strip())
    return target


def _write(data_set: DataSet, splits: Splits, note: str, target: pathlib.Path) -> None:
    """Writes to a temporary folder, reads everything back, and only then moves the folder to `target`."""
    unfinished = target.parent / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed run
    try:
        folder = unfinished / data_set.name / data_set.version
        writer.write(folder, splits, writer.Layout(
            name=data_set.name, version=data_set.version, description=f"{data_set.description} {note}".strip(),
            homepage=data_set.homepage, citation=data_set.citation, class_names=data_set.class_names,
            shape=data_set.image_shape))
        for split, (images, labels) in splits.items():
            found = to_arrays(tfds_source(data_set.name, str(unfinished), split))
            if not np.array_equal(found["image"], images) or not np.array_equal(found["label"], labels):
                raise OSError(f"the {split} images read back from {folder} differ from those written")
        os.rename(folder, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def only_one(folder: pathlib.Path) -> Iterator[None]:
    """Locks `folder` against a second run. The system releases the lock when the process ends, in any way."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise DataError(f"Another run is preparing {folder}. Wait for it to finish, or end it.") from e
        yield


def _read(data_set: DataSet, source: str, data_dir: pathlib.Path) -> tuple[Splits, bool]:
    """The splits, and whether the source has the form of the published data set."""
    if download.is_url(source):
        md5 = data_set.archives.get(download.file_name(source))
        path = download.fetch(source, data_dir / "downloads", digest=f"md5:{md5}" if md5 else "")
    else:
        path = expanded(source)
    if not path.exists():
        raise DataError(f"There is no file or folder {source!r}. --source takes a path or an http(s) URL; --help lists "
                        f"what it may hold. The official archives ({', '.join(data_set.archives)}) are at "
                        f"{data_set.homepage}")
    splits = data_set.read_official(path)
    if splits is not None:
        return splits, True
    if path.suffix == ".npz":
        return readers.read_npz(path), False
    if (path / "train").is_dir():
        return readers.read_image_folder(path, data_set.class_names), False
    raise DataError(f"{path} is not one of the forms in which {data_set.name} is read: an official archive "
                    f"({', '.join(data_set.archives)}), the folder of its unpacked files, an .npz file, or a folder "
                    "with train/CLASS/*.png. See: python -m diffusion.data.prepare --help")


def _check(data_set: DataSet, splits: Splits, *, source: str, official: bool, allow_other: bool) -> str:
    """A note on how the images differ from the official ones, or "". Raises DataError if they must not differ."""
    for split, (images, labels) in splits.items():
        if images.shape[1:] != data_set.image_shape or images.dtype != np.uint8:
            raise DataError(f"The {split} images of {source} are {images.dtype} {list(images.shape[1:])}; the images "
                            f"of {data_set.name} are uint8 {list(data_set.image_shape)}.")
        if len(images) != len(labels) or not len(images):
            raise DataError(f"The {split} split of {source} has {len(images)} images and {len(labels)} labels. There "
                            "must be one label for each image, and at least one image.")
        if labels.min() < 0 or labels.max() >= len(data_set.class_names):
            raise DataError(f"The {split} labels of {source} run from {labels.min()} to {labels.max()}; the labels "
                            f"of {data_set.name} are 0..{len(data_set.class_names) - 1}.")
    differences = []
    for split, count in data_set.counts.items():
        if split not in splits:
            differences.append(f"there is no {split} split")
            continue
        images, labels = splits[split]
        per_class = count // len(data_set.class_names)
        digest = hashlib.sha256(np.ascontiguousarray(images)).hexdigest()
        if len(images) != count:
            differences.append(f"{split} has {len(images)} images instead of {count}")
        elif np.any(np.bincount(labels, minlength=len(data_set.class_names)) != per_class):
            differences.append(f"not every class has {per_class} {split} images")
        elif digest != data_set.sha256.get(split, digest):
            differences.append(f"the {split} images differ, or are in another order (sha256 {digest[:12]}..., "
                               f"officially {data_set.sha256[split][:12]}...)")
    if not differences:
        return ""
    found = "; ".join(differences)
    if official:
        raise DataError(f"{source} has the form of the official {data_set.name}, but {found}: it is damaged or "
                        f"incomplete. Get it again from {data_set.homepage}")
    if not allow_other:
        raise DataError(f"{source} is not the official {data_set.name}: {found}. Published results do not compare with "
                        "it. To prepare it nevertheless, add --allow_other.")
    return f"Not the official {data_set.name}: {found}."
