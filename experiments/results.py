"""Reads the results of a sweep's jobs: values by row and seed, each with its protocol."""
import statistics
from dataclasses import dataclass
from pathlib import Path

from diffusion.errors import CheckpointError, DataError
from diffusion.io.files import read_json
from diffusion.metrics import record as metric_record
from experiments.sweep import Member, Sweep
from experiments.table import Column

_PREFIXES = {"fd": ("fid", "fd_"), "sfd": ("sfid", "sfd_"), "score": ("inception_score", "score_"),
             "kd": ("kid", "kd_")}  # Extractor.called


@dataclass(frozen=True, kw_only=True)
class Values:
    """The values of one column for one row."""
    called: str = ""            # our metric's name, which includes its extractor
    values: tuple[float, ...] = ()  # by seed, for the finished seeds ...
    seeds: tuple[int, ...] = ()     # ... listed here

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def error(self) -> float | None:
        """Standard error over the seeds; None for fewer than two."""
        return statistics.stdev(self.values) / len(self.values) ** 0.5 if len(self.values) > 1 else None


def record(sweep: Sweep, member: Member) -> dict | None:
    """The metric record of a member's evaluation."""
    files = sorted((sweep.folder / "evaluate" / member.measurement).glob("*.json"))
    return read_record(files[-1]) if files else None


def read_record(file: Path) -> dict | None:
    """A metric record; None if missing or incomplete."""
    try:
        return metric_record.read_record(file)
    except DataError:
        return None


def likelihood(sweep: Sweep, member: Member) -> dict | None:
    found = read(sweep.folder / "likelihood" / f"{member.measurement}.json") or {}
    parts = (("bits_per_dim", (int, float)), ("estimator", dict), ("data", dict), ("examples", int))
    return found if all(isinstance(found.get(name), kind) for name, kind in parts) else None


def read(file: Path) -> dict | None:
    """The JSON of a file; None if missing or incomplete."""
    try:
        return read_json(file)
    except CheckpointError:  # being written, or damaged: its job will write it again
        return None


def value(sweep: Sweep, member: Member, column: Column) -> tuple[str, float] | None:
    """(name, number) of the column, if it has been measured."""
    if column.ours == "bits_per_dim":
        found = likelihood(sweep, member)
        return (f"bits_per_dim ({found['estimator'].get('estimator')})", found["bits_per_dim"]) if found else None
    found = record(sweep, member)
    prefixes = _PREFIXES.get(column.ours, (column.ours,))
    for name, row in (found or {"metrics": {}})["metrics"].items():
        if name.startswith(prefixes):
            return name, row["value"]
    return None


def values(sweep: Sweep, row: str, column: Column) -> Values:
    found = {member.seed: found for member in sweep.of(row) if (found := value(sweep, member, column))}
    called = next((called for called, _ in found.values()), "")
    return Values(called=called, values=tuple(v for _, v in found.values()), seeds=tuple(found))


def rows(sweep: Sweep) -> list[str]:
    return list(dict.fromkeys(member.row.name for member in sweep.members))


def best_row(sweep: Sweep) -> str:
    """"row: number" for the best row by the first column; "" while there is none."""
    column = sweep.table.columns[0]
    found = [(v.mean, name, v.called) for name in rows(sweep) if (v := values(sweep, name, column)).values]
    if not found:
        return ""
    mean, name, called = (min if column.lower_is_better else max)(found)
    return f"{name}: {called} {mean:.4g}"
