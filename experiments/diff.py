"""Compares two runs: config, versions, code, curves and metrics. Exits with 0 if they are alike, with 1 if not.

  python -m experiments.diff runs/a runs/b
"""
import argparse
from dataclasses import dataclass
from pathlib import Path

from diffusion.errors import ConfigError, DataError
from diffusion.io.files import read_json
from diffusion.io.reading import expanded
from diffusion.io.run_folder import is_run, read_starts
from diffusion.io.writers import TIMES
from diffusion.metrics import record
from experiments.gather import log
from experiments.results import read_record
from experiments.run import command


@dataclass(frozen=True)
class Curves:
    """The comparison of two logs, row by row at the same steps."""
    rows: int                  # steps in both logs
    first: int | None          # the first step with a different number; None: no difference
    loss: float | None         # the largest relative difference of the loss; None: no row of both has a loss
    only: tuple[int, int]      # rows in only the one or the other log


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def unlike(a: dict, b: dict) -> list[str]:
    """One line per key with different values."""
    a, b = flat(a), flat(b)
    return [f"{key}: {a.get(key, 'not there')} | {b.get(key, 'not there')}" for key in sorted({*a, *b})
            if a.get(key, "not there") != b.get(key, "not there")]


def curves(a: Path, b: Path) -> Curves:
    one, other = ({row["step"]: row for row in log(run)} for run in (a, b))
    both = sorted(set(one) & set(other))
    plain = lambda row: {k: v for k, v in row.items() if k not in TIMES}  # noqa: E731
    first = next((step for step in both if plain(one[step]) != plain(other[step])), None)
    gaps = [abs(one[step]["loss"] - other[step]["loss"]) / max(abs(one[step]["loss"]), 1e-30) for step in both
            if one[step].get("loss") is not None and other[step].get("loss") is not None]
    return Curves(len(both), first, max(gaps, default=None), (len(one) - len(both), len(other) - len(both)))


def in_words(found: Curves) -> str:
    if not found.rows:
        return "no step that both have logged"
    only = f"; only one has {found.only[0]} and {found.only[1]} rows more" if any(found.only) else ""
    if found.first is None:
        return f"equal in all {found.rows} rows{only}"
    loss = "no loss in both" if found.loss is None else f"loss by at most {found.loss:.2g} of it"
    return f"differ from step {found.first} on; {loss}{only}"


def environment(run: Path) -> dict:
    """The environment of a run's last start."""
    starts = read_starts(run)
    if not starts:
        raise DataError(f"{run}/environment.json has no entries.")
    return starts[-1]


def check_run(path: Path) -> Path:
    if not is_run(path):
        raise ConfigError(f"{path} is not a run folder: it has no config.json and environment.json.")
    return path


def metrics(a: Path, b: Path) -> list[str]:
    """The differences between the newest records of both runs, if their protocols agree."""
    records = [read_record(max(files, key=lambda f: f.stat().st_mtime)) for run in (a, b)
               if (files := list((run / "evaluations").glob("*.json")))]
    if len(records) < 2 or None in records:
        return ["not evaluated, both" if not records else "only one is evaluated"]
    if gaps := record.differences(*records):
        return ["measured by unlike protocols: " + ", ".join(gaps)]
    return record.side_by_side(*records).splitlines()


def part(start: dict, name: str) -> dict:
    """A part of a start's entry; empty if missing."""
    return found if isinstance(found := start.get(name), dict) else {}


def code(found: dict) -> str:
    git = part(found, "git")
    return f"{git.get('commit', 'unknown')}{' with changes' if git.get('dirty') else ''}"


def main(argv: list[str]) -> int:
    p = argparse.ArgumentParser(prog="python -m experiments.diff", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run_a", type=expanded)
    p.add_argument("run_b", type=expanded)
    args = p.parse_args(argv)
    a, b = check_run(args.run_a), check_run(args.run_b)
    configs = [read_json(run / "config.json") for run in (a, b)]
    starts = [environment(run) for run in (a, b)]
    config, found = unlike(*configs), curves(a, b)
    versions = unlike(*({"python": s.get("python"), **part(s, "packages")} for s in starts))
    print(f"config: {'equal' if not config else ''}", *config, sep="\n  " if config else "")
    print(f"versions: {'equal' if not versions else ''}", *versions, sep="\n  " if versions else "")
    print(f"code: {code(starts[0])}" + (" in both" if code(starts[0]) == code(starts[1]) else f" | {code(starts[1])}"))
    print(f"curves: {in_words(found)}")
    print("metrics:", *metrics(a, b), sep="\n  ")
    return int(bool(config) or found.first is not None)


if __name__ == "__main__":
    command(main)
