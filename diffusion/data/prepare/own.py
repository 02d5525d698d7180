"""Prepares one's own pictures, recordings and films: reads them in any form of `data.folder`, cuts, scales and
resamples them once, and writes them for fast reading."""
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from diffusion.data.array_records import tfds_folder
from diffusion.data.folder import NoSplit, folder
from diffusion.data.prepare import writer
from diffusion.data.prepare.data_set import only_one
from diffusion.data.prepare.writer import Layout
from diffusion.data.sources import Source
from diffusion.errors import DataError
from diffusion.io.reading import expanded

VERSION = "1.0.0"
_LARGEST, _FILES = 2000, 16  # examples in a file, and files at least, so that processes share them evenly


def prepare_own(name: str, *, source: str, data_dir: str, kind: Any, kind_keys: dict[str, Any], labels: str = "none",
                columns: tuple[str, ...] = (), skip_unreadable: bool = False, workers: int = 1) -> pathlib.Path:
    """Writes data_dir/NAME/1.0.0 of the examples in `source` as `kind` loads them, and returns that path;
    does nothing if it exists.

    kind_keys: what makes the kind, for its description. A run that was stopped continues with the files that are
    finished; the folder appears at its place whole or not at all. Raises DataError as `data.folder.folder`, for a
    second run at the same time, and for a full disk.
    """
    target = expanded(data_dir) / name / VERSION
    if target.exists():
        print(f"{target} is already prepared. To prepare it again, delete that folder.")
        return target
    splits = {}
    for split in ("train", "test"):
        try:
            splits[split] = folder(split=split, kind=kind, embedder=_no_function, dir=source, labels=labels,
                                   columns=columns, skip_unreadable=skip_unreadable)
        except NoSplit:
            if split == "train":
                raise
    first = next(iter(splits.values()))
    example = loaded(first, kind, 0)
    conditions = {key: (value.shape, str(value.dtype)) for key, value in example.items()
                  if key not in (kind.field, "label")}
    shape, dtype = kind.stored[kind.field]
    layout = Layout(name=name, version=VERSION, field=kind.field, shape=shape, dtype=dtype, conditions=conditions,
                    class_names=tuple(getattr(first, "class_names", ())) or tuple(map(str, range(first.num_classes))),
                    description=f"{source}, as {json.dumps(kind_keys, sort_keys=True)}.")
    for split, found in splits.items():
        if tuple(getattr(found, "class_names", ())) != tuple(getattr(first, "class_names", ())):
            raise DataError(f"The classes of {split} in {source} are not those of train: both must have the same class "
                            "folders.")
    try:
        with only_one(target.parent):
            _write(layout, splits, kind, target, workers)
    except OSError as error:
        raise DataError(f"Preparing {target} stopped: {error}. Fix this (a full disk? no permission?) and run the same "
                        "command again, which continues.") from error
    counts = ", ".join(f"{len(found):,} {split}" for split, found in splits.items())
    uncut = " --config.data.crop=none" if kind.field == "image" else ""
    print(f"{target} is ready: {counts} {kind.called}s. Train on it with --config.data.name=tfds "
          f"--config.data.dataset={name} --config.data.dir={data_dir}{uncut}, or with --config.data.name=folder "
          f"--config.data.dir={target}.")
    return target


def _no_function(name: str) -> Any:
    raise DataError(f"{name}: texts are embedded in training (data.captions, data.embed), and not when data are "
                    "prepared.")


def loaded(source: Source, kind: Any, i: int) -> dict[str, Any]:
    """Example i as the kind stores it."""
    raw = source[i]
    return kind.load(raw, None) if kind.needs_load(getattr(source, "encoded", False)) else raw


def _write(layout: Layout, splits: dict[str, Source], kind: Any, target: pathlib.Path, workers: int) -> None:
    work = [(split, number, count, range(first, last)) for split, found in splits.items()
            for number, count, first, last in _parts(len(found))]
    made_of = [layout.description, {split: [len(found), _digest(found)] for split, found in splits.items()},
               sorted(layout.conditions), layout.class_names]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    unfinished = target.parent / f".unfinished-{digest}"
    unfinished.mkdir(exist_ok=True)
    sizes: dict[tuple[str, int], int] = {}
    todo = []
    for split, number, count, rows in work:
        path = layout.shard(unfinished, split, number, count)
        size = writer.shard_bytes(path, len(rows)) if path.exists() else None
        if size is None:
            todo.append((path, split, number, rows))
        else:
            sizes[split, number] = size
    total = sum(len(rows) for *_, rows in work)
    done = total - sum(len(rows) for *_, rows in todo)
    if done:
        print(f"{done:,} of {total:,} {kind.called}s were prepared before.")
    with tqdm(total=total, initial=done, desc="preparing", unit=f" {kind.called}s", mininterval=1) as progress:
        for split, number, size, count in _made(todo, layout, splits, kind, workers):
            sizes[split, number] = size
            progress.update(count)
    shards = {split: [(len(rows), sizes[split, number]) for s, number, _, rows in work if s == split]
              for split in splits}
    writer.write_description(unfinished, layout, shards)
    for split, found in splits.items():
        if len(tfds_folder(unfinished, split)) != len(found):
            raise OSError(f"the {split} examples read back from {unfinished} are not all that were written")
    os.rename(unfinished, target)
    for other in target.parent.glob(".unfinished-*"):  # of other settings
        shutil.rmtree(other, ignore_errors=True)


def _parts(count: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, how many, first, last) of each file of `count` examples."""
    size = min(_LARGEST, -(-count // _FILES))
    files = -(-count // size)
    for number in range(files):
        yield number, files, number * size, min((number + 1) * size, count)


def _digest(source: Source) -> str:
    """Of the names and labels of the examples; of other sources, of some of their examples."""
    if hasattr(source, "examples"):
        what = json.dumps([list(map(str, source.examples)), source.labels.tolist()])
    else:
        what = repr([source[i] for i in (0, len(source) // 2, len(source) - 1)])
    return hashlib.sha256(what.encode()).hexdigest()


_STATE: dict[str, Any] = {}  # of a worker process


def _start(*state: Any) -> None:
    _STATE.update(zip(("layout", "splits", "kind"), state), features=state[0].features())


def _shard(job: tuple[pathlib.Path, str, int, range]) -> tuple[str, int, int, int]:
    path, split, number, rows = job
    source, kind = _STATE["splits"][split], _STATE["kind"]
    examples = ((f"{split}_{i:07d}", loaded(source, kind, i)) for i in rows)
    return split, number, writer.write_shard(path, _STATE["features"], examples), len(rows)


def _made(todo: list, layout: Layout, splits: dict[str, Source], kind: Any, workers: int) -> Iterator[tuple]:
    if workers <= 1 or len(todo) <= 1:
        _start(layout, splits, kind)
        yield from map(_shard, todo)
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(todo)), _start, (layout, splits, kind)) as pool:
        yield from pool.imap_unordered(_shard, todo)
