"""Data sets of Hugging Face: saved to disk as Arrow files, or in parquet files. Reads encoded files from a column."""
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.data import metadata
from diffusion.data.files import File
from diffusion.errors import DataError, NoSplit
from diffusion.io.reading import check_room, ordinary, reading


@dataclass(frozen=True, eq=False)
class TableSource:
    """The files in a column of a table: `source[i]` -> {"file": File, "label": int, ...}."""
    paths: tuple[str, ...]
    column: str
    where: str
    rows: np.ndarray                           # of the table, [N]
    labels: np.ndarray                         # int32, of the whole table
    class_names: tuple[str, ...] = ()
    conditions: dict[str, np.ndarray] = field(default_factory=dict)  # of the whole table
    encoded = True

    @property
    def num_classes(self) -> int:
        return max(len(self.class_names), 1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = int(self.rows[i])
        where = f"row {row} of {self.where}"
        with reading(f"{where} cannot be read", "Save the data set again."):
            value = _table(self.paths, self.column)[self.column][row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not content:
            raise DataError(f"{where} has no content in its column {self.column!r}, only a path, which is not "
                            "followed: save the data set with its files in it.")
        return {"file": File(where, content), "label": self.labels[row],
                **{name: values[row] for name, values in self.conditions.items()}}


def opened(path: Path, split: str, labels: str, columns: Sequence[str]) -> tuple[TableSource, dict[str, list]] | None:
    """The source of a data set in parquet or Arrow files, and its columns; None for another folder or file."""
    files = _files(path, split)
    if files is None:
        return None
    schema = _schema(files)
    column = next((f.name for f in schema if _encoded(f.type)), None)
    if column is None:
        raise DataError(f"{path} has no column of encoded files (images or sounds). Its columns: "
                        f"{', '.join(schema.names)}.")
    if labels == "folders":
        raise DataError(f"{path} is a table without folders: config.data.labels is the name of a column, or none. Its "
                        f"columns: {', '.join(schema.names)}.")
    wanted = [name for name in dict.fromkeys((*columns, *[labels] * (labels != "none"))) if name in schema.names]
    with reading(f"{path} cannot be read", "Save the data set again."):
        table = _table(files, *wanted)
        found = {name: table[name].to_pylist() for name in wanted}
        count = len(_table(files, column)) if not wanted else len(table)
    if not count:
        raise DataError(f"{path} has no rows.")
    rows = {name: found.get(name, []) for name in schema.names}
    number, names = metadata.labels(labels, range(count), rows, str(path), _class_names(schema, labels))
    return TableSource(files, column, str(path), np.arange(count), number, names), rows


def _files(path: Path, split: str) -> tuple[str, ...] | None:
    """The files of a split. Raises DataError if the data set has no such split."""
    if path.suffix.lower() == ".parquet":
        _check_split(split, ["train"], path)
        return (str(ordinary(path)),)
    if not path.is_dir():
        return None
    if (described := path / "dataset_dict.json").exists():  # several splits saved to disk
        with reading(f"{described} cannot be read", "Save the data set again."):
            splits = list(json.loads(described.read_text())["splits"])
        _check_split(split, splits, path)
        path = path / split
    elif (path / "state.json").exists():
        _check_split(split, ["train"], path)
    if (path / "state.json").exists():
        with reading(f"{path / 'state.json'} cannot be read", "Save the data set again."):
            names = [one["filename"] for one in json.loads((path / "state.json").read_text())["_data_files"]]
        if wrong := [name for name in names if Path(name).name != name]:
            raise DataError(f"{path / 'state.json'} names the file {wrong[0]!r} outside its folder.")
        return tuple(str(ordinary(path / name)) for name in names)
    files = sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    if not files:
        return None
    splits = {file.name.split("-")[0].removesuffix(".parquet") for file in files}
    if "train" in splits:
        _check_split(split, splits, path)
        files = [file for file in files if file.name.split("-")[0].removesuffix(".parquet") == split]
    elif split != "train":
        _check_split(split, ["train"], path)
    return tuple(str(ordinary(file)) for file in files)


def _check_split(split: str, splits: Sequence[str], path: Path) -> None:
    if split not in splits:
        raise NoSplit(f"{path} has no split {split!r}, but {', '.join(sorted(splits))} (config.data.split).")


def _arrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Data sets in parquet or Arrow files are read by pyarrow, which is not installed. Install the "
                        "extra: pip install 'diffusion[tables]'") from error
    return pyarrow


def _encoded(kind: Any) -> bool:
    """Whether a column's type is an encoded file: bytes, or Hugging Face's {bytes, path}."""
    binary = _arrow().types.is_binary, _arrow().types.is_large_binary
    if _arrow().types.is_struct(kind):
        return any(f.name == "bytes" and any(is_(f.type) for is_ in binary) for f in kind)
    return any(is_(kind) for is_ in binary)


def _schema(files: tuple[str, ...]) -> Any:
    with reading(f"{files[0]} cannot be read", "Save the data set again, or remove the damaged file."):
        if files[0].endswith(".parquet"):
            return _arrow().parquet.read_schema(files[0])
        return _arrow().ipc.open_stream(_arrow().memory_map(files[0])).schema


def _class_names(schema: Any, labels: str) -> tuple[str, ...]:
    """The names that the table gives for the numbers of a column, if it does."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[labels]["names"]))
    except (KeyError, ValueError, TypeError):
        return ()


@functools.lru_cache(maxsize=8)
def _table(files: tuple[str, ...], *columns: str) -> Any:
    """These columns, opened once in each process: Arrow files are mapped, parquet files are read into memory."""
    arrow = _arrow()
    parts = []
    for file in files:
        if file.endswith(".parquet"):
            found = arrow.parquet.ParquetFile(file)
            check_room(sum(found.metadata.row_group(i).total_byte_size for i in range(found.num_row_groups)),
                       f"The content of {file}")
            parts.append(found.read(columns=list(columns)))
        else:
            parts.append(arrow.ipc.open_stream(arrow.memory_map(file)).read_all().select(list(columns)))
    return arrow.concat_tables(parts)
