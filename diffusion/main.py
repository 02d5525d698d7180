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

Any key of the config can be set by --config.KEY=VALUE; all keys and their meaning are in diffusion/config.py. Running a
command again resumes it. A second run folder for the same config needs its own --workdir.
"""
import os
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()

from absl import app, flags  # noqa: E402  (the clock starts before the imports)
from ml_collections import config_flags  # noqa: E402

from diffusion import config as config_lib  # noqa: E402
from diffusion.errors import ConfigError, DiffusionError, Interrupted  # noqa: E402

CONFIG = config_flags.DEFINE_config_file("config", None, "The config file, such as configs/cifar10.py.",
                                         lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The run folder. Default: runs/NAME of the config file.")
MODES = ["train", "sample", "evaluate", "likelihood", "compare", "verify_resume", "plan"]
MODE = flags.DEFINE_enum("mode", "train", MODES,
                         "What to do: train, draw samples, evaluate them against config.data by config.evaluate (FID "
                         "and the like), estimate bits/dim on config.data, compare samplers, try whether a resumed "
                         "training is the same, bit for bit, or plan for a --topology.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "sample, compare: how many images.", lower_bound=1)
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", None, "likelihood: how many images of the data. Default: all.",
                                    lower_bound=1)
SOLVERS = flags.DEFINE_list("solvers", ["ddim", "heun", "dpm_solver++m", "unipc"], "compare: names of "
                            "config.sample.solver.")
STEPS = flags.DEFINE_list("steps", ["5", "10", "20", "50"], "compare: numbers of steps.")
SCALES = flags.DEFINE_list("scales", None, "compare: scales of guidance. Default: that of config.sample.guidance.")
TASK = flags.DEFINE_enum("task", None, ["inpaint", "colorise", "upscale", "vary", "reconstruct", "interpolate"],
                         "sample: what to make of given images. inpaint, colorise, upscale: what is missing; vary: "
                         "SDEdit; reconstruct, interpolate: by DDIM inversion.")
IMAGE = flags.DEFINE_string("image", None, "task: a picture, a folder of them or an npz. Default: of config.data.")
MASK = flags.DEFINE_string("mask", None, "inpaint: a picture, white where it is drawn anew. Default: the middle.")
LABEL = flags.DEFINE_integer("label", None, "task: the class of the pictures in --image.")
FACTOR = flags.DEFINE_integer("factor", 4, "upscale: how much wider the result is.")
JUMP = flags.DEFINE_integer("jump", 10, "inpaint, colorise, upscale: RePaint's steps back up ...")
REPEATS = flags.DEFINE_integer("repeats", 1, "... and how often each place is passed; 1: no returns.")
STRENGTH = flags.DEFINE_float("strength", 0.5, "vary: the share of the steps that are taken.")
ITERATIONS = flags.DEFINE_integer("iterations", 3, "reconstruct, interpolate: of the inversion of each step.")
SEED = flags.DEFINE_integer("seed", 0, "sample: image i is a function of this and i.", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "sample, compare: the folder to write; likelihood, plan: the file. Default: in "
                          "the run folder (plan: none), or samples/ for a pretrained model.")
FROM_PRETRAINED = flags.DEFINE_string(
    "from_pretrained", None, "All but train: a model to draw from instead of the run in --workdir: a folder in "
    "diffusers' layout, a name on the Hugging Face hub, or a run folder. Its own config is used if --config is not "
    "given.")
INIT_FROM = flags.DEFINE_string("init_from", None, "train: a model, as in --from_pretrained, whose weights a new run "
                                "starts from. Its own config is used if --config is not given.")
CHECKPOINT = flags.DEFINE_integer("checkpoint", None, "All but train: the step of the checkpoint. Default: the newest.")
ALL_CHECKPOINTS = flags.DEFINE_bool("all_checkpoints", False, "evaluate: every checkpoint of the run.")
NUM_SEEDS = flags.DEFINE_integer("num_seeds", 1, "evaluate: with so many seeds, from --seed on; the record "
                                   "has all, their mean and the best.", lower_bound=1)
VERIFY_STEPS = flags.DEFINE_integer("verify_steps", 20, "verify_resume: how many steps before the checkpoint, and "
                                    "after it.", lower_bound=1)
TOPOLOGY = flags.DEFINE_string("topology", "local", "plan: the devices to compile for, such as v5e:4x4 or v5p:2x2x4; "
                               "local: those at hand.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "Several processes: HOST:PORT of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several processes: how many.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Several processes: which this one is, from 0.", lower_bound=0)
CONNECT_SECONDS = flags.DEFINE_float("connect_seconds", 120.0, "Several processes: how long they wait for each other.",
                                     lower_bound=1.0)
HEARTBEAT_SECONDS = flags.DEFINE_float("heartbeat_seconds", 100.0, "Several processes: how long one may be silent "
                                       "before the others give up.", lower_bound=10.0)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ConfigError(f"Not a flag: {argv[1]!r}. Flags are written --name=value; see --help.")
    train, source = MODE.value == "train", FROM_PRETRAINED.value
    if source is not None and train:
        raise ConfigError("--from_pretrained is not for --mode=train; --init_from starts a training from such a model.")
    if INIT_FROM.value is not None and not train:
        raise ConfigError("--init_from is for --mode=train; --from_pretrained samples from such a model.")
    file, *of = flags.FLAGS["config"].config_filename.split(":", 1)
    name = f"{Path(of[0]).name}-finetuned" if INIT_FROM.value and of else Path(file).stem
    if WORKDIR.value and "://" in WORKDIR.value:
        raise ConfigError(f"--workdir={WORKDIR.value} is a bucket. A run folder is on a file system: mount the bucket, "
                          "by gcsfuse or s3fs with your credentials, and give the folder where it is mounted.")
    workdir = Path(WORKDIR.value or Path("runs") / name)
    if MODE.value == "plan" and TOPOLOGY.value != "local":
        # libtpu is to compile, and not to look for a TPU, or for a server that tells of one.
        for name, value in {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
                            "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_STDERR_LOG_LEVEL": "3",
                            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
            os.environ.setdefault(name, value)
    from diffusion import hosts, modes, runtime  # after the flags: --help and wrong flags answer at once, without JAX
    hosts.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, seconds=CONNECT_SECONDS.value,
               heartbeat=HEARTBEAT_SECONDS.value)
    hosts.check_same(CONFIG.value.to_dict(), MODE.value, str(workdir))
    here = workdir if source is None else Path("samples") / Path(source).name
    runtime.keep_compilations(here.parent)
    runtime.keep_memory()
    if MODE.value == "likelihood":
        name = f"likelihood_{CONFIG.value.likelihood.estimator}_{CONFIG.value.data.split}.json"
        modes.likelihood(CONFIG.value, workdir, source, num_examples=NUM_EXAMPLES.value, seed=SEED.value,
                         out=Path(OUT.value or here / name), step=CHECKPOINT.value)
    elif MODE.value == "compare":
        from diffusion.compare import compare
        scales = None if SCALES.value is None else numbers("scales", SCALES.value, float)
        compare(CONFIG.value, workdir, source, solvers=SOLVERS.value, steps=numbers("steps", STEPS.value, int),
                scales=scales, num_samples=NUM_SAMPLES.value, seed=SEED.value,
                out=Path(OUT.value or here / "compare"), checkpoint=CHECKPOINT.value)
    elif TASK.value is not None and not train:
        from diffusion.edit import Settings, edit
        path = lambda flag: Path(flag.value) if flag.value else None  # noqa: E731
        settings = Settings(task=TASK.value, image=path(IMAGE), mask=path(MASK), label=LABEL.value, factor=FACTOR.value,
                            jump=JUMP.value, repeats=REPEATS.value, strength=STRENGTH.value,
                            iterations=ITERATIONS.value)
        edit(CONFIG.value, workdir, source, settings, num_samples=NUM_SAMPLES.value, seed=SEED.value,
             out=Path(OUT.value or here / f"{TASK.value}_{SEED.value}"), checkpoint=CHECKPOINT.value)
    elif MODE.value == "plan":
        from diffusion.plan import plan
        plan(CONFIG.value, TOPOLOGY.value, Path(OUT.value) if OUT.value else None)
    elif MODE.value == "evaluate":
        from diffusion.evaluate import evaluate
        evaluate(CONFIG.value, workdir, source, seed=SEED.value, seeds=NUM_SEEDS.value, step=CHECKPOINT.value,
                 all_checkpoints=ALL_CHECKPOINTS.value, out=Path(OUT.value or here / "evaluations"))
    elif MODE.value == "verify_resume":
        from diffusion.verify import verify_resume
        verify_resume(CONFIG.value, workdir, VERIFY_STEPS.value)
    elif train:
        modes.train(CONFIG.value, workdir, STARTED, INIT_FROM.value)
    else:
        out = workdir / f"samples_{SEED.value}" if source is None else f"samples/{Path(source).name}_{SEED.value}"
        modes.sample(CONFIG.value, workdir, source, num_samples=NUM_SAMPLES.value,
                     seed=SEED.value, out=Path(OUT.value or out), step=CHECKPOINT.value)


def numbers(flag: str, values: list[str], kind: type) -> list:
    try:
        return [kind(value) for value in values]
    except ValueError as error:
        raise ConfigError(f"--{flag} must be numbers between commas, such as 1,2,5; got {','.join(values)}.") from error


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parsing, with one message for anything that is wrong."""
    config_lib.check_flags(argv[1:])
    given = [arg.lstrip("-").split("=", 1) for arg in argv[1:] if arg.startswith("-")]
    sources = [value for name, *value in given if name in ("from_pretrained", "init_from")]
    if sources and "config" not in [name for name, *_ in given]:
        if not sources[0]:
            raise ConfigError("Write --from_pretrained=SOURCE or --init_from=SOURCE, with the equals sign.")
        # First, since the flags --config.KEY are known only after it.
        argv = [argv[0], f"--config={Path(__file__).with_name('pretrained.py')}:{sources[0][0]}", *argv[1:]]
    try:  # reading the config file runs it, and any error in it comes out here
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ConfigError(config_lib.explain(error)) from error
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = -1  # warnings: at absl's default the libraries' own reports bury ours
    if flags.FLAGS["config"].value is None:
        raise ConfigError("--config is missing: name a file of configs/, such as --config=configs/digits.py, or "
                          "a model by --from_pretrained=SOURCE or --init_from=SOURCE.")
    config_lib.check_loaded(CONFIG.value, flags.FLAGS["config"].config_filename)
    flags.FLAGS["config"].value = config_lib.own(CONFIG.value)
    return rest


def run() -> None:
    """The command: exits with 1 and one message on an error that a user can mend."""
    try:
        app.run(main, flags_parser=parse_flags)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr, flush=True)
        sys.exit(stopped.exit_code)
    except DiffusionError as error:
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
    except KeyboardInterrupt:
        print("\ninterrupted: the last checkpoint is kept; the same command goes on from it", file=sys.stderr,
              flush=True)
        os._exit(130)  # as shells count SIGINT; an ordinary exit may crash in a compilation that is still running


if __name__ == "__main__":
    run()
