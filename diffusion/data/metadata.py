"""Labels and conditions beside files: class folders, and the columns of metadata.csv, metadata.jsonl or a table."""
import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from diffusion.data.entries import Entries
from diffusion.errors import DataError

Rows = Mapping[str, Sequence[Any]]  # column -> a value for each example
_FILES = ("metadata.jsonl", "metadata.csv")


def beside(entries: Entries, inside: str) -> dict[str, dict]:
    """The rows of metadata.jsonl or metadata.csv in the folder `inside`, or else at the top, by their `file_name`, a
    path relative to it. Raises DataError without such a file, or for a damaged one."""
    folders = [inside, *(f"{parent}/" for parent in PurePosixPath(inside or "x").parents if str(parent) != "."), ""]
    found = next((folder + name for folder in folders for name in _FILES if folder + name in entries.names), None)
    if found is None:
        raise DataError(f"{entries.where} has neither {' nor '.join(_FILES)}, which hold the columns of config.data "
                        "(labels, columns, captions): one row for each file, with its path in the column file_name.")
    text = entries.read(found).content.decode("utf-8-sig", errors="replace")
    rows, top = {}, found.rpartition("/")[0]
    for number, row in enumerate(_parsed(text, found, entries.where), 1):
        name = row.pop("file_name", None)
        if not isinstance(name, str) or not name:
            raise DataError(f"Row {number} of {found} in {entries.where} has no file_name.")
        name = (f"{top}/{name}" if top else name).removeprefix(inside)
        if name in rows:
            raise DataError(f"{found} in {entries.where} has two rows for {name}.")
        rows[name] = row
    return rows


def _parsed(text: str, found: str, where: str) -> list[dict]:
    try:
        if found.endswith(".csv"):
            return [dict(row) for row in csv.DictReader(io.StringIO(text))]
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, csv.Error) as error:
        raise DataError(f"{found} in {where} cannot be read: {error}. A .jsonl has one JSON object on each "
                        "line.") from error
    if wrong := next((i for i, row in enumerate(rows, 1) if not isinstance(row, dict)), None):
        raise DataError(f"Line {wrong} of {found} in {where} is not a JSON object.")
    return rows


def rows_of(table: Mapping[str, dict], names: Sequence[str], where: str) -> dict[str, list]:
    """The columns for the files of these names. Raises DataError for a file without a row."""
    if lacking := [name for name in names if name not in table]:
        raise DataError(f"{lacking[0]} in {where} has no row in the metadata, and so have {len(lacking) - 1:,} other "
                        f"files. The metadata names, for example, {next(iter(table), 'nothing')}.")
    every = dict.fromkeys(column for name in names for column in table[name])
    return {column: [table[name].get(column) for name in names] for column in every}


def labels(chosen: str, names: Sequence[str], rows: Rows, where: str, class_names: Sequence[str] = ()
           ) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels int32 [N] and the names of the classes, sorted. Raises DataError for a file in no class, and for one
    class alone."""
    if chosen == "none":
        return np.zeros(len(names), np.int32), ()
    if chosen == "folders":
        if loose := [name for name in names if "/" not in name]:
            raise DataError(f"{loose[0]} in {where} is in no class folder (config.data.labels=folders). Move it into "
                            "the folder of its class, or set config.data.labels=none.")
        values = [name.split("/")[0] for name in names]
    else:
        values = column(rows, chosen, where)
        if missing := [i for i, value in enumerate(values) if value in (None, "")]:
            raise DataError(f"Example {missing[0]} of {where} has no value in the column {chosen!r} "
                            "(config.data.labels).")
    if class_names:
        if not all(isinstance(value, int) and 0 <= value < len(class_names) for value in values):
            raise DataError(f"The column {chosen!r} of {where} must hold the numbers 0 .. {len(class_names) - 1} of "
                            f"its classes; it holds {sorted(set(map(str, values)))[:5]}.")
        return np.array(values, np.int32), tuple(class_names)
    # Numbers in the order of their values: class "10" comes after "9".
    found = sorted(set(map(str, values)), key=lambda text: (0, int(text), text) if text.isdecimal() else (1, 0, text))
    if len(found) < 2:
        raise DataError(f"{where} has one class alone, {found[0]!r} (config.data.labels): a model of it needs no "
                        "labels. Set config.data.labels=none.")
    number = {name: i for i, name in enumerate(found)}
    return np.array([number[str(value)] for value in values], np.int32), tuple(found)


def column(rows: Rows, name: str, where: str) -> Sequence[Any]:
    """The values of a column. Raises DataError if there is none of that name."""
    if name not in rows:
        raise DataError(f"{where} has no column {name!r}. It has: {', '.join(rows) or 'none'}.")
    return rows[name]


def conditions(rows: Rows, columns: Sequence[str], captions: str, embed: str, embedder: Callable[[str], Callable],
               where: str) -> dict[str, np.ndarray]:
    """The arrays [N, ...] of the chosen columns by name, and "text", the captions as the function `embed` gives
    them."""
    found = {name: _numbers(column(rows, name, where), name, where) for name in columns}
    if bool(captions) != bool(embed):
        raise DataError("config.data.captions names a column of texts, and config.data.embed the function that makes "
                        "arrays of them: give both.")
    if captions:
        texts = ["" if text is None else str(text) for text in column(rows, captions, where)]
        array = np.asarray(embedder(embed)(texts))
        if len(array) != len(texts) or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise DataError(f"{embed} (config.data.embed) must return finite numbers [{len(texts)}, ...] of "
                            f"{len(texts)} texts, but it returned {array.dtype} {list(array.shape)}.")
        found["text"] = array.astype(np.float32)
    return found


def _numbers(values: Sequence[Any], name: str, where: str) -> np.ndarray:
    """int32 or float32 [N, ...] of a column, whose values may be written as text. Raises DataError for other values."""
    try:
        parsed = [json.loads(value) if isinstance(value, str) else value for value in values]
        array = np.array(parsed)
    except ValueError:
        array = np.array(None)
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        bad = next((v for v in values if v is None or isinstance(v, str) and not v.strip()), None)
        raise DataError(f"The column {name!r} of {where} (config.data.columns) must hold a finite number, or a list "
                        f"of numbers of one length, for each example{'; one has none' if bad is None else ''}.")
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
