"""One's own data: a folder or archive of files, arrays, or a data set in one of the usual layouts."""
import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from diffusion.data import array_records, arrays, entries, metadata, sources, tables
from diffusion.data.sources import Source
from diffusion.errors import DataError, NoSplit, shown
from diffusion.io.reading import expanded

_SPLIT = re.compile(r"(\w+)(?:\[(\d+%?)?:(\d+%?)?\])?")
_NO_EXAMPLES = {"", ".txt", ".md", ".json", ".jsonl", ".csv", ".html", ".xml", ".ini", ".db"}  # left out without a note


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """Encoded files, which a kind of data decodes: `source[i]` -> {"file": File or a tuple of them, "label": int,
    ...}."""
    entries: entries.Entries
    examples: Sequence[str | tuple[str, ...]]  # names of files; several are the frames of one clip
    labels: np.ndarray                         # int32 [N]
    class_names: tuple[str, ...] = ()
    conditions: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # [N, ...] by name
    encoded = True

    @property
    def num_classes(self) -> int:
        return max(len(self.class_names), 1)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> dict[str, Any]:
        name = self.examples[i]
        file = self.entries.read(name) if isinstance(name, str) else tuple(self.entries.read(one) for one in name)
        return {"file": file, "label": self.labels[i], **{key: rows[i] for key, rows in self.conditions.items()}}


def folder(*, split: str, kind: Any, embedder: Callable[[str], Callable],
           dir: str = "data",        # the data's folder or file; for tfds, the data_dir of the prepare program
           labels: str = "none",     # of files: none; folders: the first folder in a file's path is its class; or a
                                     # column of metadata.csv or .jsonl beside them, or of a table
           columns: tuple[str, ...] = (),  # columns that become conditions of these names, numbers or lists of numbers
           captions: str = "",       # a column of text that becomes the condition "text", by `embed`
           embed: str = "",          # PLUGIN:FUNCTION, a list of texts -> float array [N, ...]
           skip_unreadable: bool = False,  # leave out files that cannot be read; each is tried first
           ) -> Source:
    """The examples of one's own data: a folder of files at any depth, a .zip or .tar of them, a .npz, .npy or .parquet,
    or the folder of a data set in the layout of Hugging Face, TFDS or idx. Its splits are the folders train and test,
    if they exist; else all is train. "train[5%:]" and "train[:5%]" are parts of a split, drawn by a hash of the
    names."""
    path, (base, first, last) = expanded(dir), parse_split(split)
    if not path.exists():
        raise DataError(f"There is no file or folder {str(path)!r} (config.data.dir).")
    if (found := _data_set(path, base)) is not None:
        names = [f"{i:09d}" for i in range(len(found))]
    elif (table := tables.opened(path, base, labels, (*columns, *[captions] * bool(captions)))) is not None:
        found, table_columns = table
        names = [f"{i:09d}" for i in range(len(found))]
        found = dataclasses.replace(found, conditions=metadata.conditions(table_columns, columns, captions,
                                                                          embed, embedder, str(path)))
    else:
        found = _tree(entries.opened(path), base, kind, labels, columns, captions, embed, embedder)
        names = [name if isinstance(name, str) else name[0] for name in found.examples]
    chosen = part(names, first, last, split)
    found = found if len(chosen) == len(names) else subset(found, chosen)
    return readable(found, kind.load) if skip_unreadable and getattr(found, "encoded", False) else found


def parse_split(split: str) -> tuple[str, str, str]:
    """"train[5%:]" -> ("train", "5%", ""). Raises DataError for other text."""
    if (match := _SPLIT.fullmatch(split)) is None:
        raise DataError(f"The split {shown(split)} (config.data.split) is not understood: write train, test, or a "
                        "part of one, such as train[5%:] or train[:1000].")
    return match[1], match[2] or "", match[3] or ""


def part(names: Sequence[str], first: str, last: str, split: str) -> np.ndarray:
    """The ascending indices of the part [first:last] of examples that are ordered by a hash of their names, so that a
    new file moves at most one other into another part. Raises DataError for an empty part."""
    def place(text: str, default: int) -> int:
        if not text:
            return default
        number = int(text.removesuffix("%"))
        return min(round(len(names) * number / 100) if text.endswith("%") else number, len(names))
    start, stop = place(first, 0), place(last, len(names))
    if start >= stop:
        raise DataError(f"The split {split} (config.data.split) has no example of the {len(names):,}.")
    if (start, stop) == (0, len(names)):
        return np.arange(len(names))
    keys = [hashlib.sha256(name.encode()).digest() for name in names]
    return np.sort(np.array(sorted(range(len(names)), key=keys.__getitem__)[start:stop]))


def subset(source: Any, chosen: np.ndarray) -> Source:
    """The examples at `chosen` [n]."""
    if isinstance(source, FileSource):
        return dataclasses.replace(
            source, examples=[source.examples[i] for i in chosen], labels=source.labels[chosen],
            conditions={name: rows[chosen] for name, rows in source.conditions.items()})
    if isinstance(source, arrays.Records):
        return dataclasses.replace(source, arrays={name: rows[chosen] for name, rows in source.arrays.items()})
    if isinstance(source, sources.ArraySource):
        return sources.ArraySource(source.images[chosen], source.labels[chosen])
    if isinstance(source, tables.TableSource):
        return dataclasses.replace(source, rows=source.rows[chosen])
    return sources.Part(source, chosen)


def readable(source: Source, load: Callable) -> Source:
    """The examples that `load` can read, each of which is tried; the others are counted in a note. Raises DataError if
    none is left."""
    kept, faults = [], []
    for i in tqdm(range(len(source)), desc="trying each file", unit=" files", mininterval=1):
        try:
            load(source[i], None)
            kept.append(i)
        except DataError as error:
            faults.append(str(error))
    if not kept:
        raise DataError(f"None of the {len(source):,} files can be read. The first: {faults[0]}")
    if faults:
        print(f"note: {len(faults):,} of {len(source):,} files cannot be read and are left out "
              f"(config.data.skip_unreadable). The first: {faults[0]}")
    return subset(source, np.array(kept))


def _data_set(path: Path, base: str) -> Source | None:
    """The source of arrays or of a data set in one of the known layouts; None for a tree of files."""
    if path.suffix.lower() in (".npz", ".npy"):
        return arrays.read_file(path, base)
    if path.is_dir():
        if any(path.glob("*-idx3-ubyte*")):
            return sources.idx(str(path), base)
        for described in (*path.glob("dataset_info.json"), *sorted(path.glob("*/dataset_info.json"))):
            if (described.parent / "features.json").exists():
                return array_records.tfds_folder(described.parent, base)
    return None


def _tree(found: entries.Entries, base: str, kind: Any, labels: str, columns: Sequence[str], captions: str, embed: str,
          embedder: Callable) -> FileSource:
    """The files of a folder or archive, in the order of their names."""
    frames = getattr(kind, "frame_endings", ())
    inside = _common_folder(found.names)
    names = [name for name in found.names if name.startswith(inside)]
    if splits := {s for s in ("train", "test") if any(name.startswith(f"{inside}{s}/") for name in names)}:
        if base not in splits:
            raise NoSplit(f"{found.where} has no split {base!r}, but {' and '.join(sorted(splits))} "
                            "(config.data.split).")
        inside += f"{base}/"
        names = [name for name in names if name.startswith(inside)]
    elif base != "train":
        raise NoSplit(f"{found.where} has no folder {base!r}: all of its files are the split train. For held-out "
                        "examples use config.data.split=train[:5%], and train[5%:] for training.")
    clips: dict[str, list[str]] = {}
    for name in names:
        ending = PurePosixPath(name).suffix.lower()
        if ending in kind.endings:
            clips[name] = []
        elif ending in frames:
            clips.setdefault(name.rpartition("/")[0] + "/", []).append(name)
    _report_others(found.where, names, kind, frames)
    if not clips:
        others = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in names)
        raise DataError(f"{found.where}{'/' + inside if inside else ''} holds no {kind.called}s: files that end in "
                        f"{', '.join((*kind.endings, *frames)) or 'nothing (this kind is not read from files)'}. "
                        + (f"It holds {', '.join(f'{n:,} {e}' for e, n in others.most_common(5))}." if others else
                           "It is empty."))
    order = sorted(clips)
    table = metadata.beside(found, inside) if columns or captions or labels not in ("none", "folders") else {}
    relative = [name.removeprefix(inside).rstrip("/") for name in order]
    rows = metadata.rows_of(table, relative, found.where) if table else {}
    number, class_names = metadata.labels(labels, relative, rows, found.where)
    return FileSource(found, [name if not clips[name] else tuple(sorted(clips[name], key=_natural)) for name in order],
                      number, class_names,
                      metadata.conditions(rows, columns, captions, embed, embedder, found.where))


def _natural(name: str) -> list:
    """Sorts frame2 before frame10."""
    return [int(text) if text.isdigit() else text for text in re.split(r"(\d+)", name)]


def _common_folder(names: Sequence[str]) -> str:
    """The folders that all names begin with, such as "PHOTOS/" of an archive of one folder; not train and test."""
    parts = [name.split("/")[:-1] for name in (names[0], names[-1])] if names else [[], []]
    common = []
    for a, b in zip(*parts):
        if a != b or a in ("train", "test"):
            break
        common.append(a)
    return "".join(f"{name}/" for name in common)


def _report_others(where: str, names: Sequence[str], kind: Any, frames: Sequence[str]) -> None:
    endings = Counter(PurePosixPath(name).suffix.lower() for name in names)
    others = {e: n for e, n in endings.items() if e not in (*kind.endings, *frames, *_NO_EXAMPLES)}
    if others:
        print(f"note: of {where} are left out " + ", ".join(f"{n:,} {e}" for e, n in sorted(others.items())) +
              f" files: {kind.called}s are read from {', '.join((*kind.endings, *frames))}.")


SOURCES = {"folder": folder}
