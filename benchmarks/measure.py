"""What the benchmarks share: the machine's state, timings of several ways by turns, and their JSON."""
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.io import run_folder

PEERS = ("torch", "diffusers")
BUSY = 0.5  # load average a core, at the start, above which timings are not of an idle machine


def machine() -> dict[str, Any]:
    """The environment of a run folder, with the load and the peers' versions: what a timing means nothing without."""
    found, _ = run_folder.describe_environment()
    found["packages"] |= {name: run_folder.version(name) for name in PEERS}
    return found | {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0)),
                    "load": os.getloadavg()[0]}


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
