"""Trains under Slurm: one sbatch script, whose tasks are the processes of a run; it requeues itself when preempted.

  ./launch.sh slurm configs/cifar10.py --gpus_per_task=1 --tasks_per_node=8 --nodes=2 --time=1-00:00:00
  ./launch.sh slurm configs/digits.py --array=0-4 --dry_run       # five seeds, each with its own run folder
  ./launch.sh slurm configs/digits.py --sbatch="--partition=debug --mem=8G" --config.train.duration="600 steps"

Other options are passed to diffusion/main.py. The repository and --workdir must be on a disk that all nodes share.
"""
import argparse
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

from experiments.launchers import ROOT, LaunchError, main, number, run, training, whole

_INSTALL = "Run this on a login node of a cluster with Slurm."


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="./launch.sh slurm", description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("config", nargs="?", default="configs/digits.py", help="the config file (%(default)s)")
    p.add_argument("--nodes", type=whole, default=1, help="(%(default)s)")
    p.add_argument("--tasks_per_node", type=whole, default=1,
                   help="processes per node: one per GPU (%(default)s)")
    p.add_argument("--gpus_per_task", type=number, default=0, help="(%(default)s)")
    p.add_argument("--cpus_per_task", type=number, default=0, help="0: Slurm's default")
    p.add_argument("--time", default="1-00:00:00", help="time limit of a job, after which it is requeued (%(default)s)")
    p.add_argument("--array", default="", help="seeds, such as 0-4 or 1,5,7: one job each, in WORKDIR_seedN")
    p.add_argument("--workdir", default="", help="the run folder (runs/NAME of the config)")
    p.add_argument("--sbatch", default="", help="more options of sbatch, in one string")
    p.add_argument("--dry_run", action="store_true", help="only print the script and the command")
    return p


def script(args: argparse.Namespace, flags: list[str], python: str) -> str:
    """The batch script. Slurm gives each task its number, which diffusion/parallel/hosts.py reads."""
    name = Path(args.config).stem
    workdir = args.workdir or f"runs/{name}"
    options = [f"--job-name={name}", f"--nodes={args.nodes}", f"--ntasks-per-node={args.tasks_per_node}",
               f"--time={args.time}", "--requeue", "--open-mode=append",
               f"--output={workdir.replace('%', '%%')}{'_seed%a' if args.array else ''}.slurm.log",
               "--signal=TERM@120"]  # to the tasks, 120 s before the time limit
    options += [f"--gpus-per-task={args.gpus_per_task}"] if args.gpus_per_task else []
    options += [f"--cpus-per-task={args.cpus_per_task}"] if args.cpus_per_task else []
    options += [f"--array={args.array}"] if args.array else []
    try:
        options += shlex.split(args.sbatch)
    except ValueError as error:
        raise LaunchError(f"--sbatch={args.sbatch} cannot be read: {error}. Options of sbatch are written as in a "
                          "shell, such as --sbatch=\"--partition=gpu --account='my project'\".") from error
    command = training(args.config, flags, python)
    if args.array:  # the shell fills in the element's number
        command += f' --config.seed="$SLURM_ARRAY_TASK_ID" --workdir={shlex.quote(workdir)}_seed"$SLURM_ARRAY_TASK_ID"'
    else:
        command += f" --workdir={shlex.quote(workdir)}"
    lines = "".join(f"#SBATCH {quoted(option)}\n" for option in options)
    return f"""#!/bin/bash
{lines}
cd {shlex.quote(str(ROOT))} || exit 1
srun --kill-on-bad-exit=1 {command}
code=$?
# 75: a signal stopped it after saving: requeue it.
if [ "$code" = 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


def quoted(option: str) -> str:
    """The option as Slurm reads it in a script: only the value may be quoted. Raises LaunchError if it cannot be."""
    key, equals, value = option.partition("=")
    if strange := set(option) & set('"\\'):
        raise LaunchError(f"Slurm cannot read {' or '.join(sorted(strange))} in an option of a script: {option}. Leave "
                          "it out.")
    return f'{key}="{value}"' if set(value) & set(" ;'#") else f"{key}{equals}{value}"


def launch(argv: list[str]) -> None:
    args, flags = parser().parse_known_args(argv)
    if args.array and not re.fullmatch(r"[0-9]{1,9}([-,:%][0-9]{1,9})*", args.array):
        raise LaunchError(f"--array={args.array} must be seeds, such as 0-4 or 1,5,7.")
    python = os.environ.get("DIFFUSION_PYTHON") or sys.executable  # set by launch.sh, even before it exists
    text = script(args, flags, python)
    log = ROOT / (args.workdir or f"runs/{Path(args.config).stem}")
    if args.dry_run:
        print(text)
        run([["sbatch", "FILE"]], True, _INSTALL)
        return
    log.parent.mkdir(parents=True, exist_ok=True)  # without the folder of its log, Slurm drops the job
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch") as file:
        file.write(text)
        file.flush()
        run([["sbatch", file.name]], False, _INSTALL)


if __name__ == "__main__":
    main(launch)
