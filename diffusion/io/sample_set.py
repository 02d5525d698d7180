"""Writes a set of samples into a folder of its own: a file for each, an overview, and all as one array."""
import itertools
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from diffusion.errors import CheckpointError, ConfigError
from diffusion.io.files import atomic_write, cannot_write, check_can_be_written

SHOWN = 100  # at most this many samples of a set are shown in its overview


def check_samples_folder(folder: str | os.PathLike) -> None:
    """Raises ConfigError if the folder already holds samples (two sets must not be mixed, nor the first one lost), or
    cannot be a folder."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; samples need a folder. Give another --out.")
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    found = sorted(n for n in names if re.fullmatch(r"\d{6,}\.(png|wav|gif|mp4)|grid\.png|samples\.npz", n))
    if found:
        raise ConfigError(f"{folder} holds samples already ({found[0]}{', ...' if len(found) > 1 else ''}). Give "
                          "another --out, or move or delete that folder.")
    check_can_be_written(folder / "samples.npz")


def save_set(folder: str | os.PathLike, batches: Iterable[np.ndarray], *, count: int, ending: str,
             save: Callable[[Path, np.ndarray], object], overview: Callable[[np.ndarray], object],
             first_index: int = 0, arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Saves sample i as `{first_index + i:06d}{ending}`, then `overview` of the first SHOWN, then samples.npz.

    batches: [b, ...] of one type and shape, `count` samples in all, each written as it comes and not kept. samples.npz
    holds all as `arr_0` [N, ...], as the field's evaluators read it, and the given `arrays`; it marks the set as whole.
    `check_samples_folder` refuses a folder with samples before the first batch is drawn. Raises CheckpointError if the
    disk is full.
    """
    folder = Path(folder)
    check_samples_folder(folder)
    batches, index, shown = iter(batches), itertools.count(first_index), []
    first = next(batches)  # drawn before the folder is made

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as array:
                np.lib.format.write_array_header_1_0(array, {
                    "descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False,
                    "shape": (count, *first.shape[1:])})
                for batch in itertools.chain([first], batches):
                    for sample in batch:
                        path = folder / f"{next(index):06d}{ending}"
                        try:
                            save(path, sample)  # not atomic: tens of thousands of fsyncs take minutes
                        except OSError as error:
                            raise CheckpointError(cannot_write(path, error)) from error
                    shown.extend(batch[:SHOWN - len(shown)])
                    array.write(np.ascontiguousarray(batch).tobytes())
            for name, values in (arrays or {}).items():
                with archive.open(f"{name}.npy", "w") as array:
                    np.lib.format.write_array(array, np.asarray(values), allow_pickle=False)
        if (written := next(index) - first_index) != count:
            raise ValueError(f"{written} samples came, but {count} were announced")
        overview(np.stack(shown))

    atomic_write(folder / "samples.npz", write)
