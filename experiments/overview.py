"""A live display of a sweep: finished jobs, progress of running jobs, time left, and the best row so far."""
import json
import os
import sys
import time
from pathlib import Path

from diffusion.io.progress import duration
from experiments.jobs import Runner
from experiments.results import best_row

_LAST_ROW = 64 * 2**10  # bytes at the end of a log, enough for its last row


def training_progress(run: Path, total: str) -> str:
    """The step in the last row of the run's log. Reads only this row, since the display asks every two seconds."""
    try:
        with open(run / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_ROW))
            row = json.loads(file.read().splitlines()[-1])
        return f"step {row['step']:,} of {total}, loss {row['loss']:.4g}"
    except (OSError, ValueError, LookupError, TypeError):  # being written, or damaged
        return "starting"


def lines(runner: Runner, began: float, at_start: int) -> list[str]:
    """The lines of the display. at_start: jobs done before the sweep was started."""
    jobs = runner.sweep.jobs
    done = sum(runner.is_done(job) for job in jobs)
    failed = [job for job in jobs if not runner.is_done(job) and runner.state(job).attempts > runner.retries]
    took = time.time() - began
    left = took / (done - at_start) * (len(jobs) - done) if done > at_start else None
    head = f"{done} of {len(jobs)} done" + (f", {len(failed)} failed" if failed else "") + (
        f", {len(runner.blocked)} blocked by it" if runner.blocked else "")
    head += f", {duration(took)} so far" + (f", about {duration(left)} left" if left is not None else "")
    found = [head]
    for job, since in list(runner.running.values()):
        length = next((f.split("=", 1)[1] for f in job.flags if f.startswith("--config.train.duration=")), "its end")
        how = training_progress(job.out, length) if job.mode == "train" else duration(time.time() - since)
        found.append(f"  {job.mode:<10} {job.what}: {how}")
    if best := best_row(runner.sweep):
        found.append(f"  best so far {best}")
    return found


class Screen:
    """Redraws in place on a terminal; elsewhere, prints only finished jobs."""

    def __init__(self, stream=sys.stderr):
        self.stream, self.live, self.height = stream, stream.isatty(), 0

    def draw(self, picture: list[str]) -> None:
        if self.live:
            self.clear()
            self.stream.write("\n".join(picture) + "\n")
            self.stream.flush()
            self.height = len(picture)

    def clear(self) -> None:
        if self.live and self.height:
            self.stream.write(f"\x1b[{self.height}F\x1b[J")
            self.height = 0

    def print_once(self, line: str) -> None:
        self.clear()
        print(line, file=self.stream, flush=True)
