"""Snapshots of a run's averages, from which averages of other widths are made after the training (train/posthoc.py):

    snapshots/NAME/12000/    the average NAME after 12,000 steps, as io/checkpoint.py writes it; never half-written

Each names the run, the images seen and the exponent of its average.
"""
import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffusion.errors import CheckpointError
from diffusion.io.checkpoint import Checkpoints, NoData
from diffusion.io.files import cannot_write
from diffusion.io.processes import is_primary, primary_says
from diffusion.io.run_folder import read_starts

FOLDER = "snapshots"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One average, `name` with the exponent `gamma`, after `step` steps of the run and `images` images."""
    name: str
    step: int
    images: int
    gamma: float


def identity(run: Path) -> str:
    """A digest of a run's first start, which no other run shares."""
    return hashlib.sha256(json.dumps(read_starts(run)[0], sort_keys=True).encode()).hexdigest()[:16]


class Snapshots(contextlib.ExitStack):
    """Writes the snapshots of a run. All processes must make the same calls.

    gammas: the averages and their exponents. As a context manager, it waits at the end for unfinished writes.
    """

    def __init__(self, run: Path, gammas: Mapping[str, float], log: Callable[[str], None] = print):
        super().__init__()
        self.run, self.gammas = Path(run), dict(gammas)
        self.of = {name: self.enter_context(Checkpoints(self.run / FOLDER / name, keep=None, log=log))
                   for name in gammas}

    def save(self, step: int, images: int, averages: Mapping[str, Any]) -> None:
        """Stores the averages after `images` images; returns when they are on the disk, so that a checkpoint of this
        step is never there without them. Raises CheckpointError if they cannot be written."""
        failure = None
        if is_primary():
            try:
                (self.run / FOLDER).mkdir(exist_ok=True)  # not its parents: a missing run folder means a missing disk
            except OSError as error:
                failure = CheckpointError(cannot_write(self.run / FOLDER, error))
        if primary_says(failure is not None):
            raise failure or CheckpointError("The snapshots cannot be written, see the message of process 0.")
        run = identity(self.run)
        for name, gamma in self.gammas.items():
            self.of[name].save(step, {"averages": {name: averages[name]}}, NoData(), {
                "step": step, "images": images, "gamma": gamma, "run": run})
        for one in self.of.values():
            one.wait()

    def remove_after(self, step: int) -> None:
        """Removes the snapshots of later steps, which a run resumed from an earlier checkpoint makes again, perhaps
        with another learning rate."""
        for one in self.of.values():
            one.remove_after(step)


def find(run: Path, gammas: Mapping[str, float]) -> list[Snapshot]:
    """The snapshots of the run's averages, by name and step. Raises CheckpointError if there are none, or if one is
    damaged, of another run or of another average."""
    ours, found = identity(run), []
    for name, gamma in gammas.items():
        folder = Path(run) / FOLDER / name
        stored = Checkpoints(folder, keep=None)
        for step in stored.steps():
            clock = stored.clock(step)
            images, exponent = clock.get("images"), clock.get("gamma")
            if clock.get("run") != ours or type(images) is not int or type(exponent) is not float or not math.isclose(
                    exponent, gamma, rel_tol=1e-9):
                raise CheckpointError(f"The snapshot {folder / str(step)} is not of the run {run}, but of another run "
                                      "or another average: move it away, or restore this run's own.")
            found.append(Snapshot(name=name, step=step, images=images, gamma=gamma))
    if not found:
        raise CheckpointError(f"The run {run} has no snapshots of its averages yet: the first is taken after "
                              "config.train.snapshot_every.")
    return found


def combine(run: Path, made_of: Sequence[tuple[Snapshot, float]], abstract_of: Callable[[str], Any]) -> Any:
    """The sum of snapshots times their coefficients, in float32. abstract_of: the name of an average -> shapes with
    shardings, of all or some of its parts, in the dtype that is stored."""
    add = jax.jit(lambda total, x, c: jax.tree.map(lambda t, x: t + c * x.astype(t.dtype), total, x), donate_argnums=0)
    total = None
    for one, coefficient in made_of:
        x = Checkpoints(Path(run) / FOLDER / one.name, keep=None).restore_part(
            f"averages.{one.name}", abstract_of(one.name), one.step)
        if total is None:
            total = jax.tree.map(lambda x: jnp.zeros_like(x, float), x)
        total = add(total, x, coefficient)
    return total
