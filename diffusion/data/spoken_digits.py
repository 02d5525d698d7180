"""The Free Spoken Digit Dataset: 3,000 recordings of ten digits by six speakers, 8 kHz (Jackson et al. 2018)."""
import re
from typing import Any

import numpy as np

from diffusion.data import entries
from diffusion.data.folder import FileSource
from diffusion.errors import DataError, NoSplit
from diffusion.io.reading import expanded

HELD_OUT = 5  # takes 0 .. 4 of each speaker and digit are the split test, by the data set's own rule
_NAME = re.compile(r"(?:.*/)?(\d)_([a-z]+)_(\d+)\.wav")


def fsdd(*, split: str,
         dir: str = "data",         # the data's folder or file; for tfds, the data_dir of the prepare program
         ) -> FileSource:
    """The recordings DIGIT_SPEAKER_TAKE.wav below a folder, or in its .zip, in the order of their names; the label is
    the digit. Raises DataError if there are none, NoSplit for another split than train and test."""
    if split not in ("train", "test"):
        raise NoSplit(f"The spoken digits have no split {split!r}, but train and test (config.data.split).")
    if not (path := expanded(dir)).exists():
        raise DataError(f"There is no folder or .zip {str(path)!r} (config.data.dir). The Free Spoken Digit Dataset "
                        "is at "
                        "https://github.com/Jakobovski/free-spoken-digit-dataset")
    found = entries.opened(path)
    matches: dict[str, Any] = {name: match for name in found.names if (match := _NAME.fullmatch(name))}
    names = [name for name, match in matches.items() if (int(match[3]) < HELD_OUT) == (split == "test")]
    if not names:
        raise DataError(f"{path} holds no recordings of the split {split}: files such as 7_theo_12.wav, a digit, a "
                        "speaker and "
                        "a take.")
    return FileSource(found, names, np.array([int(matches[name][1]) for name in names], np.int32),
                      tuple(map(str, range(10))))


SOURCES = {"fsdd": fsdd}
