"""Gathers a sweep's report as plain data: rows with the paper's cells and ours, findings, costs, pictures."""
import json
from dataclasses import dataclass
from pathlib import Path

from diffusion.io.writers import read_rows
from experiments import findings, results
from experiments.ledger import Ledger, State
from experiments.results import Values
from experiments.sweep import Member, Sweep
from experiments.table import Cell, Column


@dataclass(frozen=True, kw_only=True)
class Ours:
    """A column of ours: one metric under one protocol."""
    column: Column
    called: str
    protocol: str   # its JSON; "" if unknown


@dataclass(frozen=True, kw_only=True)
class RowReport:
    name: str
    paper: dict[str, Cell | None]      # by Column.name
    ours: dict[Ours, Values]
    hours: float                       # device hours: the row's own measurements, and its share of the training
    train_flops: float | None          # over all seeds
    failed: str                        # the last error, if results are missing
    grid: Path | None                  # samples of its first seed: the measured ones, or the last of training
    evaluations: float | None          # network calls per sample


@dataclass(frozen=True, kw_only=True)
class Report:
    sweep: Sweep
    columns: list[Ours]
    rows: list[RowReport]
    findings: list[tuple[findings.Finding, list[findings.Verdict]]]
    ranks: list[tuple[Ours, findings.Ranks]]
    commits: list[str]
    done: int


def gather(sweep: Sweep) -> Report:
    states = Ledger(sweep.folder / "ledger.jsonl").states()
    columns = ours_columns(sweep)
    rows = [row_report(sweep, name, columns, states) for name in results.rows(sweep)]
    by_name = {row.name: row for row in rows}

    def of(column: Ours):
        return lambda name: by_name[name].ours[column] if name in by_name else Values()

    first = {c.column.name: c for c in reversed(columns)}  # the first protocol found
    models = {name: {member.training for member in sweep.of(name)} for name in by_name}

    def paired(a: str, b: str) -> bool:
        return models.get(a) == models.get(b)

    judged = [(f, findings.verdicts(f, first[f.column].column, of(first[f.column]), paired))
              for f in sweep.table.findings if f.column in first]
    ranked = [(c, found) for c in columns if (found := findings.ranks(sweep.table, c.column, of(c), list(by_name)))]
    jobs = {job.key for job in sweep.jobs}
    return Report(sweep=sweep, columns=columns, rows=rows, findings=judged, ranks=ranked,
                  commits=sorted({s.commit for key, s in states.items() if s.commit and key in jobs}),
                  done=sum(states.get(job.key, State()).done and job.output_exists() for job in sweep.jobs))


def ours_columns(sweep: Sweep) -> list[Ours]:
    """One column per metric and protocol found: different protocols never share a column."""
    found: dict[Ours, None] = {}
    for column in sweep.table.columns:
        met = dict.fromkeys(c for member in sweep.members if (c := column_of(sweep, member, column)))
        found |= met or {Ours(column=column, called="not measured yet", protocol=""): None}
    return list(found)


def column_of(sweep: Sweep, member: Member, column: Column) -> Ours | None:
    if (value := results.value(sweep, member, column)) is None:
        return None
    if column.ours == "bits_per_dim":
        record = results.likelihood(sweep, member)
        protocol = {"estimator": record["estimator"].get("estimator"), "split": record["data"].get("split"),
                    "images": record["examples"]}
    else:
        protocol = results.record(sweep, member)["protocol"]
    return Ours(column=column, called=value[0], protocol=json.dumps(protocol, sort_keys=True))


def row_report(sweep: Sweep, name: str, columns: list[Ours], states: dict[str, State]) -> RowReport:
    members = sweep.of(name)
    ours: dict[Ours, Values] = {}
    for c in columns:
        there = [m for m in members if column_of(sweep, m, c.column) == c]
        ours[c] = Values(called=c.called, values=tuple(results.value(sweep, m, c.column)[1] for m in there),
                         seeds=tuple(m.seed for m in there))
    shared = {m.training: sum(o.training == m.training for o in sweep.members) for m in members}
    ids = {m.measurement for m in members}
    seconds = sum(states.get(job.key, State()).seconds / (shared[job.id] if job.id in shared else 1)
                  for job in sweep.jobs if job.id in shared or job.id in ids)
    errors = [states[job.key].error for job in sweep.jobs if (job.id in shared or job.id in ids)
              and job.key in states and states[job.key].error]
    record = results.record(sweep, members[0])
    grids = [*sorted((sweep.folder / "runs" / members[0].training / "samples").glob("*.png")),
             *sorted((sweep.folder / "evaluate" / members[0].measurement).glob("step_*.png"))]
    return RowReport(name=name, paper={c.name: sweep.table.row(name).cell(c.name) for c in sweep.table.columns},
                     ours=ours, hours=seconds / 3600, train_flops=train_flops(sweep, members),
                     failed=errors[-1] if errors else "", grid=grids[-1] if grids else None,
                     evaluations=record and record["samples"].get("evaluations"))


def train_flops(sweep: Sweep, members: list[Member]) -> float | None:
    """The training FLOP of the members, by XLA's count for a step."""
    plan = results.read(sweep.folder / "plan" / f"{members[0].training}.json") or {}
    flops = step.get("flops") if isinstance(step := plan.get("train"), dict) else None
    if not isinstance(flops, (int, float)):
        return None
    return flops * sum(steps_of(sweep.folder / "runs" / m.training) for m in members)


def steps_of(run: Path) -> int:
    rows = log(run)
    return rows[-1]["step"] if rows else 0


def log(run: Path) -> list[dict]:
    """The rows of metrics.jsonl, without a row that is being written. Raises CheckpointError for any other line that is
    not a row."""
    return read_rows(run / "metrics.jsonl")
