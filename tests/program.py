"""Runs the real program on a tiny model of the digits, for tests of whole runs.

Each program is a separate process, forked from a server that has only imported the libraries, which saves the 2 to 3
CPU seconds of a start by `python -m`. test_start.py starts the programs as users do.
"""
import atexit
import concurrent.futures
import contextlib
import functools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO
from unittest import mock

import jax
import psutil

from diffusion import config as config_lib
from diffusion import config_flags
from diffusion.io.writers import TIMES

ROOT = pathlib.Path(__file__).parent.parent
TINY = ["--config.network.channels=8", "--config.network.multipliers=(1,)",
        "--config.network.attention_resolutions=()", "--config.network.groups=4", "--config.process.steps=20",
        "--config.sample.steps=5", "--config.sample.batch_size=8", "--config.sample.preview=8",
        "--config.train.batch_size=16", "--config.train.duration=30 steps", "--config.train.log_every=10 steps",
        "--config.train.sample_every=30 steps", "--config.train.checkpoint_every=10 steps",
        "--config.optimizer.warmup=5 steps"]
# Options with which XLA compiles four times as fast what then runs slower; what it computes differs by rounding alone.
# XLA ends a process that names an option which it does not know, so that only tried versions get the last two.
QUICK = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):
    QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def command(*flags: str, config: str = "digits") -> list[str]:
    return [sys.executable, "-m", "diffusion.main", f"--config=configs/{config}.py", *tiny(config), *flags]


@functools.cache
def tiny(config: str) -> tuple[str, ...]:
    """The flags of TINY whose keys the members of this config have."""
    keys = config_lib.keys(config_flags.load(str(ROOT / "configs" / f"{config}.py")))
    return tuple(flag for flag in TINY if flag.removeprefix("--config.").partition("=")[0] in keys)


def environment(devices: int = 1, optimize: bool = False) -> dict[str, str]:
    """The environment variables of a program. conftest.py sets the compilation cache, which saves the suite most of its
    time and changes no result. optimize: compile as for users, for a program that runs longer than it compiles.
    """
    flags = f"--xla_force_host_platform_device_count={devices} {'' if optimize else QUICK}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "XLA_FLAGS": flags, "JAX_NUMPY_RANK_PROMOTION": "raise"}  # as in conftest.py


# ---- Processes -------------------------------------------------------------------------------------------------------
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["preloaded"])


def server_cpu_seconds() -> float:
    """CPU seconds of the server and of the finished programs."""
    pid = multiprocessing.forkserver._forkserver._forkserver_pid
    return sum(psutil.Process(pid).cpu_times()[:4]) if pid else 0.0


def _become(arguments: list[str], environment: dict[str, str], out, err) -> None:
    """Turns the forked process into `python ARGUMENTS`."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for pipe, number in ((out, 1), (err, 2)):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [str(word) for word in arguments]
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves without


class Program:
    """A running program, with the methods of subprocess.Popen that the tests use."""

    def __init__(self, arguments: list, devices: int = 1, optimize: bool = False):
        assert arguments[0] == sys.executable
        pipes = [_server.Pipe(duplex=False) for _ in range(2)]
        self._process = _server.Process(target=_become, args=(
            [str(word) for word in arguments[1:]], environment(devices, optimize), *(write for _, write in pipes)))
        with mock.patch.dict(os.environ, environment()):  # of the server, which the first start starts
            self._process.start()
        self.args, self.pid = arguments, self._process.pid
        self.stdout, self.stderr = (open(os.dup(read.fileno()), errors="replace") for read, _ in pipes)
        for pipe in (end for pair in pipes for end in pair):
            pipe.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float = 900) -> tuple[str, str]:
        late = threading.Timer(timeout, self.kill)
        late.start()
        try:
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                out, err = pool.map(lambda pipe: pipe.read(), (self.stdout, self.stderr))
            self.wait(timeout)
            return out, err
        finally:
            late.cancel()
            self.stdout.close()
            self.stderr.close()

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        if self.returncode is None:
            self._process.kill()


def execute(arguments: list, devices: int = 1, check: bool = True,
            optimize: bool = False) -> subprocess.CompletedProcess:
    """Runs a program to its end; with `check` a failure of the program fails the test, with its output."""
    program = Program(arguments, devices, optimize)
    out, err = program.communicate()
    assert not check or program.returncode == 0, out + err
    return subprocess.CompletedProcess(arguments, program.returncode, out, err)


def run(*flags: str, config: str = "digits", **kwargs) -> subprocess.CompletedProcess:
    """Runs the program on the tiny model to its end (`execute`)."""
    return execute(command(*flags, config=config), **kwargs)


def start(*flags: str, devices: int = 1) -> Program:
    """Starts the program on the tiny model, and returns it running."""
    return Program(command(*flags), devices)


def start_processes(count: int, devices: int, *flags: str, of: Callable[[int], list[str]] = lambda i: []
                    ) -> list[Program]:
    """Starts `count` processes of one run, with the same number of devices each. of: flags only for process i."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return [start(*flags, f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={i}", *of(i),
                  devices=devices) for i in range(count)]


def until(text: str, stream: IO[str]) -> None:
    """Reads lines until one contains `text`."""
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            return
    raise AssertionError(f"it ended without saying {text!r}:\n{''.join(lines)}")


def finish(processes: list[Program], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Waits for all programs, and returns (exit code, stdout, stderr) of each; none keeps running."""
    try:
        return [(p.returncode, *out) for p, out in [(p, p.communicate(timeout=timeout)) for p in processes]]
    finally:
        for p in processes:
            p.kill()


def rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of metrics.jsonl without their timing values."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
