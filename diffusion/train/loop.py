"""The training loop. It is boring, and its order is fixed:

    restore (state, data iterator, clock) -> [next batch -> step -> log -> sample -> checkpoint] -> plots

A checkpoint of step k holds the state after k steps, the iterator before batch k + 1, and the clock with what the log
has gathered since its last row; so a resumed run repeats the uninterrupted one bit for bit, log included.
"""
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion.errors import DivergedError
from diffusion.train import sharding
from diffusion.train.state import State
from diffusion.train.step import StepMetrics

_SUMS = ("steps", "loss", "grad_norm", "seconds", "timed_steps")
_BINNED = ("bin_loss", "bin_count", "bin_weight")
_IN_FLIGHT = 2  # dispatches queued ahead of the device: it never waits for the host, and progress stays true


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how often, in steps."""
    total: int
    log_every: int
    sample_every: int
    checkpoint_every: int
    batch_size: int
    steps_per_dispatch: int = 1


@dataclass
class Clock:
    """Progress that is not in the state: JSON-able, saved with each checkpoint, its floats returning exactly."""
    step: int = 0
    seconds: float = 0.0  # of training, without compilation, sampling and checkpoints
    window: dict = field(default_factory=lambda: dict.fromkeys(_SUMS, 0.0))
    bin_loss: list = field(default_factory=list)   # [K] sums since the last row
    bin_count: list = field(default_factory=list)  # [K]
    bin_weight: list = field(default_factory=list)  # [K]


class Window:
    """Gathers the metrics of steps on the host until a row of the log is due."""

    def __init__(self, clock: Clock, batch_size: int):
        self.clock, self.batch_size, self.pending, self.learning_rate = clock, batch_size, [], 0.0

    def add(self, first_step: int, metrics: StepMetrics) -> None:
        """Takes the metrics of the steps from `first_step` on, still on the device."""
        self.pending.append((first_step, metrics))
        if len(self.pending) > _IN_FLIGHT:
            jax.block_until_ready(self.pending[-1 - _IN_FLIGHT][1].loss)

    def fetch(self) -> None:
        """Waits for the device and adds up what is pending. Raises DivergedError at the first bad step."""
        for first, metrics in jax.device_get(self.pending):
            for i in range(len(metrics.loss)):
                if not np.isfinite(metrics.loss[i] + metrics.grad_norm[i]):
                    raise DivergedError(_diverged(first + i + 1, metrics.loss[i], metrics.grad_norm[i],
                                                  metrics.bad_log_snr[i]))
                self._add_step(jax.tree.map(lambda x: x[i], metrics))
        self.pending.clear()

    def _add_step(self, m: StepMetrics) -> None:
        clock, window = self.clock, self.clock.window
        window["steps"] += 1
        window["loss"] += float(m.loss)
        window["grad_norm"] += float(m.grad_norm)
        for name in _BINNED:
            add = getattr(m, name)
            setattr(clock, name, [a + float(b) for a, b in zip(getattr(clock, name) or [0.0] * len(add), add)])
        self.learning_rate = float(m.learning_rate)

    def row(self) -> dict:
        """The means since the last row, as one row of metrics.jsonl; starts the next window."""
        clock, window = self.clock, self.clock.window
        n = max(window["steps"], 1)
        row = {
            "step": clock.step, "images": clock.step * self.batch_size,
            "loss": window["loss"] / n, "grad_norm": window["grad_norm"] / n, "learning_rate": self.learning_rate,
            "images_per_second": round(window["timed_steps"] * self.batch_size / max(window["seconds"], 1e-9), 1),
            "seconds": round(clock.seconds, 3),
            "loss_by_log_snr": [a / b if b else None for a, b in zip(clock.bin_loss, clock.bin_count)],
            "effective_weight_by_log_snr": [a / n for a in clock.bin_weight],
        }
        clock.window = Clock().window
        for name in _BINNED:
            setattr(clock, name, [])
        return row


def _diverged(step: int, loss: float, grad_norm: float, log_snr: float) -> str:
    where = f" The first example with a bad loss was at log-SNR {log_snr:.2f}." if np.isfinite(log_snr) else (
        " The loss of every example was finite: the gradient overflowed.")
    return (f"Training stopped at step {step}: the loss is {loss} and the gradient norm {grad_norm}.{where} Nothing "
            "was saved after the last checkpoint. Rerunning repeats the same steps; lower "
            "config.optimizer.learning_rate, lengthen config.optimizer.warmup or use config.network.dtype=float32, "
            "with a new --workdir.")


def run(*, plan: Plan, train_step: Callable, state: State, clock: Clock, data: Iterator, dataset: dict | None,
        mesh: Mesh, started: float, write_row: Callable[[dict], None], draw_samples: Callable[[int, State], None],
        save: Callable[[int, State, Clock], None], progress) -> State:
    """Trains from clock.step to plan.total and returns the last state, saved.

    `train_step` comes from `compile_train_step`; `data` yields this process's rows of each batch; `started` is the
    time.perf_counter() of the program's start, for the time to first step. Raises DivergedError at a loss or gradient
    that is not finite; then nothing since the last checkpoint has been saved.
    """
    window, k = Window(clock, plan.batch_size), plan.steps_per_dispatch
    first_step, since, booked = clock.step + k, time.perf_counter(), clock.step

    def account():
        """Waits for the device and books the time since the last call as training."""
        nonlocal since, booked
        window.fetch()
        elapsed, since = time.perf_counter() - since, time.perf_counter()
        clock.seconds += elapsed
        clock.window["seconds"] += elapsed
        clock.window["timed_steps"] += clock.step - booked
        booked = clock.step

    while clock.step < plan.total:
        # The transfers below are meant; the guard makes any other one an error instead of a slow step.
        batch = sharding.place_batch(jax.tree.map(lambda *rows: np.stack(rows), *(next(data) for _ in range(k))),
                                     mesh, leading=1)
        with jax.transfer_guard("disallow"):
            state, metrics = train_step(state, batch, dataset)
        window.add(clock.step, metrics)
        clock.step += k
        if clock.step == first_step:
            jax.block_until_ready(metrics)
            since, booked = time.perf_counter(), first_step  # compilation is not training
            progress.message(f"first step after {since - started:.1f} s (start-up and compilation)")
        progress.update(k)

        last = clock.step == plan.total
        if last or clock.step % plan.log_every == 0:
            account()
            row = window.row()
            write_row(row)
            progress.log(row)
        if last or clock.step % plan.sample_every == 0:
            account()
            draw_samples(clock.step, state)
            since = time.perf_counter()
        if last or clock.step % plan.checkpoint_every == 0:
            account()
            save(clock.step, state, clock)
            since = time.perf_counter()
    return state
