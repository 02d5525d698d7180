"""A table made of flags: --config=FILE --sweep.KEY=VALUE,VALUE ... --config.KEY=VALUE ..."""
import ast
import itertools
from pathlib import Path

from diffusion import config as config_lib
from diffusion.errors import ConfigError
from experiments.table import Column, Row, Scale, Table, load_config

USER_FLAGS = ("--config=", "--config.", "--sweep.", "--metrics=")
COLUMNS = {"fd": Column("Frechet distance", "fd"), "is": Column("score", "score", lower_is_better=False),
           "kid": Column("kernel distance", "kd"), "likelihood": Column("bits/dim", "bits_per_dim")}


def table_of_flags(flags: list[str]) -> Table:
    """The grid of all values of all --sweep.KEY. Raises ConfigError for flags that are wrong."""
    given = {}
    for flag in flags:
        key, equals, value = flag.partition("=")
        if not flag.startswith(USER_FLAGS) or not equals:
            raise ConfigError(f"Not a flag of a sweep: {flag!r}. It takes --config=FILE, --sweep.KEY=VALUE,VALUE, "
                              "--config.KEY=VALUE and --metrics=fd,likelihood.")
        given[key.removeprefix("--")] = value
    if "config" not in given:
        raise ConfigError("--config=FILE is missing: what the sweep is of, such as --config=configs/digits.py.")
    base = load_config(given["config"])
    grid = {key.removeprefix("sweep."): split(value) for key, value in given.items() if key.startswith("sweep.")}
    fixed = {key.removeprefix("config."): parsed(value) for key, value in given.items() if key.startswith("config.")}
    if not grid:
        raise ConfigError("Nothing is swept: give --sweep.KEY=VALUE,VALUE, such as --sweep.process.name=linear,cosine.")
    config_lib.override(base, {**fixed, **{key: values[0] for key, values in grid.items()}})  # raises for wrong keys
    metrics = [name for name in given.get("metrics", "fd").split(",") if name]
    if strange := [name for name in metrics if name not in COLUMNS]:
        raise ConfigError(f"There is no metric {strange[0]!r} of a sweep. Choose of: {', '.join(COLUMNS)}.")
    short = {key: key.removesuffix(".name").split(".")[-1] for key in grid}  # process.name is "process"
    rows = [Row(", ".join(f"{short[key]} {value}" for key, value in zip(grid, values)), dict(zip(grid, values)))
            for values in itertools.product(*grid.values())]
    stem = Path(given["config"]).stem
    return Table(
        name=f"{stem}-{'-'.join(short.values())}", title=f"{stem} over {', '.join(grid)}",
        source="your own sweep", columns=[COLUMNS[name] for name in metrics], rows=rows,
        scales={"own": Scale(given["config"], fixed, "as the flags say")})


def split(text: str) -> list:
    """At the commas that are outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote or c in "'\"":
            quote = "" if c == quote else quote or c
        depth += (c in "([") - (c in ")]")
        if c == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return [parsed(part.strip()) for part in parts if part.strip()]


def parsed(text: str) -> object:
    """A value of Python, or the text itself."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
