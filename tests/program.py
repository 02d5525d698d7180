"""Runs the real program on a tiny model of the digits, for the tests of whole runs."""
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO

ROOT = pathlib.Path(__file__).parent.parent
TINY = ["--config.network.channels=8", "--config.network.multipliers=(1,)",
        "--config.network.attention_resolutions=()", "--config.network.groups=4", "--config.process.steps=20",
        "--config.sample.steps=5", "--config.sample.batch_size=8", "--config.sample.preview=8",
        "--config.train.batch_size=16", "--config.train.duration=30 steps", "--config.train.log_every=10 steps",
        "--config.train.sample_every=30 steps", "--config.train.checkpoint_every=10 steps",
        "--config.optimizer.warmup=5 steps"]
TIMES = ("images_per_second", "seconds")  # what may differ between two equal runs


def command(*flags: str, config: str = "digits") -> list[str]:
    return [sys.executable, "-m", "diffusion.main", f"--config=configs/{config}.py", *TINY, *flags]


def environment(devices: int = 1) -> dict[str, str]:
    # The compilation cache saves the suite most of its time; it changes no result.
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "diffusion-test-cache"))
    return {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5", "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


def execute(arguments: list[str], devices: int = 1, check: bool = True) -> subprocess.CompletedProcess:
    """The finished program; with `check` its failure fails the test, with its output."""
    done = subprocess.run(arguments, cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=900)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def run(*flags: str, config: str = "digits", **kwargs) -> subprocess.CompletedProcess:
    """`execute` of the tiny model."""
    return execute(command(*flags, config=config), **kwargs)


def start(*flags: str, devices: int = 1) -> subprocess.Popen:
    """The tiny model's program, running."""
    return subprocess.Popen(command(*flags), cwd=ROOT, env=environment(devices), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def start_processes(count: int, devices: int, *flags: str, of: Callable[[int], list[str]] = lambda i: []
                    ) -> list[subprocess.Popen]:
    """`count` of them that share a run, on as many devices each. of: flags of process i alone."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return [start(*flags, f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={i}", *of(i),
                  devices=devices) for i in range(count)]


def until(text: str, stream: IO[str]) -> None:
    """Reads lines until one has `text` in it."""
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            return
    raise AssertionError(f"it ended without saying {text!r}:\n{''.join(lines)}")


def finish(processes: list[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each; none is left running."""
    try:
        return [(p.returncode, *out) for p, out in [(p, p.communicate(timeout=timeout)) for p in processes]]
    finally:
        for p in processes:
            p.kill()


def rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of metrics.jsonl without their times."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
