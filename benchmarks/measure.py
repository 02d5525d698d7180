"""What the benchmarks share: the machine's state, timings of several ways by turns, and their JSON."""
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "diffusers")
BUSY = 0.5  # load average at the start above which timings are not of an idle machine


def machine() -> dict[str, Any]:
    """Date, device, versions and load: what a timing means nothing without."""
    import jax
    device = jax.devices()[0]
    return {"date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "device": device.device_kind if device.platform != "cpu" else processor(), "devices": jax.device_count(),
            "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "python": platform.python_version(),
            "commit": commit(), "versions": {name: v for name in PACKAGES if (v := version(name))}}


def processor() -> str:
    """The processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of this checkout; empty outside of one."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True,
                           text=True)
    return found.stdout.strip()


def busy(found: Mapping[str, Any]) -> str | None:
    """Why timings on this machine are not to be trusted now; None if it was idle at the start."""
    if found["load"] <= BUSY * found["cores"]:
        return None
    return (f"the machine is not idle (load {found['load']:.1f} on {found['cores']} cores): no ratios. Stop what runs "
            "beside, and repeat.")


def by_turns(ways: Mapping[str, Callable[[], Any]], *, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of one call of each way, `rounds` times each, in turns: each time is the mean of `steps` calls in
    sequence, whose last must return when all are done. Each way is called once before, to warm it up."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            for _ in range(steps - 1):
                way()
            finished(way())
            seconds[name].append((time.perf_counter() - began) / steps)
    return seconds


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


def ceiling(dtype: str, *, size: int, rounds: int = 5) -> float:
    """FLOP/s of a matrix product of `size` squared in this dtype on this device, the fastest of `rounds`."""
    import jax
    import jax.numpy as jnp
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x) * jnp.asarray(1 / size, dtype))
    times = by_turns({"product": lambda: product(a)}, rounds=rounds, steps=10)["product"]
    return 2 * size**3 / min(times)


def write(path: str | None, report: Mapping[str, Any]) -> None:
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(report, indent=1) + "\n")
