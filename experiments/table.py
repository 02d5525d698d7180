"""A table of a paper: rows as overrides of a config, the paper's cells and conclusions, and the scales to run it at.

A table is a file of experiments/tables/ (or one of your own) that ends in `TABLE = Table(...)`.
"""
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ml_collections import ConfigDict

from diffusion import config as config_lib
from diffusion import config_flags, user_file
from diffusion.config_values import nearest
from diffusion.errors import ConfigError, shown

ROOT = Path(__file__).parent.parent
TABLES = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Cell:
    """A published number."""
    value: float | None       # None: the paper has none, for the reason in the note
    error: float | None = None
    note: str = ""            # such as "diverges"
    doubt: str = ""           # empty: checked against the paper. Else shown with it: recalled, second hand (as others
                              # quote the paper)


@dataclass(frozen=True)
class Column:
    """A measurement of the paper, and the metric of ours to show next to it, never in the same column."""
    name: str                 # the paper's name for it
    ours: str                 # fd, score, kd, precision ...: of an evaluation (Extractor.called); bits_per_dim
    lower_is_better: bool = True


@dataclass(frozen=True)
class Row:
    name: str
    overrides: Mapping[str, object]
    paper: Mapping[str, Cell | float] = field(default_factory=dict)  # by Column.name

    def cell(self, column: str) -> Cell | None:
        cell = self.paper.get(column)
        return Cell(cell) if isinstance(cell, (int, float)) else cell


@dataclass(frozen=True)
class Finding:
    """A conclusion of the paper: in each pair, the first row's number of the column is better than the second's."""
    text: str
    column: str
    better: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Scale:
    config: str                     # the file, or a path
    overrides: Mapping[str, object]
    about: str                      # its contents and limits
    examples: int | None = None     # images for the likelihood, from config.data with split `likelihood_split`
    likelihood_split: str = "test"
    leaves_out: Sequence[str] = ()  # rows that take too long at this scale
    of_rows: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # overrides of single rows, here only


@dataclass(frozen=True, kw_only=True)
class Table:
    title: str
    source: str                     # paper, arXiv number, table
    columns: Sequence[Column]
    rows: Sequence[Row]
    scales: Mapping[str, Scale]     # paper, small, mini
    findings: Sequence[Finding] = ()
    x: str = ""                     # the x axis for quality: evaluations (network calls per sample), or a key
                                    # such as sample.guidance.scale; "": rows side by side
    name: str = ""                  # of the file

    @property
    def modes(self) -> tuple[str, ...]:
        """The programs whose records the columns need."""
        likelihood = any(column.ours == "bits_per_dim" for column in self.columns)
        evaluate = any(column.ours != "bits_per_dim" for column in self.columns)
        return ("evaluate",) * evaluate + ("likelihood",) * likelihood

    def row(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        there = [row.name for row in self.rows]
        raise ConfigError(f"{self.name} has no row {name!r}.{nearest(name, there)} Its rows: "
                          f"{'; '.join(there)}.")

    def scale(self, name: str) -> Scale:
        if name not in self.scales:
            raise ConfigError(f"{self.name} has no scale {name!r}; it has {', '.join(self.scales)}.")
        return self.scales[name]

    def overrides(self, scale: str, row: Row) -> dict[str, object]:
        """All overrides of the scale's config for a row."""
        s = self.scale(scale)
        return {**s.overrides, **row.overrides, **s.of_rows.get(row.name, {})}

    def config(self, scale: str, row: Row) -> ConfigDict:
        """The resolved config of a row. Raises ConfigError for an override of an unknown key or a wrong type."""
        s = self.scale(scale)
        try:
            return config_lib.override(load_config(s.config), self.overrides(scale, row))
        except ConfigError as error:
            raise ConfigError(f"{self.name}, row {row.name!r} at {scale}: {error}") from None


def names() -> list[str]:
    return sorted(path.stem for path in TABLES.glob("*.py") if path.stem != "__init__")


def find(name: str) -> Table:
    """The table of a name or a file. Raises ConfigError if it does not exist or contradicts itself."""
    path = Path(name) if name.endswith(".py") else TABLES / f"{name}.py"
    if not os.path.isfile(path):
        raise ConfigError(f"There is no table {shown(name)}.{nearest(name, names())} Tables: "
                          f"{', '.join(names())}; or the path of a file with TABLE = Table(...).")
    module = user_file.run(path, "table")
    table = getattr(module, "TABLE", None)
    if not isinstance(table, Table):
        raise ConfigError(f"{path} is not a table: it must end in TABLE = Table(...), but its TABLE is {shown(table)}.")
    table = Table(**{**vars(table), "name": path.stem})
    user_file.call(path, "table", check, table)
    return table


def check_kinds(table: Table) -> None:
    """Raises ConfigError if a part of the table, of its rows or of its scales has a wrong type."""
    wanted = [("columns", table.columns, Column), ("rows", table.rows, Row), ("findings", table.findings, Finding),
              ("scales", table.scales.values() if isinstance(table.scales, Mapping) else None, Scale)]
    for name, members, kind in wanted:
        if not isinstance(members, Iterable) or not all(isinstance(member, kind) for member in members):
            raise ConfigError(f"{table.name}: its {name} must each be a {kind.__name__}; got "
                              f"{shown(getattr(table, name))}.")
    if not table.columns or not table.rows or not table.scales:
        raise ConfigError(f"{table.name} needs at least one column, row and scale.")
    parts = [("", table, "title source x", ""), *((", a column", part, "name ours", "") for part in table.columns),
             *((f", row {part.name!r}", part, "name", "overrides paper") for part in table.rows),
             *((f", scale {name!r}", part, "config about", "overrides of_rows") for name, part in table.scales.items()),
             *((", a finding", part, "text column", "") for part in table.findings)]
    for what, part, texts, dicts in parts:
        for names, kind, word in ((texts, str, "text"), (dicts, Mapping, "a dict")):
            for name in names.split():
                if not isinstance(value := getattr(part, name), kind):
                    raise ConfigError(f"{table.name}{what}: its {name} must be {word}; got {shown(value)}.")


def check(table: Table) -> None:
    """Raises ConfigError for parts of the wrong type, rows of equal name, cells without a column, or findings about
    missing rows."""
    check_kinds(table)
    seen: set[str] = set()
    columns = {column.name for column in table.columns}
    for row in table.rows:
        if row.name in seen:
            raise ConfigError(f"{table.name} has two rows {row.name!r}.")
        seen.add(row.name)
        if strange := set(row.paper) - columns:
            raise ConfigError(f"{table.name}, row {row.name!r} has a cell of {strange.pop()!r}, which is not a column: "
                              f"{', '.join(sorted(columns))}.")
        if strange := [cell for cell in row.paper.values()
                       if not isinstance(getattr(cell, "value", cell), int | float | None)]:
            raise ConfigError(f"{table.name}, row {row.name!r}: a cell is a number or a Cell; got {shown(strange[0])}.")
    for scale in table.scales.values():
        for name in (*scale.leaves_out, *scale.of_rows):
            table.row(name)
        if strange := [x for x in scale.of_rows.values() if not isinstance(x, Mapping)]:
            raise ConfigError(f"{table.name}: the of_rows of a scale are dicts; got {shown(strange[0])}.")
    for finding in table.findings:
        if finding.column not in columns:
            raise ConfigError(f"{table.name}: the finding {finding.text!r} is about {finding.column!r}, no column.")
        for name in {name for better, worse in finding.better for name in (better, worse)}:
            table.row(name)


def load_config(file: str) -> ConfigDict:
    """The config of a file, by its path from the root of the repository. Runs the file once until it changes, for any
    number of rows. Raises ConfigError if it cannot be read."""
    path = file if Path(file).is_absolute() else str(ROOT / file)
    return _load(path, os.stat(path).st_mtime_ns if os.path.isfile(path) else 0)


@functools.lru_cache(maxsize=16)
def _load(path: str, changed: int) -> ConfigDict:
    return config_flags.load(path)
