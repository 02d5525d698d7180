"""Saves and restores checkpoints with Orbax: the training state, the place in the data and the clock.

    folder/12000/           a finished checkpoint, named by its step; Orbax renames it to this when all is written
        state/              the arrays, as Orbax lays them out (OCDBT, Zarr 3), each process writing its own shards
        progress/           JSON: {"clock": ..., "data": the state of the data iterator}
        score.json          the number for comparing checkpoints, or null
        SHA256SUMS          digests of the files above, for `sha256sum -c`; written last

Orbax does not notice a flipped bit in an array: it silently restores wrong numbers. The digests catch this. They are
written after the commit: a checkpoint without them (the program was killed in between) is whole but unverified.

This is the only file that imports Orbax, whose v1 interface may still change.
"""
import functools
import hashlib
import json
import logging
import math
import re
import shutil
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from diffusion.errors import CheckpointError, shown
from diffusion.io import migrate
from diffusion.io.files import atomic_write, cause, remedy
from diffusion.io.processes import is_primary, primary_says

_DIGESTS, _SCORE = "SHA256SUMS", "score.json"
_LEFTOVERS = ("*.orbax-checkpoint-tmp*", "*.deleting")
_SHOWN = 5  # leaves listed in a message
_SLOW = 10.0  # seconds of waiting for a disk after which a message is logged


class DataIterator(Protocol):
    """The interface needed of the data, which Grain's iterators have. The state is JSON, the same in all processes."""

    def get_state(self) -> dict: ...

    def set_state(self, state: dict) -> None: ...


class NoData:
    """The place in the data of a checkpoint that holds parameters alone."""

    def get_state(self) -> dict:
        return {}

    def set_state(self, state: dict) -> None:
        pass


class DamagedError(CheckpointError):
    """A checkpoint with missing or altered files, which `fault` names."""

    def __init__(self, fault: str, message: str):
        super().__init__(message)
        self.fault = fault


class Checkpoints:
    """The checkpoints in one folder. All processes must make the same calls.

    Keeps the newest `keep` (None: all), those at steps that `every` divides (0: none), and the `best` with the lowest
    score. log: prints a line.

    As a context manager, it waits at the end for unfinished writes. Opening and reading change nothing on the disk, so
    a second program may read while a run writes.
    """

    def __init__(self, folder: str | Path, *, keep: int | None = 3, every: int = 0, best: int = 0,
                 log: Callable[[str], None] = print):
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder, self.keep, self.every, self.best, self.log = Path(folder).absolute(), keep, every, best, log
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future] | None = None
        _silence_repeated_errors()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.wait()
        except CheckpointError as failed:
            if error is None:
                raise
            error.add_note(str(failed))  # the first error is the one to show
        finally:
            self._writer.shutdown()

    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if re.fullmatch(r"0|[1-9]\d*", path.name))

    def describe(self) -> str:
        """The newest finished checkpoint, for a message."""
        there = self.steps()
        return f"{there[-1]} in {self.folder}" if there else f"none in {self.folder}"

    def save(self, step: int, state: Any, data: DataIterator, clock: dict, score: float | None = None) -> None:
        """Takes a snapshot, which is written in the background, and returns. First waits for the previous one.

        state: pytree of jax arrays, sharded or not; they may be donated at once. clock: JSON, floats return exactly.
        A step that already exists is not written again: a resumed run reaches the same state.
        Raises CheckpointError if this or the previous checkpoint cannot be written.
        """
        before = self._pending and self._pending[0]
        began = time.monotonic()
        self.wait()
        if (waited := time.monotonic() - began) > _SLOW:
            self.log(f"step {step} has waited {waited:.0f} s for the checkpoint of step {before}: the disk is slower "
                     "than config.train.checkpoint_every")
        if is_primary():
            self._remove_leftovers()
        if primary_says(step in self.steps()):
            return
        progress = {"clock": clock, "data": data.get_state()}
        try:
            self.folder.mkdir(exist_ok=True)  # not its parents: a missing run folder means a missing disk
            with _context():
                response = ocp.save_checkpointables_async(self._path(step), {"state": state, "progress": progress})
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = step, self._writer.submit(self._finish, step, response, score)

    def wait(self) -> None:
        """Returns when the last save is on the disk. Raises CheckpointError if it could not be written."""
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        error = future.exception()
        # The listings differ until the first process has also removed the old checkpoints.
        if primary_says(error is not None) or error is not None:
            if is_primary():
                self._remove_leftovers()  # else they would keep the disk full
            raise self._failed(step, error or RuntimeError("see the message of process 0")) from error
        if step not in self.steps():
            raise CheckpointError(f"The checkpoint of step {step} was written but is not in {self.folder}: was that "
                                  "folder moved or deleted meanwhile? Run the same command again to continue.")

    def restore(self, abstract_state: Any, data: DataIterator, step: int | None = None) -> tuple[Any, dict]:
        """The state and the clock of a step (the newest if None); moves `data` to the step's place.

        abstract_state: tree of jax.ShapeDtypeStruct with the shardings wanted now, on any number of devices.
        Raises CheckpointError if the step is missing, damaged, or does not fit.
        """
        step = self._choose(step)
        found = self._load(step, {"state": abstract_state, "progress": None})
        if fault := _fault_of_progress(found["progress"], step):
            raise self._damaged(step, fault)
        try:
            data.set_state(found["progress"]["data"])
        except (LookupError, TypeError, ValueError) as error:
            raise self._damaged(step, f"its place in the data is wrong: {shown(found['progress']['data'])}") from error
        return found["state"], found["progress"]["clock"]

    def restore_newest(self, abstract_state: Any, data: DataIterator) -> tuple[Any, dict] | None:
        """`restore` of the newest undamaged checkpoint; None if there is none.

        Renames each damaged checkpoint to STEP.damaged, with a warning, so that a requeued run needs no user. Raises
        CheckpointError if a checkpoint does not fit.
        """
        while primary_says(bool(self.steps())):
            step = self._choose(None)
            try:
                return self.restore(abstract_state, data, step)
            except DamagedError as error:
                if is_primary():
                    try:
                        self._path(step).rename(self.folder / f"{step}.damaged")
                    except OSError as failure:
                        raise error from failure
                self.log(f"warning: the checkpoint {self._path(step)} cannot be used and is now called {step}.damaged: "
                         f"{error.fault}")
                primary_says(0)  # no process looks for the next one before the renaming
        return None

    def restore_part(self, name: str, abstract: Any, step: int | None = None) -> Any:
        """One part of the state, such as "averages.ema", or only its parts in `abstract`, such as "params". Does not
        read other arrays into memory. Raises the errors of `restore`."""
        field, *names = name.split(".")
        wanted = {field: functools.reduce(lambda tree, part: {part: tree}, reversed(names), abstract)}
        found = self._load(self._choose(step), {"state": wanted}, within=1 + len(names))["state"]
        return functools.reduce(lambda tree, part: tree[part], [field, *names], found)

    def clock(self, step: int) -> dict:
        """The clock of a step, without its arrays, whose digests are not checked. Raises the errors of `restore`."""
        step = self._choose(step)
        try:
            with _context():
                found = ocp.load_checkpointables(self._path(step), {"progress": None})["progress"]
        except Exception as error:
            raise self._damaged(step, cause(error)) from error
        if fault := _fault_of_progress(found, step):
            raise self._damaged(step, fault)
        return found["clock"]

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps."""
        if is_primary():
            for later in [s for s in self.steps() if s > step]:
                self._remove(later)
        primary_says(0)

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _finish(self, step: int, response, score: float | None) -> None:
        """Waits for the commit, then writes the digests and removes old checkpoints; runs in the background."""
        response.result()
        if is_primary():
            atomic_write(self._path(step) / _SCORE, json.dumps(score))
            atomic_write(self._path(step) / _DIGESTS, _digests(self._path(step)))
            for old in self._superfluous():
                self._remove(old)

    def _remove(self, step: int) -> None:
        # Renamed first: a half-deleted checkpoint must not look finished.
        doomed = self._path(step).rename(self.folder / f"{step}.deleting")
        shutil.rmtree(doomed, ignore_errors=True)

    def _superfluous(self) -> list[int]:
        steps = self.steps()
        if self.keep is None:
            return []
        scores = {step: score for step in steps if math.isfinite(score := self._score(step))} if self.best else {}
        stay = {*steps[-self.keep:], *sorted(scores, key=scores.get)[:self.best]}
        return [step for step in steps if step not in stay and not (self.every and step % self.every == 0)]

    def _score(self, step: int) -> float:
        try:
            return float(json.loads((self._path(step) / _SCORE).read_text()))
        except (OSError, TypeError, ValueError):  # no score, or the program was killed before writing it
            return math.inf

    def _remove_leftovers(self) -> None:
        """Removes unfinished folders, also of a failed save, to which a thread of Orbax may briefly still write."""
        until = time.monotonic() + 1.0
        while left := [path for pattern in _LEFTOVERS for path in self.folder.glob(pattern)]:
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
            if not any(path.exists() for path in left) or time.monotonic() > until:
                return
            time.sleep(0.02)

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        good = [s for s in self.steps() if s != step]
        kept = f"The last good checkpoint is step {good[-1]}." if good else "There is no earlier checkpoint."
        return CheckpointError(f"The checkpoint of step {step} could not be written to {self.folder}: {cause(error)}. "
                               f"{kept} {remedy(error)}")

    def _choose(self, step: int | None) -> int:
        there = self.steps()
        if step is None and there:
            return int(primary_says(there[-1]))
        if step in there:
            return step
        listed = ", ".join(map(str, there))
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise CheckpointError(f"There is {what} in {self.folder}. " + (
            f"The steps there are {listed}: name one of them, or none for the newest." if there else
            "It has no other either: check the path, or train first."))

    def _load(self, step: int, abstract: dict, within: int | None = None) -> dict:
        """within: only a part of the state is wanted, whose name has that many words."""
        path = self._path(step)
        # Before Orbax reads: on damaged files it may crash with long errors, or silently restore wrong numbers.
        if primary_says((fault := find_fault(path) if is_primary() else None) is not None):
            raise self._damaged(step, fault or "a file is missing or altered, see the message of process 0")
        try:
            saved = ocp.checkpointables_metadata(path).metadata["state"]
        except Exception as error:
            raise self._damaged(step, cause(error)) from error
        if not jax.tree.leaves(saved):
            raise self._damaged(step, "the list of its arrays cannot be read")
        wanted, former = abstract["state"], migrate.is_former(saved)
        if former:
            abstract = abstract | {"state": migrate.former_state(wanted)}
            within = within and within - 1
        if differences := _differences(saved, abstract["state"], within):
            more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
            raise CheckpointError(f"The checkpoint {path} does not fit this model: {'; '.join(differences[:_SHOWN])}"
                                  f"{more}. Use the config the run was started with, or another work folder.")
        try:
            with _context(partial=within is not None):
                found = ocp.load_checkpointables(path, abstract)
        except Exception as error:
            raise self._damaged(step, cause(error)) from error
        return found | {"state": migrate.state_of_former(found["state"], wanted)} if former else found

    def _damaged(self, step: int, fault: str) -> DamagedError:
        others = [s for s in self.steps() if s != step]
        then = (f"the newest of the other steps there ({', '.join(map(str, others))}) is then used" if others else
                "there is no other one, so training then starts from the beginning")
        return DamagedError(fault, f"The checkpoint {self._path(step)} is damaged: {fault}. Delete or move that folder "
                            f"and run the same command again; {then}.")


def _context(partial: bool = False) -> ocp.Context:
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="progress")  # else its floats become arrays
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.pytree_options.loading.partial_load = partial
    return context


def _digests(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != _DIGESTS)
    return "".join(f"{_sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_fault(path: Path) -> str | None:
    """The fault in a checkpoint's files; None if they are right, or if it has no digests."""
    try:
        for line in (path / _DIGESTS).read_text().splitlines():
            digest, _, name = line.partition("  ")
            if not (path / name).is_file():
                return f"its file {name or line} is missing"
            if _sha256(path / name) != digest:
                return f"its file {name} has been truncated or altered (SHA-256 differs from {_DIGESTS})"
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return cause(error)
    return None


def _fault_of_progress(progress: Any, step: int) -> str | None:
    """The fault in the clock or the place in the data; None if they are right. Checked also because a checkpoint may
    have no digests."""
    if not isinstance(progress, dict) or not all(isinstance(progress.get(name), dict) for name in ("clock", "data")):
        return "its progress has no clock, or no place in the data"
    if progress["clock"].get("step", step) != step:
        return f"its clock is at step {shown(progress['clock']['step'])}"
    if not all(math.isfinite(x) for x in jax.tree.leaves(progress) if isinstance(x, float)):
        return "a number of its progress is not finite"
    return None


def _differences(saved: Any, wanted: Any, within: int | None) -> list[str]:
    """The leaves in which a checkpoint and the tree to restore differ, one phrase each. within: see `_load`."""
    def leaves(tree):
        return {jax.tree_util.keystr(path, simple=True, separator="."): f"{np.dtype(x.dtype).name}{list(x.shape)}"
                for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}

    have, want = leaves(saved), leaves(wanted)
    if within is not None:
        asked = {tuple(name.split(".")[:within + 1]) for name in want}
        have = {name: leaf for name, leaf in have.items() if tuple(name.split(".")[:within + 1]) in asked}
    return ([f"{name} is {have[name]} there, but {want[name]} here" for name in want
             if have.get(name, want[name]) != want[name]]
            + [f"{name} is not there" for name in want if name not in have]
            + [f"{name} is there, but not here" for name in have if name not in want])


def _silence_repeated_errors() -> None:
    """Drops Orbax's logs of failed threads and tasks, whole tracebacks of errors that it also raises."""
    logging.getLogger("absl").addFilter(_is_news)
    logging.getLogger("asyncio").addFilter(_is_news)
    warnings.filterwarnings("ignore", message=r"coroutine '(PyTreeHandler|Store)\.", category=RuntimeWarning)


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not ("_SignalingThread.run() raised an exception" in text
                or ("exception was never retrieved" in text and "orbax" in text))
