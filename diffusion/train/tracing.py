"""A trace of some training steps by JAX's profiler."""
from collections.abc import Callable
from pathlib import Path

import jax

from diffusion.train.step import StepMetrics

SKIPPED = 2    # dispatches, of which the first is compiled and the second may still be slow
TRACED = 10    # dispatches


class StepTrace:
    """Called after each dispatch, traces ten of them into `folder`, and tells `report` how to open it.

    Use as a context manager: a training that ends before leaves the trace of the steps that were made.
    """

    def __init__(self, folder: Path, report: Callable[[str], None]):
        self.folder, self.report, self.count, self.running = folder, report, 0, False

    def __call__(self, metrics: StepMetrics) -> None:
        self.count += 1
        if self.count == SKIPPED:
            jax.block_until_ready(metrics)
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        elif self.count == SKIPPED + TRACED:
            jax.block_until_ready(metrics)
            self.stop()

    def stop(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
            self.report(f"a trace of {self.count - SKIPPED} dispatches is in {self.folder}. To look at it: pip install "
                        f"xprof && xprof {self.folder}")

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *_) -> None:
        self.stop()
