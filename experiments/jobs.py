"""Runs the jobs of a sweep on this machine, several at a time, each training before the jobs that need it."""
import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from experiments.ledger import Ledger, State
from experiments.sweep import Job, Sweep
from experiments.table import ROOT

SAVED = (75, 130)   # exit codes of a training that stopped after saving
_TAIL = 4_000       # bytes at the end of a log to search for the error


class Stopped(Exception):
    """The sweep received a request to stop."""


class Runner:
    """Runs one sweep with `workers` programs at a time, each of which trains up to `pack` models together. `states` and
    `running` are for display."""

    def __init__(self, sweep: Sweep, *, workers: int = 1, retries: int = 1, pack: int = 1,
                 python: str = sys.executable):
        self.sweep, self.workers, self.retries, self.pack, self.python = sweep, workers, retries, pack, python
        self.settings = {"workers": workers, "retries": retries, "pack": pack, "python": python}
        self.ledger = Ledger(sweep.folder / "ledger.jsonl")
        self.states = self.ledger.states()
        self.running: dict[str, tuple[Job, float]] = {}
        self.blocked: set[str] = set()          # jobs with a failed training
        self._cores: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
        for share in shares(workers):
            self._cores.put(share)
        self._children: set[subprocess.Popen] = set()
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def state(self, job: Job) -> State:
        return self.states.get(job.key, State())

    def is_done(self, job: Job) -> bool:
        return self.state(job).done and job.output_exists()

    def run(self, report: Callable[[str], None] = lambda line: None) -> bool:
        """Runs all jobs that are not done, and returns whether everything is done. report: called at each job's end."""
        waiting = {job.key: job for job in self.sweep.jobs if not self.is_done(job)}
        trainings = [job for job in waiting.values() if job.mode == "train"]
        awaited = {job.id for job in trainings}
        ready = [trainings[i:i + self.pack] for i in range(0, len(trainings), self.pack)]
        ready += [[job] for job in waiting.values() if job.mode != "train" and job.after not in awaited]
        with ThreadPoolExecutor(self.workers) as pool:
            futures: dict[Future, list[Job]] = {pool.submit(self.complete, jobs): jobs for jobs in ready}
            try:
                while futures:
                    finished, _ = wait(futures, return_when=FIRST_COMPLETED, timeout=1.0)
                    for job, done in ((job, done) for future in finished
                                      for job, done in zip(futures.pop(future), future.result())):
                        report(f"{job.mode} of {job.what}: " + ("done" if done else "stopped" if self._stop.is_set()
                                                                else f"FAILED: {self.state(job).error}"))
                        if job.mode != "train":
                            continue
                        for next_job in (j for j in waiting.values() if j.after == job.id):
                            if done:
                                futures[pool.submit(self.complete, [next_job])] = [next_job]
                            else:
                                self.blocked.add(next_job.key)
            except BaseException:
                self.stop()
                raise
        if self._stop.is_set():
            raise Stopped
        return all(self.is_done(job) for job in self.sweep.jobs)

    def stop(self) -> None:
        """Asks the programs to save and exit."""
        self._stop.set()
        with self._lock:
            for child in self._children:
                child.terminate()

    def join(self) -> None:
        """Waits for the programs after `stop`."""
        for child in list(self._children):
            child.wait()

    def complete(self, jobs: list[Job]) -> list[bool]:
        """Runs the jobs, several trainings together, until each is done or has failed too often. Returns which are
        done."""
        for job in jobs:
            self.wait_for_another(job)
        if len(jobs) > 1 and not self._stop.is_set():
            self.once(jobs)
        return [self.is_done(job) or self.complete_alone(job) for job in jobs]

    def complete_alone(self, job: Job) -> bool:
        tries = 0
        while not self._stop.is_set() and tries <= self.retries:
            code = self.once([job])
            if code == 0 and job.output_exists():
                return True
            tries += code not in SAVED
        return False

    def once(self, jobs: list[Job]) -> int:
        """Runs one program for one job or several trainings; returns its exit code."""
        words = [word for job in jobs for word in ("--", *job.flags)][1:]
        log = self.log(jobs[0])
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        with open(log, "ab") as out, self.cores() as cores:
            with self._lock:
                if self._stop.is_set():
                    return SAVED[0]
                with bound_to(cores):
                    child = subprocess.Popen([self.python, "-m", "diffusion.main" if len(jobs) == 1 else
                                              "experiments.pack", *words], cwd=ROOT, stdout=out,
                                             stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
                self._children.add(child)
            for job in jobs:
                self.ledger.add(job.key, "started", pid=child.pid, what=job.what)
                self.running[job.key] = (job, time.time())
            code = child.wait()
        seconds = round((time.perf_counter() - began) / len(jobs), 1)
        with self._lock:
            self._children.discard(child)
        for job in jobs:
            self.running.pop(job.key, None)
            if code == 0 and job.output_exists():
                self.ledger.add(job.key, "done", seconds=seconds, commit=commit())
            elif code in SAVED or self._stop.is_set() or len(jobs) > 1:  # of several, each continues separately
                self.ledger.add(job.key, "stopped", seconds=seconds)
            else:
                self.ledger.add(job.key, "failed", seconds=seconds, error=last_error(log, code))
        self.states = self.ledger.states()
        return code

    @contextlib.contextmanager
    def cores(self):
        """Lends the cores of an idle worker."""
        share = self._cores.get()
        try:
            yield share
        finally:
            self._cores.put(share)

    def log(self, job: Job) -> Path:
        return self.sweep.folder / "logs" / f"{job.id}_{job.mode}.log"

    def wait_for_another(self, job: Job) -> None:
        """Waits for this job's program if a killed sweep left it running: two programs would share a folder."""
        pid = self.state(job).pid
        while pid is not None and not self._stop.is_set() and runs(pid, job):
            time.sleep(0.5)


def shares(workers: int) -> list[set[int]]:
    """The cores of each worker: equal parts, so that programs do not wait for each other's threads, and their sums
    have the same rounding with any others running. Empty sets mean all cores, if there is nothing to divide."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    each = len(cores) // workers if workers > 1 else 0
    return [set(cores[i * each:(i + 1) * each]) for i in range(workers)]


@contextlib.contextmanager
def bound_to(cores: set[int]) -> Iterator[None]:
    """Binds this thread, and the programs that it starts, to the cores; an empty set to all that there are."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)  # 0: of this thread alone
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def runs(pid: int, job: Job) -> bool:
    """Whether the process is a program for this job."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return all(flag.encode() in words for flag in job.flags if flag.startswith(("--workdir=", "--out=", "--mode=")))


def last_error(log: Path, code: int) -> str:
    """The program's error message, or the last line of its output."""
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "nothing")
    return f"exit code {code}: {said.removeprefix('error: ')}"


def commit() -> str:
    """The code's commit, with "+" if it was changed since; "" outside a repository."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    head = git("rev-parse", "--short=10", "HEAD")
    return head + "+" if head and git("status", "--porcelain", "--untracked-files=no") else head
