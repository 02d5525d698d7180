"""Writes metrics as JSON lines and as TensorBoard events."""
import io
import json
import math
import os
from pathlib import Path

import numpy as np

from diffusion.errors import CheckpointError, shown
from diffusion.io.files import atomic_write, cannot_write, cause, json_value
from diffusion.io.processes import is_primary

# The values of a row that programs read.
NUMBERS = ("loss", "grad_norm", "learning_rate", "images", "seconds", "images_per_second")
LISTS = ("loss_by_log_snr", "effective_weight_by_log_snr")
# Those that depend on the machine: two equal runs differ in them.
TIMES = ("seconds", "images_per_second", "flops_per_second", "mfu", "data_wait")


class MetricsWriter:
    """Appends rows to a JSON-lines file and their numbers to TensorBoard. Only the first process writes.

    from_step: the step at which training resumes. Rows of later steps, from before a crash, are dropped from both: the
    resumed run logs them again. Use as a context manager.
    """

    def __init__(self, path: str | os.PathLike, tensorboard_dir: str | os.PathLike, *, from_step: int = 0):
        self.path, self._tensorboard_dir = Path(path), str(tensorboard_dir)
        self._file: io.TextIOBase | None = None
        self._events = None  # the writer of tensorboardX
        self._purge_step: int | None = None
        self.truncate_after(from_step)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()

    def write(self, row: dict) -> None:
        """Appends {"step": int, name: value, ...} as one line, flushed to the operating system before returning.

        Values: numbers, strings, None, lists and dicts of them, numpy's and JAX's too. NaN and infinity are written as
        null, since bare NaN is not JSON. TensorBoard gets the finite numbers; entry i of a list as `name/i`.
        Raises CheckpointError if the disk is full or the file cannot be written.
        """
        if not is_primary():
            return
        row = {name: _plain(value) for name, value in row.items()}
        try:
            self._open()
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
            for name, value in _scalars(row):
                self._events.add_scalar(name, value, row["step"])
            self._events.flush()
        except OSError as error:
            raise CheckpointError(cannot_write(self.path, error)) from error

    def truncate_after(self, step: int) -> None:
        """Drops the rows with a later step, and a last line that a killed run left unfinished."""
        self.close()
        if not is_primary() or not self.path.exists():
            return
        rows = read_rows(self.path)
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows) or not self.path.read_bytes().endswith(b"\n"):
            atomic_write(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._purge_step = step + 1

    def close(self) -> None:
        """Closes the files; another `write` opens them again."""
        for file in (self._file, self._events):
            if file is not None:
                file.close()
        self._file = self._events = None

    def _open(self) -> None:
        if self._file is None:
            import tensorboardX  # takes a second, or more with torch installed, so only training imports it
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")
            self._events = tensorboardX.SummaryWriter(self._tensorboard_dir, purge_step=self._purge_step)


def read_rows(path: str | os.PathLike) -> list[dict]:
    """The rows of a metrics file, without an unfinished last line; empty if there is no file.

    Raises CheckpointError if the file cannot be read or any other line is not a row: an object with a step and
    with the value types of `MetricsWriter`.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {cause(error)}. Move it away, or put the file back.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                rows.append(_checked(json_value(line)))
        except ValueError as error:
            if number == len(lines):  # no line end: the program was killed while writing
                return rows
            raise CheckpointError(f"Line {number} of {path} is not a row of metrics (a JSON object with a \"step\"): "
                                  f"{error}. Correct or delete that line.") from error
    return rows


def _checked(row: dict) -> dict:
    """The row. Raises ValueError if its types differ from those that `write` gives."""
    step = row.get("step")
    if type(step) is not int or not 0 <= step < 2**63:
        raise ValueError(f"its step is {shown(step)}")
    for name in NUMBERS:
        if not _is_number(row.get(name)):
            raise ValueError(f"its {name} is {shown(row[name])}, not a number")
    for name in LISTS:
        value = row.get(name, [])
        if not isinstance(value, list) or not all(map(_is_number, value)):
            raise ValueError(f"its {name} is {shown(value)}, not a list of numbers")
    return row


def _is_number(value) -> bool:
    """Whether the value is a number, or null, which stands for a non-finite or missing number."""
    return value is None or isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value):
    """The value as JSON represents it."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if hasattr(value, "tolist"):
        value = np.asarray(value).tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(row: dict) -> list[tuple[str, float]]:
    pairs = []
    for name, value in row.items():
        entries = [(f"{name}/{i}", v) for i, v in enumerate(value)] if isinstance(value, list) else [(name, value)]
        pairs += [(n, v) for n, v in entries if n != "step" and isinstance(v, (int, float))]
    return pairs
