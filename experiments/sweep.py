"""Expands a table at a scale, with seeds, into jobs: trainings, shared between rows, and each row's measurements.

    FOLDER/sweep.json           the resolved rows, each time they changed
    FOLDER/ledger.jsonl         the starts, ends and failures of jobs (ledger.py)
    FOLDER/runs/ID              the run folder of a training
    FOLDER/evaluate/ID/         the metric record of a row and seed
    FOLDER/likelihood/ID.json   its bits per dimension
    FOLDER/plan/ID.json         the costs of a training step and a sampling step

An ID is the digest of the relevant part of the resolved config: results under another config keep their own ID.
"""
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from diffusion import build
from diffusion import config as config_lib
from diffusion.errors import CheckpointError, ConfigError, DataError, shown
from diffusion.io.files import atomic_write, read_json
from experiments.table import Row, Table

_OF_MEASUREMENTS = ("sample.", "evaluate.", "likelihood.")
_OF_THE_MACHINE = ("mesh.", "data.dir", "data.workers", "data.on_device", "train.stall_seconds", "train.steps_per_")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A program to run. Its results are in `out`, which exists after a successful end."""
    id: str                   # of the training or of the measurement
    mode: str                 # of diffusion/main.py: train, evaluate, likelihood, plan
    flags: tuple[str, ...]    # of diffusion/main.py
    out: Path
    after: str | None = None  # the id of the training that it needs
    what: str                 # for people: row and seed

    @property
    def key(self) -> str:
        return f"{self.id}/{self.mode}"

    def output_exists(self) -> bool:
        if self.mode == "train":
            return any((self.out / "checkpoints").glob("[0-9]*"))
        return any(self.out.glob("*.json")) if self.mode == "evaluate" else self.out.is_file()


@dataclass(frozen=True, kw_only=True)
class Member:
    """A row with a seed."""
    row: Row
    seed: int
    training: str
    measurement: str


@dataclass(frozen=True, kw_only=True)
class Sweep:
    table: Table
    scale: str
    seeds: int
    folder: Path
    members: tuple[Member, ...]
    jobs: tuple[Job, ...]     # each training before the jobs that need it
    named_by: tuple[str, ...] = ()  # the arguments that name its table: one name, or the flags of a user's own table

    def of(self, row: str) -> list[Member]:
        return [member for member in self.members if member.row.name == row]


def expand(table: Table, scale: str, seeds: int, folder: Path, *, only: Sequence[str] = ()) -> Sweep:
    """The sweep with all its jobs. only: names of rows. Raises ConfigError for wrong overrides, or equal rows."""
    rows = [table.row(name) for name in only] or [row for row in table.rows
                                                  if row.name not in table.scale(scale).leaves_out]
    members, jobs, same = [], {}, {}
    for row in rows:
        config = table.config(scale, row)
        check_row(table, row, config)
        measured = digest(config_lib.keys(config))
        if measured in same:
            raise ConfigError(f"{table.name}: the rows {same[measured]!r} and {row.name!r} resolve to one config at "
                              f"{scale}. A row must change something.")
        same[measured] = row.name
        for seed in range(seeds):
            member = Member(row=row, seed=seed, training=f"{digest(of_training(config_lib.keys(config)))}_s{seed}",
                            measurement=f"{measured}_s{seed}")
            members.append(member)
            for job in jobs_of(table, scale, member, folder):
                jobs.setdefault(job.key, job)
    ordered = sorted(jobs.values(), key=lambda job: job.mode != "train")
    return Sweep(table=table, scale=scale, seeds=seeds, folder=folder, members=tuple(members), jobs=tuple(ordered))


def check_row(table: Table, row: Row, config: ConfigDict) -> None:
    """Raises ConfigError, which names the row, for a config that cannot train, or sample, or have its likelihood."""
    try:
        for mode in ("train", *table.modes):
            build.check(config, mode)
    except ConfigError as error:
        raise ConfigError(f"{table.name}, row {row.name!r}: {error}") from None


def jobs_of(table: Table, scale: str, member: Member, folder: Path) -> list[Job]:
    s, row = table.scale(scale), member.row
    overrides = {**table.overrides(scale, row), "seed": member.seed}
    run = folder / "runs" / member.training
    flags = [f"--config={s.config}", f"--workdir={run}"]
    jobs = [Job(id=member.training, mode="train", out=run, what=f"{row.name}, seed {member.seed}", flags=(
        *flags, "--mode=train", *config_flags(of_training(overrides))))]
    if member.seed == 0:
        out = folder / "plan" / f"{member.training}.json"
        jobs.append(Job(id=member.training, mode="plan", after=member.training, out=out, what=row.name, flags=(
            flags[0], "--mode=plan", f"--out={out}", *config_flags(of_training(overrides)))))
    for mode in table.modes:
        out = folder / mode / (member.measurement + (".json" if mode == "likelihood" else ""))
        more = [f"--mode={mode}", f"--seed={member.seed}", f"--out={out}"]
        values = overrides
        if mode == "likelihood":
            values = {**overrides, "data.split": s.likelihood_split}
            more += [f"--num_examples={s.examples}"] if s.examples else []
        jobs.append(Job(id=member.measurement, mode=mode, after=member.training, out=out,
                        what=f"{row.name}, seed {member.seed}", flags=(*flags, *more, *config_flags(values))))
    return jobs


def of_training(values: dict) -> dict:
    """The config without the keys that do not affect training, so that rows that differ only in these share a run."""
    return {key: value for key, value in values.items() if not key.startswith(_OF_MEASUREMENTS)}


def digest(values: dict) -> str:
    """The digest of a config's keys, except the seed and the keys of the machine."""
    kept = {key: value for key, value in values.items() if key != "seed" and not key.startswith(_OF_THE_MACHINE)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=list).encode()).hexdigest()[:10]


def config_flags(overrides: dict) -> list[str]:
    """The overrides as flags of the command line."""
    return [f"--config.{key}={value!r}" if isinstance(value, (tuple, list)) else f"--config.{key}={value}"
            for key, value in overrides.items()]


def resolved(sweep: Sweep) -> dict[str, dict]:
    """Row -> the keys of its config that differ from the base."""
    def of_row(config: ConfigDict) -> dict:
        defaults = config_lib.keys_of(config)
        return {key: value for key, value in config_lib.keys(config).items() if value != defaults[key].default}
    names = dict.fromkeys(member.row.name for member in sweep.members)
    return {name: of_row(sweep.table.config(sweep.scale, sweep.table.row(name))) for name in names}


def write_down(sweep: Sweep) -> list[str]:
    """Writes the rows to sweep.json; returns the changes of earlier rows, one line each."""
    file = sweep.folder / "sweep.json"
    now = json.loads(json.dumps(resolved(sweep)))
    history = read_history(file) if file.exists() else []
    before = {name: row for past in history for name, row in past["rows"].items()}
    changed = []
    for name, row in now.items():
        if name in before and (keys := [k for k in {**before[name], **row} if before[name].get(k) != row.get(k)]):
            changed.append(f"{name}: " + ", ".join(f"{k} was {before[name].get(k, 'the default')}, is "
                                                   f"{row.get(k, 'the default')}" for k in keys))
    had = history[-1].get("seeds", 1) if history else 0  # the first sweeps did not store it
    seeds = max(sweep.seeds, had)
    if {**before, **now} != before or seeds > had:
        entry = {"named_by": sweep.named_by, "scale": sweep.scale, "seeds": seeds, "rows": now}
        atomic_write(file, json.dumps([*history, entry], indent=1) + "\n")
    return changed


def read_history(file: Path) -> list[dict]:
    """The entries of sweep.json, the last one the newest. Raises DataError if they cannot be read."""
    try:
        found = read_json(file, list, entries=dict)
    except CheckpointError as error:
        raise DataError(f"{error} Or move it away, to start anew.") from error
    for entry in found:
        named_by, rows, seeds = entry.get("named_by"), entry.get("rows"), entry.get("seeds", 1)
        if not (isinstance(named_by, list) and all(isinstance(word, str) for word in named_by)
                and isinstance(entry.get("scale"), str) and type(seeds) is int and seeds >= 1
                and isinstance(rows, dict) and all(isinstance(row, dict) for row in rows.values())):
            raise DataError(f"{file} holds {shown(entry)}, which is no entry of a sweep. Move it away to start anew.")
    if not found:
        raise DataError(f"{file} has no entries. Move it away to start anew.")
    return found
