"""Runs a table of a paper, or your own sweep.

  python -m experiments.run                                      # lists the tables
  python -m experiments.run ddim_table1 --scale=mini --seeds=3
  python -m experiments.run ddim_table1 --rows="eta 0, 10 steps;eta 1, 10 steps" --launcher=print
  python -m experiments.run mysweep.py                           # a file with TABLE = Table(...)
  python -m experiments.run --config=configs/digits.py --sweep.optimizer.learning_rate=1e-3,3e-3 \\
      --sweep.process.name=linear,cosine --config.train.duration="600 steps"

The same command resumes a stopped sweep, skips finished jobs, and retries failed ones. Ctrl-C saves and exits. Results
go to sweeps/TABLE-SCALE; python -m experiments.report TABLE --scale=SCALE makes a report of them.
"""
import argparse
import fcntl
import shlex
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from diffusion import program
from diffusion.errors import ConfigError
from diffusion.io.reading import expanded
from experiments import overview
from experiments.jobs import Runner, Stopped
from experiments.sweep import Sweep, expand, read_history, write_down
from experiments.table import find, names
from experiments.user_sweep import USER_FLAGS, table_of_flags

_DRAW_SECONDS = 2.0
MOST = 1_000  # seeds, jobs at a time, ...


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """The argument parser with the arguments that run and report share."""
    p = argparse.ArgumentParser(prog=f"python -m experiments.{program}", description=description, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("table", nargs="?", help="its name, or a file")
    p.add_argument("--scale", default="mini", help="paper, small or mini (%(default)s)")
    p.add_argument("--seeds", type=int, help="the number of seeds, from 0 (default: the sweep's last number, else 1)")
    p.add_argument("--rows", default="", help="run only these rows, separated by semicolons")
    p.add_argument("--folder", type=expanded, help="default: sweeps/TABLE-SCALE")
    return p


def listed() -> str:
    width = max(map(len, names()))
    return "\n".join(f"{name:<{width}} {(table := find(name)).title} ({', '.join(table.scales)})" for name in names())


def parse(p: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and the flags of the user's own sweep."""
    own = [word for word in argv if word.startswith(USER_FLAGS)]  # argparse would read a flag with a space as a table
    return p.parse_args([word for word in argv if word not in own]), own


def sweep_of(args: argparse.Namespace, flags: list[str]) -> Sweep:
    """The sweep of the command line; for only --folder, the existing sweep. Raises ConfigError for wrong arguments."""
    if args.seeds is not None and not 1 <= args.seeds <= MOST:
        raise ConfigError(f"--seeds={args.seeds} must be 1 or more, and {MOST:,} at most.")
    if args.table and flags:
        raise ConfigError(f"Either the table {args.table!r} or --config and --sweep.KEY=VALUES, not both.")
    named_by, scale = [args.table] if args.table else flags, args.scale
    if not named_by:
        last = read_history(args.folder / "sweep.json")[-1]
        named_by, scale = last["named_by"], last["scale"]
        if not named_by:
            raise ConfigError(f"{args.folder}/sweep.json does not name the sweep's table: name it here.")
    table = table_of_flags(named_by) if named_by[0].startswith("--") else find(named_by[0])
    if scale not in table.scales and len(table.scales) == 1 and "paper" not in table.scales:  # must be requested
        (scale,) = table.scales
    folder = args.folder or Path("sweeps") / f"{table.name}-{scale}"
    only = [name.strip() for name in args.rows.split(";") if name]
    file = folder / "sweep.json"
    seeds = args.seeds or (read_history(file)[-1].get("seeds", 1) if file.exists() else 1)
    return replace(expand(table, scale, seeds, folder.resolve(), only=only), named_by=tuple(named_by))


def lock(sweep: Sweep):
    """An open file that no other sweep can lock. Raises ConfigError if it is locked."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    file = open(sweep.folder / ".lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"Another program runs the sweep in {sweep.folder}. Wait for it or stop it.") from None
    return file


def local(runner: Runner) -> bool:
    """Runs the sweep with the live display; returns whether all is done. Raises Stopped."""
    screen, began, over = overview.Screen(), time.time(), threading.Event()
    at_start = sum(runner.is_done(job) for job in runner.sweep.jobs)
    screen.print_once(f"{len(runner.sweep.jobs)} jobs, {at_start} done before; logs in {runner.sweep.folder / 'logs'}")

    def stop(*_):
        screen.print_once("stopping: running trainings save first")
        runner.stop()

    def watch():
        while not over.wait(_DRAW_SECONDS):
            screen.draw(overview.lines(runner, began, at_start))

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    threading.Thread(target=watch, daemon=True).start()
    try:
        return runner.run(report=screen.print_once)
    finally:
        over.set()
        screen.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: list[str]) -> int:
    p = parser("run", __doc__)
    p.add_argument("--launcher", choices=("local", "slurm", "print"), default="local",
                   help="the place to run (%(default)s); print: only print the commands")
    p.add_argument("--jobs", type=int, default=1, help="programs, or Slurm jobs, at a time (%(default)s)")
    p.add_argument("--pack", type=int, default=1, help="local: trainings in one program, their steps compiled "
                   "together; the results are the same (1)")
    p.add_argument("--slurm", default="", help="slurm: options of sbatch, such as 'partition=gpu gpus=1 time=60'")
    p.add_argument("--retries", type=int, default=1, help="retries of a failed job (%(default)s)")
    args, flags = parse(p, argv)
    if not args.table and not flags and not args.folder:
        print(f"Tables:\n{listed()}\n\npython -m experiments.run TABLE --scale=mini; see --help.")
        return 0
    if not 1 <= args.pack <= MOST or not 1 <= args.jobs <= MOST:
        raise ConfigError(f"--pack={args.pack} and --jobs={args.jobs} must be 1 or more, and {MOST:,} at most.")
    if not 0 <= args.retries <= MOST:
        raise ConfigError(f"--retries={args.retries} must be 0 or more, and {MOST:,} at most.")
    if args.pack > 1 and args.launcher != "local":
        raise ConfigError("--pack is for --launcher=local: other launchers run each training separately.")
    sweep = sweep_of(args, flags)
    if args.launcher == "print":
        for job in sweep.jobs:
            print(shlex.join(["python", "-m", "diffusion.main", *job.flags]))
        return 0
    held = lock(sweep)
    for change in write_down(sweep):
        print(f"note: changed since the sweep was started; earlier results are kept. {change}", file=sys.stderr)
    if args.launcher == "slurm":
        from experiments.slurm_array import submit
        submit(Runner(sweep, retries=args.retries), args.slurm, jobs=args.jobs)
        return 0
    runner = Runner(sweep, workers=args.jobs, retries=args.retries, pack=args.pack)
    try:
        done = local(runner)
    except Stopped:
        print("stopped; the same command resumes it", file=sys.stderr)
        return 75
    finally:
        held.close()
    for job in sweep.jobs:
        if not runner.is_done(job) and job.key not in runner.blocked:
            print(f"failed: {job.mode} of {job.what}: {runner.state(job).error}; its log is {runner.log(job)}",
                  file=sys.stderr)
    print(f"next: python -m experiments.report --folder={sweep.folder}")
    return 0 if done else 1


def command(main) -> None:
    """Runs a main with the command line; an error that a user can correct gives one message and exit code 1."""
    program.begin()
    program.interruptible()
    program.run(lambda: main(sys.argv[1:]))


if __name__ == "__main__":
    command(main)
