"""Makes a table from flags: --config=FILE --sweep.KEY=VALUE,VALUE ... --config.KEY=VALUE ..."""
import itertools
import math
from pathlib import Path

from diffusion import config as config_lib
from diffusion.errors import ConfigError, shown
from experiments.table import Column, Row, Scale, Table, load_config

USER_FLAGS = ("--config=", "--config.", "--sweep.", "--metrics=")
LARGEST = 10_000  # rows
COLUMNS = {"fd": Column("Frechet distance", "fd"), "is": Column("score", "score", lower_is_better=False),
           "kid": Column("kernel distance", "kd"), "likelihood": Column("bits/dim", "bits_per_dim")}


def table_of_flags(flags: list[str]) -> Table:
    """The grid of all values of all --sweep.KEY. Raises ConfigError for wrong flags."""
    given = {}
    for flag in flags:
        key, equals, value = flag.partition("=")
        if not flag.startswith(USER_FLAGS) or not equals:
            raise ConfigError(f"Not a flag of a sweep: {flag!r}. It takes --config=FILE, --sweep.KEY=VALUE,VALUE, "
                              "--config.KEY=VALUE and --metrics=fd,likelihood.")
        given[key.removeprefix("--")] = value
    if "config" not in given:
        raise ConfigError("--config=FILE is missing: name the config to sweep, such as --config=configs/digits.py.")
    base = load_config(given["config"])
    grid, fixed = {}, {}
    for flag, text in given.items():
        kind, _, key = flag.partition(".")
        if key:
            config_lib.check_key(key)
            values = [config_lib.known()[key].parsed(part, f"--{flag}") for part in
                      (split(text) if kind == "sweep" else [text])]
            if not values:
                raise ConfigError(f"--{flag} is empty: give values between commas, such as --sweep.sample.steps=5,10.")
            (grid if kind == "sweep" else fixed)[key] = values if kind == "sweep" else values[0]
    if not grid:
        raise ConfigError("Nothing is swept: give --sweep.KEY=VALUE,VALUE, such as --sweep.process.name=linear,cosine.")
    if (count := math.prod(map(len, grid.values()))) > LARGEST:
        raise ConfigError(f"This sweep has {count:,} rows; at most {LARGEST:,} are allowed.")
    config_lib.override(base, fixed, "the command line")
    metrics = [name for name in given.get("metrics", "fd").split(",") if name]
    if (strange := [name for name in metrics if name not in COLUMNS]) or not metrics:
        raise ConfigError(f"There is no metric {shown(strange[0] if strange else '')} of a sweep. Choose of: "
                          f"{', '.join(COLUMNS)}.")
    if "seed" in grid:  # each row has the same seeds
        raise ConfigError(f"--sweep.seed: seeds are not rows. Leave it out, and give --seeds={len(grid['seed'])}.")
    short = {key: key.removesuffix(".name").split(".")[-1] for key in grid}  # process.name is "process"
    rows = [Row(", ".join(f"{short[key]} {value}" for key, value in zip(grid, values)), dict(zip(grid, values)))
            for values in itertools.product(*grid.values())]
    stem = Path(given["config"]).stem
    return Table(
        name=f"{stem}-{'-'.join(short.values())}", title=f"{stem} over {', '.join(grid)}",
        source="your own sweep", columns=[COLUMNS[name] for name in metrics], rows=rows,
        scales={"own": Scale(given["config"], fixed, "as the flags say")})


def split(text: str) -> list[str]:
    """Splits text at the commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote or c in "'\"":
            quote = "" if c == quote else quote or c
        depth += (c in "([") - (c in ")]")
        if c == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts if part.strip()]
