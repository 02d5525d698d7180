"""Declares the flags that several programs read, each once, and parses paths and lists."""
from pathlib import Path

from absl import flags

from diffusion.errors import ConfigError, shown
from diffusion.io import reading

LARGEST_SEED = 2**32 - 1
INSTEAD = {"num_samples": "--config.evaluate.images or --num_examples",
           "seed": "--config.seed, which training uses", "weights": "--config.sample.weights", "out": "--workdir",
           "from_pretrained": "--init_from, which starts training from such a model"}


class PathParser(flags.ArgumentParser):
    """A path with its leading ~ expanded, which a shell does not do after an equals sign."""

    def parse(self, argument: str) -> str:
        return str(reading.expanded(argument)) if argument.startswith("~") else argument


def declare_path(name: str, text: str, values: flags.FlagValues) -> None:
    """Declares a flag whose value is a path, or the name of a model."""
    flags.DEFINE(PathParser(), name, None, text, flag_values=values, serializer=flags.ArgumentSerializer())


def declare_source(values: flags.FlagValues) -> None:
    declare_path("from_pretrained", "A model to use instead of the run in --workdir: a folder in diffusers' "
                 "layout, a name on the Hugging Face hub, or a run folder. Its own config is used if --config is not "
                 "given.", values)


def declare_drawing(values: flags.FlagValues) -> None:
    """Declares the flags of all programs that draw from an existing model."""
    declare_source(values)
    flags.DEFINE_integer("checkpoint", None, "The step of the run's checkpoint. Default: the newest.",
                         flag_values=values)
    flags.DEFINE_string("weights", None, "Whose parameters: the name of an average of the run; posthoc:0.08, the "
                        "average of that width, made of the run's snapshots; or raw, not averaged. The same as "
                        "--config.sample.weights.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "The seed of the draws; image i depends only on it and i.", lower_bound=0,
                         upper_bound=LARGEST_SEED, flag_values=values)


def declare_num_samples(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("num_samples", 64, "How many images.", lower_bound=1, upper_bound=10**6, flag_values=values)


def parse_list(name: str, kind: type, values: flags.FlagValues) -> list | None:
    """The entries of a list flag; None if it is not given and has no default. Raises ConfigError for no entries, too
    many, or entries of another kind."""
    words = values[name].value
    if words is None:
        return None
    try:
        found = [kind(word) for word in words]
    except ValueError:
        found = []
    if not found or "" in words or not all(abs(x) < 2**31 for x in found if kind is not str):
        what = "names" if kind is str else "whole numbers" if kind is int else "numbers"
        example = {"solvers": "ddim,unipc", "classes": "3,3,7", "scales": "1,2.5"}.get(name, "5,10,20")
        raise ConfigError(f"--{name}={shown(','.join(words))[1:-1]} must be {what} between commas, such as {example}.")
    if len(found) > 1000:
        raise ConfigError(f"--{name} has {len(found):,} entries; at most 1,000 are allowed.")
    return found


def default_folder(workdir: Path, values: flags.FlagValues) -> Path:
    """The folder to write to without --out: the run folder, or a folder of samples/ for a pretrained model."""
    source = values.from_pretrained
    return workdir if source is None else Path("samples") / Path(source).name
