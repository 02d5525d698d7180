"""Trains a diffusion model, or samples from one.

  python -m diffusion.main --config=configs/digits.py
  python -m diffusion.main --config=configs/digits.py --mode=sample --num_samples=64 --out=samples
  python -m diffusion.main --config=configs/folder.py --config.data.dir=PHOTOS --mode=data
  python -m diffusion.main --config=configs/cifar10.py --config.train.batch_size=64 --workdir=runs/small_batch
  python -m diffusion.main --config=configs/digits.py --mode=sample --task=inpaint --num_samples=8
  python -m diffusion.main --config=configs/digits.py --mode=evaluate --config.evaluate.images=5000
  python -m diffusion.main --config=configs/digits.py --mode=likelihood --config.data.split=test
  python -m diffusion.main --config=configs/digits.py --mode=compare --solvers=ddim,unipc --steps=5,10,20
  python -m diffusion.main --mode=sample --from_pretrained=google/ddpm-cifar10-32 --num_samples=16 --out=samples
  python -m diffusion.main --mode=train --init_from=google/ddpm-cifar10-32 --config.data.dir=data
  python -m diffusion.main --mode=sample --workdir=runs/digits       # uses the run's config

Any config key can be set by --config.KEY=VALUE; --keys explains all keys. Running a command again resumes it. A
second run folder for the same config needs its own --workdir.
"""
import math
import os
import sys
from pathlib import Path

from diffusion import program

if __name__ == "__main__":
    program.begin()

from absl import app, flags  # noqa: E402  (after the start time is taken)
from ml_collections import ConfigDict  # noqa: E402

from diffusion.command_words import check_text, expanded  # noqa: E402
from diffusion.errors import ConfigError, shown  # noqa: E402
from diffusion.programs import (  # noqa: E402
    compare,
    data,
    evaluate,
    likelihood,
    plan,
    sample,
    shared_flags,
    train,
    verify,
)

MODES = {"train": train, "sample": sample, "evaluate": evaluate, "likelihood": likelihood, "compare": compare,
         "verify_resume": verify, "plan": plan, "data": data}
INSTEAD = {name: words for module in (shared_flags, *MODES.values()) for name, words in module.INSTEAD.items()}

COMMON = flags.FlagValues()  # read by every mode
shared_flags.declare_path("config", "The config file, such as configs/cifar10.py, or the config.json of a run; "
                          "--config.KEY=VALUE sets one of its keys. Default: the config of the run in --workdir, or of "
                          "--from_pretrained or --init_from.", COMMON)
shared_flags.declare_path("workdir", "The run folder. Default: runs/NAME of the config file.", COMMON)
flags.DEFINE_enum("mode", "train", list(MODES), "What to do.", flag_values=COMMON)
flags.DEFINE_string("coordinator", None, "Several processes: HOST:PORT of process 0.", flag_values=COMMON)
flags.DEFINE_integer("num_processes", None, "Several processes: their number.", lower_bound=1, upper_bound=2**16,
                     flag_values=COMMON)
flags.DEFINE_integer("process_id", None, "Several processes: the index of this one, from 0.", lower_bound=0,
                     flag_values=COMMON)
flags.DEFINE_float("connect_seconds", 120.0, "Several processes: seconds they wait for each other.", lower_bound=1.0,
                   upper_bound=86400.0, flag_values=COMMON)
flags.DEFINE_float("heartbeat_seconds", 100.0, "Several processes: seconds one may be silent before the others give "
                   "up.", lower_bound=10.0, upper_bound=86400.0, flag_values=COMMON)

READ_BY: dict[str, flags.FlagValues] = {}  # the other flags that each mode reads


def declare_all_flags() -> None:
    """Declares the flags of all modes, so that a flag of another mode differs from an unknown flag."""
    for mode, module in MODES.items():
        module.declare_flags(READ_BY.setdefault(mode, flags.FlagValues()))
    for values in (COMMON, *READ_BY.values()):
        for name in values:
            if name not in flags.FLAGS:
                flags.FLAGS[name] = values[name]
                flags.FLAGS.register_flag_by_module("diffusion.main", values[name])  # for --helpfull


declare_all_flags()
GIVEN: dict[str, str] = {}  # the values of --config.KEY
HELP = {"--help", "-help", "--helpshort", "-helpshort", "-h", "-?"}


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    if len(argv) > 1:
        raise ConfigError(f"Not a flag: {shown(argv[1])}. Flags are written --name=value; see --help.")
    check_uses(values)
    if values.workdir and "://" in values.workdir:
        raise ConfigError(f"--workdir={values.workdir} is a bucket. A run folder must be on a file system: mount "
                          "the bucket, by gcsfuse or s3fs with your credentials, and give the mounted folder.")
    MODES[values.mode].prepare_process(values)
    try:  # after the flags: --help and wrong flags need no JAX
        import jax  # noqa: F401
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"JAX does not start: {error}. Its settings are environment variables whose names begin with "
                          "JAX_.") from error
    from diffusion import config_flags
    if values.weights is not None:
        GIVEN["sample.weights"] = values.weights
    config_flags.load_plugins(GIVEN)
    config, name, origin = read_config(values)
    with config_flags.naming(origin, config, GIVEN):
        start(config, Path(values.workdir or Path("runs") / name), values)


def start(config: ConfigDict, workdir: Path, values: flags.FlagValues) -> None:
    """Starts the process with its devices and the other processes of the run, and runs the program of --mode."""
    from diffusion import runtime
    from diffusion.parallel import hosts
    runtime.repeat_bits()
    runtime.check_flags()
    hosts.join(values.coordinator, values.num_processes, values.process_id, seconds=values.connect_seconds,
               heartbeat=values.heartbeat_seconds)
    runtime.check_devices()
    program.interruptible()
    hosts.check_same(config.to_dict(), values.mode, str(workdir))
    runtime.keep_compilations(shared_flags.default_folder(workdir, values).parent)
    runtime.keep_memory()
    MODES[values.mode].run_program(config, workdir, values)


def check_uses(values: flags.FlagValues) -> None:
    """Raises ConfigError for a given flag that the mode does not read."""
    for name in values:
        readers = [mode for mode, read in READ_BY.items() if name in read]
        if values[name].present and readers and values.mode not in readers:
            raise ConfigError(f"--{name} is not for --mode={values.mode}, but for {', '.join(readers)}."
                              + f" Instead: {INSTEAD.get(name)}." * (name in INSTEAD))


def read_config(values: flags.FlagValues) -> tuple[ConfigDict, str, str]:
    """(the config of the command line, the name of its run, its source file or model). Raises ConfigError for a wrong
    config."""
    from diffusion import config_flags
    model = values.from_pretrained if values.from_pretrained is not None else values.init_from
    in_workdir = values.workdir and os.path.isfile(Path(values.workdir) / "config.json")
    source = values.config
    if source is None and model is None and in_workdir:
        source = str(Path(values.workdir) / "config.json")
    if source is not None:
        config = config_flags.load(source, GIVEN)
        file = Path(source if os.path.isfile(source) else source.split(":", 1)[0])
        name = file.parent.name if file.suffix == ".json" else file.stem
    elif model is not None:
        from diffusion import pretrained
        load = pretrained.load if values.from_pretrained is not None else pretrained.load_source
        config, name = load(model).config, f"{Path(model).name}-finetuned"
    else:
        raise ConfigError("--config is missing: name a file of configs/, such as --config=configs/digits.py, an "
                          "existing run by --workdir, or a model by --from_pretrained=SOURCE or --init_from=SOURCE.")
    return config_flags.with_given(config, GIVEN), name, source or model


def parse_flags(argv: list[str]) -> list[str]:
    """Parses with absl, with one message for any error; prints --help."""
    words = expanded(argv[1:])
    for word in words:
        check_text(word)
    if set(words) & HELP:
        print(help_text([word for word in words if word not in HELP]))
        sys.exit()
    from diffusion import config_flags  # imported here, so that --help needs no config
    source, given, rest = config_flags.split(words)
    GIVEN.update(given)
    if asked := [word for word in rest if word.lstrip("-").partition("=")[0] == "keys"]:
        from diffusion import config_help
        config_flags.load_plugins(given)
        print(config_help.describe(asked[-1].partition("=")[2]))
        sys.exit()
    rest = parse_words([*([] if source is None else [f"--config={source}"]), *rest], flags.FLAGS)
    for name in flags.FLAGS:
        if flags.FLAGS[name].value == "" and flags.FLAGS[name].present:
            raise ConfigError(f"--{name} is empty: write --{name}=VALUE, with the equals sign.")
        if isinstance(value := flags.FLAGS[name].value, float) and not math.isfinite(value):
            raise ConfigError(f"--{name}={value} is not a finite number.")
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = -1  # warnings only: at absl's default the libraries' reports bury ours
    return rest


def parse_words(words: list[str], values: flags.FlagValues, known_only: bool = False) -> list[str]:
    """Sets the values, and returns the words that are not flags. known_only: the rest may be other programs' flags."""
    try:
        return values(["diffusion.main", *words], known_only=known_only)
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(" ".join(" ".join(map(str, error.args)).split())) from error


def help_text(words: list[str]) -> str:
    """The text of --help, for the mode that the words name, or for all."""
    COMMON.set_gnu_getopt()
    parse_words(words, COMMON, known_only=True)
    common = (f"Flags of every mode; --config.KEY=VALUE sets a key of the config, and --keys, --keys=FAMILY and "
              f"--keys=FAMILY.MEMBER\nprint the keys:\n{describe_flags(COMMON)}")
    if not COMMON["mode"].present:
        modes = "\n".join(f"  {mode:<14} {summary_of(mode)}" for mode in MODES)
        return f"{__doc__}\n{common}\n\nModes; for the flags of one, --mode=NAME --help:\n{modes}"
    return (f"python -m diffusion.main --mode={COMMON.mode}\n\n{summary_of(COMMON.mode)}\n\nIts flags:\n"
            f"{describe_flags(READ_BY[COMMON.mode])}\n\n{common}")


def summary_of(mode: str) -> str:
    return (MODES[mode].__doc__ or "").partition("\n")[0]


def describe_flags(values: flags.FlagValues) -> str:
    """absl's description of the flags, without the modules that declare them."""
    plain = flags.FlagValues()
    for name in values:
        plain[name] = values[name]
    return plain.get_help("  ", include_special_flags=False)


def run() -> None:
    """The command."""
    program.run(lambda: app.run(main, flags_parser=parse_flags))


if __name__ == "__main__":
    run()
