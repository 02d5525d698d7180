"""Tests that a sweep of real trainings, killed at random moments, ends with the same table as an undisturbed sweep.

    python -m benchmarks.killed_sweep --kills=5 --out=killed_sweep.json

Two rows of two seeds on the digits are trained and evaluated by `experiments.run --jobs=2`. The kills alternate
between only the sweep's own program, whose child programs live on, and all programs, as when a machine fails. The same
command then resumes. Moments are drawn from --seed. At the end each value of the table and each row of each log must
be equal, bit for bit.
"""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from diffusion.io.files import atomic_write
from experiments import diff, report
from experiments.gather import Report, gather
from experiments.run import parse, parser, sweep_of
from experiments.sweep import Sweep
from experiments.table import ROOT

FLAGS = ["--config=configs/digits.py", "--sweep.process.name=linear,cosine", "--metrics=fd",
         "--config.train.duration=150 steps", "--config.optimizer.warmup=20 steps", "--config.train.log_every=10 steps",
         "--config.train.checkpoint_every=10 steps", "--config.train.sample_every=150 steps",
         "--config.sample.steps=5", "--config.evaluate.images=40", "--config.evaluate.reference_images=50",
         "--config.evaluate.metrics=('fd',)"]
RUN = ["--seeds=2"]


def start(folder: Path) -> subprocess.Popen:
    with open(folder.with_suffix(".log"), "a") as log:
        return subprocess.Popen([sys.executable, "-m", "experiments.run", *FLAGS, *RUN, "--jobs=2",
                                 f"--folder={folder}"], cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def programs(folder: Path) -> list[int]:
    """The processes of the sweep in the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word.startswith(f"--workdir={folder}/") for word in words):
            found.append(int(entry.parent.name))
    return found


def kill(process: subprocess.Popen, folder: Path, everything: bool) -> int:
    """Kills the sweep; returns the number of killed programs."""
    targets = [process.pid, *(programs(folder) if everything else [])]
    for pid in targets:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()
    return len(targets)


def found_in(folder: Path) -> tuple[Sweep, Report]:
    args, flags = parse(parser("killed_sweep", ""), [*FLAGS, *RUN, f"--folder={folder}"])
    sweep = sweep_of(args, flags)
    return sweep, gather(sweep)


def differences(quiet: Path, killed: Path) -> list[str]:
    """One line per value or log that differs or is missing."""
    (one, a), (other, b) = found_in(quiet), found_in(killed)
    lines = []
    for row, same in zip(a.rows, b.rows):
        ours = [[values.values for values in r.ours.values()] for r in (row, same)]
        if ours[0] != ours[1] or not all(ours[0]):
            lines.append(f"{row.name}: {ours[0]} | {ours[1]}")
    costs = len(report.head(a)) - 2  # hours and FLOP differ, from more attempts
    if [row[:costs] for row in report.body(a)] != [row[:costs] for row in report.body(b)]:
        lines.append("the tables differ")
    for member in one.members:
        curves = diff.curves(one.folder / "runs" / member.training, other.folder / "runs" / member.training)
        if not curves.rows or curves.first is not None or any(curves.only):
            lines.append(f"{member.row.name}, seed {member.seed}: {diff.in_words(curves)}")
    return lines


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=5, help="(%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="seed of the moments (%(default)s)")
    p.add_argument("--folder", type=Path, help="a folder to keep; default: a temporary one")
    p.add_argument("--out", type=Path, help="the results as JSON")
    args = p.parse_args()
    top = (args.folder or Path(tempfile.mkdtemp(prefix="killed_sweep_"))).resolve()
    top.mkdir(parents=True, exist_ok=True)
    quiet, killed, draw = top / "quiet", top / "killed", random.Random(args.seed)
    began = time.monotonic()
    if code := start(quiet).wait():
        sys.exit(f"the undisturbed sweep ended with {code}: see {quiet}.log")
    seconds, cases = time.monotonic() - began, []
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    for i in range(args.kills):
        process = start(killed)
        after = draw.uniform(0.1, 1.0) * 1.5 * seconds / (args.kills + 1)
        try:
            process.wait(after)
            print("the sweep has ended before the kill", flush=True)
            break
        except subprocess.TimeoutExpired:
            number = kill(process, killed, everything=bool(i % 2))
        cases.append({"after_seconds": round(after, 1), "programs": number})
        print(f"killed after {after:.0f} s: {number} program{'s' * (number > 1)}", flush=True)
    code = start(killed).wait()
    lines = differences(quiet, killed)
    print("\n".join(lines) or f"equal in all values and logs after {len(cases)} kills", flush=True)
    if args.out:
        atomic_write(args.out, json.dumps({"undisturbed_seconds": round(seconds, 1), "kills": cases, "exit_code": code,
                                           "differences": lines}, indent=1) + "\n")
    return int(bool(lines) or code != 0 or len(cases) < args.kills)


if __name__ == "__main__":
    sys.exit(main())
