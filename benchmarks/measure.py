"""What the benchmarks share: their flags, the machine's state, timings of several ways by turns, and one report.

A report is {"program", "machine", "busy": why timings are not to be trusted, "settings", "rows"}. A row is one way of
doing something: {"ms", "lowest_ms", "highest_ms", ...}, of which less is better. `benchmarks.compare` reads two.
"""
import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffusion import runtime
from diffusion.io import run_folder

PEERS = ("torch", "diffusers")
BUSY = 0.2  # share of the cores in use at the start, above which timings are not of an idle machine


def parser(program: str, doc: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """A command line with the flags of all benchmarks; `rounds` is the default."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.{program}", description=doc,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--rounds", type=int, default=rounds, help="turns of each way, of which the median is printed")
    found.add_argument("--quick", action="store_true", help="one short round: whether it runs, not how fast")
    found.add_argument("--tiny", action="store_true", help="as --quick, with a network small enough for a test")
    found.add_argument("--out", default=None, help="a JSON file to write")
    return found


def begin(program: str, args: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """A report without rows. Call it before JAX has devices: it leaves memory of a GPU to PyTorch. The process keeps
    freed memory, as our programs do, for all ways alike."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    found = machine()
    if reason := busy(found):
        print(f"warning: {reason}", flush=True)
    runtime.keep_memory()
    return {"program": program, "machine": found, "busy": reason,
            "settings": {"quick": args.quick or args.tiny, "tiny": args.tiny} | settings, "rows": {}}


def machine() -> dict[str, Any]:
    """The environment of a run folder, with the load and the peers' versions: what a timing means nothing without."""
    found, _ = run_folder.describe_environment()
    found["packages"] |= {name: run_folder.version(name) for name in PEERS}
    return found | {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0)),
                    "load": os.getloadavg()[0], "used_cores": used_cores()}


def used_cores(seconds: float = 1.0) -> float:
    """How many cores other processes use while this one sleeps; where /proc/stat does not tell, the load average, which
    is also of the minute before."""
    def times() -> tuple[int, int]:
        fields = [int(word) for word in Path("/proc/stat").read_text().split()[1:9]]
        return sum(fields) - fields[3] - fields[4], sum(fields)  # without idle and iowait

    try:
        before = times()
        time.sleep(seconds)
        used, whole = (b - a for a, b in zip(before, times()))
        return (os.cpu_count() or 1) * used / max(whole, 1)
    except (OSError, ValueError):
        return os.getloadavg()[0]


def busy(found: Mapping[str, Any]) -> str | None:
    """Why timings on this machine are not to be trusted now; None if it was idle at the start."""
    if found["used_cores"] <= BUSY * found["cores"]:
        return None
    return (f"the machine is not idle ({found['used_cores']:.1f} of {found['cores']} cores are in use): no ratios. "
            "Stop what runs beside, and repeat.")


def by_turns(ways: Mapping[str, Callable[[], Any]], *, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of one call of each way, `rounds` times each, in turns: each time is the mean of `steps` calls in
    sequence, whose last must return when all are done. Each way is called once before, to warm it up."""
    for way in ways.values():
        finished(way())
    return in_turns({name: partial(timed, way, steps) for name, way in ways.items()}, rounds=rounds)


def in_turns(ways: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """What each way returns, its own seconds, `rounds` times each, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way())
    return seconds


def timed(way: Callable[[], Any], steps: int = 1) -> float:
    """Mean seconds of `steps` calls in sequence, until all are done."""
    began = time.perf_counter()
    for _ in range(steps - 1):
        way()
    finished(way())
    return (time.perf_counter() - began) / steps


def finished(result: Any) -> None:
    """Waits for the result, of either library."""
    if hasattr(result, "is_cuda"):
        if result.is_cuda:
            import torch
            torch.cuda.synchronize()
    else:
        import jax
        jax.block_until_ready(result)


def spread(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: the median, the lowest and the highest."""
    ms = 1e3 * np.array(seconds)
    return {"ms": float(np.median(ms)), "lowest_ms": float(ms.min()), "highest_ms": float(ms.max())}


def ratio(report: Mapping[str, Any], ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times as fast as theirs ours is, the median over the rounds; nothing if the machine was busy."""
    return {} if report["busy"] else {"ours_over_this": float(np.median(np.array(theirs) / np.array(ours)))}


def peak_gb(*, torch: bool = False) -> float:
    """The largest memory so far, of the device's allocator in JAX or PyTorch, or, on a CPU, of the whole process: there
    a later way's peak is also that of the ways before it."""
    import jax
    if jax.default_backend() == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    if torch:
        import torch as library
        return library.cuda.max_memory_allocated() / 1e9
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9


def ceiling(dtype: str, *, size: int, rounds: int = 5) -> float:
    """FLOP/s of a matrix product of `size` squared in this dtype on this device, the fastest of `rounds`."""
    import jax
    import jax.numpy as jnp
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x) * jnp.asarray(1 / size, dtype))
    times = by_turns({"product": lambda: product(a)}, rounds=rounds, steps=10)["product"]
    return 2 * size**3 / min(times)


def table(report: Mapping[str, Any]) -> str:
    """The report as text."""
    at, settings = report["machine"], {k: v for k, v in report["settings"].items() if v not in (None, False)}
    width = max(map(len, report["rows"]), default=0)
    lines = [f"{report['program']} ({', '.join(f'{name} {value}' for name, value in settings.items())}) on "
             f"{at['devices']['kind']} ({at['processor']}, {at['cores']} cores, {at['used_cores']:.1f} in use before), "
             f"{at['time']}"]
    for name, row in report["rows"].items():
        line = f"  {name:<{width}} {row['ms']:10.2f} ms ({row['lowest_ms']:.2f} to {row['highest_ms']:.2f})"
        line += "".join(f", {key.replace('_', ' ')} {shown(value)}" for key, value in row.items()
                        if key not in ("ms", "lowest_ms", "highest_ms", "ours_over_this"))
        if "ours_over_this" in row:
            line += f"; ours is {row['ours_over_this']:.2f} times as fast"
        lines.append(line)
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A number as a person reads it: 1.234, 12,345 or 6.7 G."""
    if not isinstance(value, float | int):
        return str(value)
    for unit, name in ((1e12, " T"), (1e9, " G")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"


def end(report: Mapping[str, Any], path: str | None) -> None:
    """Prints the report, and writes it if there is a path."""
    print(table(report), flush=True)
    write(path, report)


def write(path: str | None, report: Mapping[str, Any]) -> None:
    """The report as JSON, if there is a path."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(report, indent=1) + "\n")
