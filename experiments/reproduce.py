"""Repeats a training from its run folder, and reports whether the result is the same.

  python -m experiments.reproduce runs/digits
  python -m experiments.reproduce runs/digits --steps=200 --workdir=runs/digits_again

Runs the same config in a new folder; stops with a message if the code is of another commit, unless --any_code. Exits
with 0 if all log rows of the same steps are equal, bit for bit.
"""
import argparse
import subprocess
import sys

from diffusion.errors import ConfigError
from diffusion.io.reading import expanded
from experiments.diff import check_run, code, curves, environment, in_words
from experiments.jobs import commit
from experiments.run import command
from experiments.table import ROOT


def main(argv: list[str]) -> int:
    p = argparse.ArgumentParser(prog="python -m experiments.reproduce", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=expanded)
    p.add_argument("--steps", type=int, help="train only this many steps (all)")
    p.add_argument("--workdir", type=expanded, help="default: RUN-again")
    p.add_argument("--any_code", action="store_true", help="run even if the code differs from the run's")
    args = p.parse_args(argv)
    run = check_run(args.run).resolve()
    ran, here = code(environment(run)), commit()
    if not here or not ran.startswith(here.removesuffix("+")) or here.endswith("+") or ran.endswith("changes"):
        note = f"The run is of commit {ran}, the code here is {here or 'of no repository'} (+: with changes)."
        if not args.any_code:
            raise ConfigError(f"{note} Check out that commit, and apply {run}/code.diff if there is one; or give "
                              "--any_code.")
        print(f"note: {note}", file=sys.stderr)
    again = (args.workdir or run.with_name(f"{run.name}-again")).resolve()
    flags = [f"--config={run}/config.json", f"--workdir={again}"]
    if args.steps is not None:
        flags += [f"--config.train.duration={args.steps} steps"]
    if failed := subprocess.run([sys.executable, "-m", "diffusion.main", *flags], cwd=ROOT).returncode:
        return failed
    found = curves(run, again)
    print(f"{run} and {again}: {in_words(found)}")
    return int(found.first is not None or not found.rows)


if __name__ == "__main__":
    command(main)
