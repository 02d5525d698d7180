"""Trains a diffusion model, or samples from one.

  python -m diffusion.main --config=configs/digits.py
  python -m diffusion.main --config=configs/digits.py --mode=sample --num_samples=64 --out=samples
  python -m diffusion.main --config=configs/cifar10.py --config.train.batch_size=64 --workdir=runs/small_batch
  python -m diffusion.main --config=configs/digits.py --mode=sample --task=inpaint --num_samples=8
  python -m diffusion.main --config=configs/digits.py --mode=evaluate --config.evaluate.images=5000
  python -m diffusion.main --config=configs/digits.py --mode=likelihood --config.data.split=test
  python -m diffusion.main --config=configs/digits.py --mode=compare --solvers=ddim,unipc --steps=5,10,20
  python -m diffusion.main --mode=sample --from_pretrained=google/ddpm-cifar10-32 --num_samples=16 --out=samples
  python -m diffusion.main --mode=train --init_from=google/ddpm-cifar10-32 --config.data.dir=data
  python -m diffusion.main --mode=sample --workdir=runs/digits       # a run knows its config

Any key of the config can be set by --config.KEY=VALUE; all keys and their meaning are in diffusion/config.py. Running a
command again resumes it. A second run folder for the same config needs its own --workdir.
"""
import math
import os
import time
from pathlib import Path

STARTED = time.perf_counter()

from diffusion import program  # noqa: E402  (the clock starts before the imports)

if __name__ == "__main__":
    program.begin()

from absl import app, flags  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from diffusion import config_flags  # noqa: E402
from diffusion.errors import ConfigError, shown, unprintable  # noqa: E402
from diffusion.io import reading  # noqa: E402

LARGEST_SEED = 2**32 - 1

CONFIG = flags.DEFINE_string("config", None, "The config file, such as configs/cifar10.py, or the config.json of a "
                             "run; --config.KEY=VALUE sets a key of it. Default: that of the run in --workdir, or of "
                             "--from_pretrained or --init_from.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run folder. Default: runs/NAME of the config file.")
MODES = ["train", "sample", "evaluate", "likelihood", "compare", "verify_resume", "plan"]
MODE = flags.DEFINE_enum("mode", "train", MODES,
                         "What to do: train, draw samples, evaluate them against config.data by config.evaluate (FID "
                         "and the like), estimate bits/dim on config.data, compare samplers, try whether a resumed "
                         "training is the same, bit for bit, or plan for a --topology.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "sample, compare: how many images.", lower_bound=1,
                                   upper_bound=10**6)
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", None, "likelihood: how many images of the data. Default: all.",
                                    lower_bound=1)
SOLVERS = flags.DEFINE_list("solvers", ["ddim", "heun", "dpm_solver++m", "unipc"], "compare: names of "
                            "config.sample.solver.")
STEPS = flags.DEFINE_list("steps", ["5", "10", "20", "50"], "compare: numbers of steps.")
SCALES = flags.DEFINE_list("scales", None, "compare: scales of guidance. Default: that of config.sample.guidance.")
CLASSES = flags.DEFINE_list("classes", None, "sample: the classes of the images, which repeat, such as 3,3,7. Default: "
                            "all classes in turn.")
TASK = flags.DEFINE_enum("task", None, ["inpaint", "colorise", "upscale", "vary", "reconstruct", "interpolate"],
                         "sample: what to make of given images. inpaint, colorise, upscale: what is missing; vary: "
                         "SDEdit; reconstruct, interpolate: by DDIM inversion.")
IMAGE = flags.DEFINE_string("image", None, "task: a picture, a folder of them or an npz. Default: of config.data.")
MASK = flags.DEFINE_string("mask", None, "inpaint: a picture, white where it is drawn anew. Default: the middle.")
LABEL = flags.DEFINE_integer("label", None, "task: the class of the pictures in --image.")
FACTOR = flags.DEFINE_integer("factor", 4, "upscale: how much wider the result is.", lower_bound=1, upper_bound=2**10)
JUMP = flags.DEFINE_integer("jump", 10, "inpaint, colorise, upscale: RePaint's steps back up ...", lower_bound=1,
                            upper_bound=10**4)
REPEATS = flags.DEFINE_integer("repeats", 1, "... and how often each place is passed; 1: no returns.", lower_bound=1,
                               upper_bound=100)
STRENGTH = flags.DEFINE_float("strength", 0.5, "vary: the share of the steps that are taken.")
ITERATIONS = flags.DEFINE_integer("iterations", 3, "reconstruct, interpolate: of the inversion of each step.",
                                  lower_bound=1, upper_bound=1000)
SEED = flags.DEFINE_integer("seed", 0, "All but train, verify_resume, plan: the seed of the draws; image i is a "
                            "function of this and i.", lower_bound=0, upper_bound=LARGEST_SEED)
OUT = flags.DEFINE_string("out", None, "sample, compare: the folder to write; likelihood, plan: the file. Default: in "
                          "the run folder (plan: none), or samples/ for a pretrained model.")
FROM_PRETRAINED = flags.DEFINE_string(
    "from_pretrained", None, "All but train, verify_resume: a model to draw from instead of the run in --workdir: a "
    "folder in diffusers' layout, a name on the Hugging Face hub, or a run folder. Its own config is used if --config "
    "is not given.")
INIT_FROM = flags.DEFINE_string("init_from", None, "train: a model, as in --from_pretrained, whose weights a new run "
                                "starts from. Its own config is used if --config is not given.")
CHECKPOINT = flags.DEFINE_integer("checkpoint", None, "sample, evaluate, likelihood, compare: the step of the "
                                  "checkpoint. Default: the newest.")
ALL_CHECKPOINTS = flags.DEFINE_bool("all_checkpoints", False, "evaluate: every checkpoint of the run.")
NUM_SEEDS = flags.DEFINE_integer("num_seeds", 1, "evaluate: with so many seeds, from --seed on; the record "
                                   "has all, their mean and the best.", lower_bound=1, upper_bound=10**4)
VERIFY_STEPS = flags.DEFINE_integer("verify_steps", 20, "verify_resume: how many steps before the checkpoint, and "
                                    "after it.", lower_bound=1, upper_bound=10**6)
TOPOLOGY = flags.DEFINE_string("topology", "local", "plan: the devices to compile for, such as v5e:4x4 or v5p:2x2x4; "
                               "local: those at hand.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "Several processes: HOST:PORT of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several processes: how many.", lower_bound=1,
                                     upper_bound=2**16)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Several processes: which this one is, from 0.", lower_bound=0)
CONNECT_SECONDS = flags.DEFINE_float("connect_seconds", 120.0, "Several processes: how long they wait for each other.",
                                     lower_bound=1.0, upper_bound=86400.0)
HEARTBEAT_SECONDS = flags.DEFINE_float("heartbeat_seconds", 100.0, "Several processes: how long one may be silent "
                                       "before the others give up.", lower_bound=10.0, upper_bound=86400.0)


# Which modes read a flag, where not all do, and what to use in the others.
MODELS = ("sample", "evaluate", "likelihood", "compare")
OF_MODES = {
    "num_samples": (("sample", "compare"), "--config.evaluate.images or --num_examples"),
    "num_examples": (("likelihood",), "--num_samples or --config.evaluate.images"),
    "solvers": (("compare",), "--config.sample.solver"),
    "steps": (("compare",), "--config.sample.steps, or --config.train.duration for a training"),
    "scales": (("compare",), "--config.sample.guidance.scale"), "classes": (("sample",), ""), "task": (("sample",), ""),
    "seed": (MODELS, "--config.seed, by which training draws"), "out": ((*MODELS, "plan"), "--workdir"),
    "from_pretrained": ((*MODELS, "plan"), "--init_from, which starts a training from such a model"),
    "init_from": (("train",), "--from_pretrained, which samples from such a model"), "checkpoint": (MODELS, ""),
    "all_checkpoints": (("evaluate",), "--checkpoint"), "num_seeds": (("evaluate",), "--seed"),
    "verify_steps": (("verify_resume",), ""), "topology": (("plan",), "")}
MEASURED, INVERTED = ("inpaint", "colorise", "upscale"), ("reconstruct", "interpolate")
OF_TASKS = {"image": (*MEASURED, "vary", *INVERTED), "label": (*MEASURED, "vary", *INVERTED), "mask": ("inpaint",),
            "factor": ("upscale",), "jump": MEASURED, "repeats": MEASURED, "strength": ("vary",),
            "iterations": INVERTED}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ConfigError(f"Not a flag: {shown(argv[1])}. Flags are written --name=value; see --help.")
    check_uses()
    if WORKDIR.value and "://" in WORKDIR.value:
        raise ConfigError(f"--workdir={WORKDIR.value} is a bucket. A run folder is on a file system: mount the bucket, "
                          "by gcsfuse or s3fs with your credentials, and give the folder where it is mounted.")
    if MODE.value == "plan" and TOPOLOGY.value != "local":
        # libtpu is to compile, and not to look for a TPU, or for a server that tells of one.
        for name, value in {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
                            "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_STDERR_LOG_LEVEL": "3",
                            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
            os.environ.setdefault(name, value)
    kinds = {"compare": {"solvers": str, "steps": int, "scales": float}, "sample": {"classes": int}}
    lists = {} if TASK.value else {flag: listed(flag, kind) for flag, kind in kinds.get(MODE.value, {}).items()}
    config, name, origin = read_config()
    with config_flags.naming(origin, config, GIVEN):
        start(config, Path(WORKDIR.value or Path("runs") / name), lists)


def start(config: ConfigDict, workdir: Path, lists: dict[str, list]) -> None:
    """What --mode says, with this config; lists: the flags that are."""
    train, source = MODE.value == "train", FROM_PRETRAINED.value
    try:  # after the flags: --help and wrong flags answer at once, without JAX
        from diffusion import hosts, modes, runtime
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"JAX does not start: {error}. Its settings are environment variables whose names begin with "
                          "JAX_.") from error
    runtime.check_flags()
    hosts.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, seconds=CONNECT_SECONDS.value,
               heartbeat=HEARTBEAT_SECONDS.value)
    runtime.check_devices()
    program.interruptible()
    hosts.check_same(config.to_dict(), MODE.value, str(workdir))
    here = workdir if source is None else Path("samples") / Path(source).name
    runtime.keep_compilations(here.parent)
    runtime.keep_memory()
    if MODE.value == "likelihood":
        name = f"likelihood_{config.likelihood.estimator}_{config.data.split}.json"
        modes.likelihood(config, workdir, source, num_examples=NUM_EXAMPLES.value, seed=SEED.value,
                         out=Path(OUT.value or here / name), step=CHECKPOINT.value)
    elif MODE.value == "compare":
        from diffusion.compare import compare
        compare(config, workdir, source, **lists, num_samples=NUM_SAMPLES.value, seed=SEED.value,
                out=Path(OUT.value or here / "compare"), checkpoint=CHECKPOINT.value)
    elif TASK.value is not None and not train:
        from diffusion.edit import Settings, edit
        path = lambda flag: Path(flag.value) if flag.value else None  # noqa: E731
        settings = Settings(task=TASK.value, image=path(IMAGE), mask=path(MASK), label=LABEL.value, factor=FACTOR.value,
                            jump=JUMP.value, repeats=REPEATS.value, strength=STRENGTH.value,
                            iterations=ITERATIONS.value)
        edit(config, workdir, source, settings, num_samples=NUM_SAMPLES.value, seed=SEED.value,
             out=Path(OUT.value or here / f"{TASK.value}_{SEED.value}"), checkpoint=CHECKPOINT.value)
    elif MODE.value == "plan":
        from diffusion.plan import plan
        plan(config, TOPOLOGY.value, Path(OUT.value) if OUT.value else None)
    elif MODE.value == "evaluate":
        from diffusion.evaluate import evaluate
        evaluate(config, workdir, source, seed=SEED.value, seeds=NUM_SEEDS.value, step=CHECKPOINT.value,
                 all_checkpoints=ALL_CHECKPOINTS.value, out=Path(OUT.value or here / "evaluations"))
    elif MODE.value == "verify_resume":
        from diffusion.verify import verify_resume
        verify_resume(config, workdir, VERIFY_STEPS.value)
    elif train:
        modes.train(config, workdir, STARTED, INIT_FROM.value)
    else:
        out = workdir / f"samples_{SEED.value}" if source is None else f"samples/{Path(source).name}_{SEED.value}"
        modes.sample(config, workdir, source, num_samples=NUM_SAMPLES.value,
                     seed=SEED.value, out=Path(OUT.value or out), step=CHECKPOINT.value, **lists)


def check_uses() -> None:
    """Raises ConfigError for a flag that is given and would do nothing."""
    given = {name for name in flags.FLAGS if flags.FLAGS[name].present}
    for name, (modes, instead) in OF_MODES.items():
        if name in given and MODE.value not in modes:
            raise ConfigError(f"--{name} is not for --mode={MODE.value}, but for {', '.join(modes)}."
                              + f" Instead: {instead}." * bool(instead))
    for name, tasks in OF_TASKS.items():
        if name in given and TASK.value not in tasks:
            raise ConfigError(f"--{name} is for --task={' or '.join(tasks)}."
                              + " Instead: --classes, of samples without a task." * (name == "label"))
    if ALL_CHECKPOINTS.value and "checkpoint" in given:
        raise ConfigError("Either --all_checkpoints or --checkpoint=STEP, not both.")
    if TASK.value and "classes" in given:
        raise ConfigError("--classes is for samples without a --task; --label is the class of the pictures in --image.")
    if SEED.value + NUM_SEEDS.value - 1 > LARGEST_SEED:
        raise ConfigError(f"--num_seeds={NUM_SEEDS.value} from --seed={SEED.value} on goes beyond the last seed, "
                          f"{LARGEST_SEED}.")


def listed(flag: str, kind: type) -> list | None:
    """The entries of a flag that is a list; None if it is not given and has no default. Raises ConfigError where there
    are none, too many, or not such."""
    words = flags.FLAGS[flag].value
    if words is None:
        return None
    try:
        found = [kind(word) for word in words]
    except ValueError:
        found = []
    if not found or "" in words or not all(abs(x) < 2**31 for x in found if kind is not str):
        what = "names" if kind is str else "whole numbers" if kind is int else "numbers"
        example = {"solvers": "ddim,unipc", "classes": "3,3,7", "scales": "1,2.5"}.get(flag, "5,10,20")
        raise ConfigError(f"--{flag}={shown(','.join(words))[1:-1]} must be {what} between commas, such as {example}.")
    if len(found) > 1000:
        raise ConfigError(f"--{flag} has {len(found):,} entries; the most are 1,000.")
    return found


def read_config() -> tuple[ConfigDict, str, str]:
    """(the config of the command line, the name of its run, the file or model that it is of). Raises ConfigError for
    what is wrong with it."""
    model = FROM_PRETRAINED.value if FROM_PRETRAINED.value is not None else INIT_FROM.value
    in_workdir = WORKDIR.value and os.path.isfile(Path(WORKDIR.value) / "config.json")
    source = CONFIG.value
    if source is None and model is None and in_workdir:
        source = str(Path(WORKDIR.value) / "config.json")
    if source is not None:
        config = config_flags.load(source)
        file = Path(source if os.path.isfile(source) else source.split(":", 1)[0])
        name = file.parent.name if file.suffix == ".json" else file.stem
    elif model is not None:
        from diffusion import pretrained
        config, name = pretrained.load(model).config, f"{Path(model).name}-finetuned"
    else:
        raise ConfigError("--config is missing: name a file of configs/, such as --config=configs/digits.py, a run "
                          "that is there by --workdir, or a model by --from_pretrained=SOURCE or --init_from=SOURCE.")
    return config_flags.with_given(config, GIVEN), name, source or model


PATHS = ("config", "workdir", "out", "image", "mask", "from_pretrained", "init_from")
GIVEN: dict[str, str] = {}  # the values of --config.KEY


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parsing, with one message for anything that is wrong."""
    words = expanded(argv[1:])
    for word in words:
        check_text(word)
    source, given, rest = config_flags.split(words)
    GIVEN.update(given)
    try:
        rest = flags.FLAGS([argv[0], *([] if source is None else [f"--config={source}"]), *rest])
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(" ".join(" ".join(map(str, error.args)).split())) from error
    for name in PATHS:
        if (flags.FLAGS[name].value or "").startswith("~"):  # after "=" the shell leaves it
            flags.FLAGS[name].value = str(reading.expanded(flags.FLAGS[name].value))
    for name in flags.FLAGS:
        if flags.FLAGS[name].value == "" and flags.FLAGS[name].present:
            raise ConfigError(f"--{name} is empty: write --{name}=VALUE, with the equals sign.")
        if isinstance(value := flags.FLAGS[name].value, float) and not math.isfinite(value):
            raise ConfigError(f"--{name}={value} is not a finite number.")
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = -1  # warnings: at absl's default the libraries' own reports bury ours
    return rest


def check_text(word: str) -> None:
    """Raises ConfigError for what no flag needs, and what files and scripts would take for something else."""
    if unprintable(word):
        raise ConfigError(f"{shown(word)} has a line break or another control character in it. Leave it out.")
    try:
        word.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{ascii(word)} has characters that the locale of this shell does not know. Set "
                          "LC_ALL=C.UTF-8, or PYTHONUTF8=1.") from None


def expanded(words: list[str], within: tuple[str, ...] = ()) -> list[str]:
    """The words, with the lines of a file in place of --flagfile=FILE. Lines that begin with # are comments."""
    found, left = [], iter(words)
    for word in left:
        name, equals, file = word.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            found.append(word)
            continue
        file = file if equals else next(left, "")
        try:
            lines = [line.strip() for line in reading.expanded(file or ".").read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise ConfigError(f"--flagfile={file} cannot be read: {getattr(error, 'strerror', None) or error}."
                              ) from error
        if file in within or len(within) > 9:
            raise ConfigError(f"--flagfile={file} names itself: {' -> '.join([*within, file])}.")
        found += expanded([line for line in lines if line and not line.startswith("#")], (*within, file))
    return found


def run() -> None:
    """The command."""
    program.run(lambda: app.run(main, flags_parser=parse_flags))


if __name__ == "__main__":
    run()
