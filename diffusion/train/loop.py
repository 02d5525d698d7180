"""The training loop, in a fixed order:

    restore (state, data iterator, clock) -> [next batch -> step -> log -> snapshot -> checkpoint -> sample -> evaluate]
    -> plots

Reporting comes after the checkpoint: samples or an evaluation that fail or are killed cost no training.

A checkpoint of step k holds the state after k steps, the iterator before batch k + 1, and the clock with the log's sums
since its last row, so a resumed run repeats the uninterrupted one bit for bit, log included.
"""
import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion.errors import CheckpointError, DivergedError
from diffusion.parallel import sharding
from diffusion.train.interrupts import Interrupts
from diffusion.train.state import State
from diffusion.train.step import BAD, StepMetrics
from diffusion.train.watchdog import Watchdog

_SUMS = ("steps", "loss", "grad_norm", "skipped", "seconds", "timed_steps", "waiting")
_BINNED = ("bin_loss", "bin_count", "bin_weight")
IN_FLIGHT = 2  # dispatches queued ahead of the device: it never waits for the host, and progress stays true
_SLOW_STEP = 10.0  # seconds; a first step at least this long predicts the remaining time
MAX_SKIPS_IN_A_ROW = 10  # consecutive skipped steps after which training stops


@dataclass(frozen=True, kw_only=True)
class Durations:
    """The training's length and intervals, in steps."""
    total: int
    log_every: int
    sample_every: int
    checkpoint_every: int
    batch_size: int
    steps_per_dispatch: int = 1
    evaluate_every: int | None = None  # None: never
    snapshot_every: int | None = None  # of the averages, for others after the training; None: never
    images: int | None = None  # the length, if given in images or epochs; `total` is for this batch size
    score: str = "loss"        # the value in a log row that ranks checkpoints

    def after(self, clock: "Clock") -> "Durations":
        """With `total` recomputed from the remaining `images`, if the batch size has changed."""
        if self.images is None or clock.images == clock.step * self.batch_size:
            return self
        dispatches = -(-max(self.images - clock.images, 0) // (self.batch_size * self.steps_per_dispatch))
        return replace(self, total=clock.step + dispatches * self.steps_per_dispatch)


@dataclass
class Clock:
    """Progress outside the state: JSON-serialisable, saved with each checkpoint, with floats restored exactly."""
    step: int = 0
    images: int = 0
    seconds: float = 0.0  # of training, without compilation, sampling and checkpoints
    score: float | None = None  # value of Durations.score in the last log row
    skipped_in_a_row: int = 0
    window: dict = field(default_factory=lambda: dict.fromkeys(_SUMS, 0.0))
    bin_loss: list = field(default_factory=list)   # [K] sums since the last row
    bin_count: list = field(default_factory=list)  # [K]
    bin_weight: list = field(default_factory=list)  # [K]


def restored_clock(saved: dict, batch_size: int) -> Clock:
    """The clock of a checkpoint; fields that an older version lacked get its implied values. Raises CheckpointError for
    an invalid clock."""
    try:
        filled = {"images": saved["step"] * batch_size} | saved
        clock = Clock(**filled | {"window": Clock().window | saved["window"]})
        whole = (clock.step, clock.images, clock.skipped_in_a_row)
        sums = [clock.seconds, *clock.window.values(), *clock.bin_loss, *clock.bin_count, *clock.bin_weight]
        good = all(type(x) is int and x >= 0 for x in whole) and all(type(x) in (int, float) for x in sums) and (
            type(clock.score) in (int, float, type(None))
            and len(clock.bin_loss) == len(clock.bin_count) == len(clock.bin_weight))
    except (KeyError, TypeError):
        good = False
    if not good:
        raise CheckpointError("The clock of the checkpoint is invalid: it was edited, or written by another program. "
                              "Delete or move that checkpoint; the previous one is then used.")
    return clock


class Window:
    """Accumulates the metrics of steps on the host until a log row is due."""

    def __init__(self, clock: Clock, plan: Durations, examples_of: Callable, report: Callable[[str], None]):
        self.clock, self.batch_size, self.score, self.report = clock, plan.batch_size, plan.score, report
        self.examples_of, self.pending, self.learning_rate = examples_of, [], 0.0
        self.speed: Callable[[float], dict] = lambda steps_per_second: {}  # columns of a row

    def add(self, metrics: StepMetrics) -> None:
        """Queues the metrics of the steps after the clock's, still on the device."""
        self.pending.append((self.clock.step, self.clock.images, metrics))
        if len(self.pending) > IN_FLIGHT:
            jax.block_until_ready(self.pending[-1 - IN_FLIGHT][2].loss)

    def waited(self, seconds: float) -> None:
        """Counts the seconds that a batch took, if the device has nothing left to do."""
        if not self.pending or self.pending[-1][2].loss.is_ready():
            self.clock.window["waiting"] += seconds

    def fetch(self) -> None:
        """Waits for the device and adds up what is pending. Raises DivergedError at the first bad step."""
        for first, images, metrics in jax.device_get(self.pending):
            for i in range(len(metrics.loss)):
                m = jax.tree.map(lambda x: x[i], metrics)
                if np.isfinite(m.loss + m.grad_norm + sum(o["loss"] + o["grad_norm"] for o in m.others.values())):
                    self.clock.skipped_in_a_row = 0
                    self._add_step(m)
                    if m.skipped:
                        self.clock.window["skipped"] += 1
                        self.report(f"step {first + i + 1} is skipped: its gradient norm {m.grad_norm:.4g} is a spike "
                                    "(config.train.spike)")
                else:
                    self._bad_step(first + i + 1, images + i * self.batch_size, m)
        self.pending.clear()

    def _bad_step(self, step: int, images: int, m: StepMetrics) -> None:
        clock, bad = self.clock, m.bad_position >= 0
        examples = self.examples_of(images, m.bad_position[bad])
        what = _describe_bad(m, examples, m.bad_log_snr[bad])
        clock.skipped_in_a_row += 1
        if not m.skipped:
            raise DivergedError(f"Training stopped at step {step}: {what} {_REMEDY}")
        if clock.skipped_in_a_row == MAX_SKIPS_IN_A_ROW:
            raise DivergedError(f"Training stopped at step {step}, the {MAX_SKIPS_IN_A_ROW}th in a row to be skipped "
                                f"(config.train.nonfinite=skip): {what} {_REMEDY}")
        clock.window["skipped"] += 1
        self.report(f"step {step} is skipped: {what}")

    def _add_step(self, m: StepMetrics) -> None:
        clock, window = self.clock, self.clock.window
        if m.counted:
            window["steps"] += 1
            window["loss"] += float(m.loss)
            window["grad_norm"] += float(m.grad_norm)
            self.learning_rate = float(m.learning_rate)
        for name, other in m.others.items():
            if other["counted"]:
                for column in ("loss", "grad_norm", "counted"):
                    window[f"{column}/{name}"] = window.get(f"{column}/{name}", 0.0) + float(other[column])
                window[f"learning_rate/{name}"] = float(other["learning_rate"])
        for name in _BINNED:
            add = getattr(m, name)
            setattr(clock, name, [a + float(b) for a, b in zip(getattr(clock, name) or [0.0] * len(add), add)])

    def row(self) -> dict:
        """The means since the last row, as one row of metrics.jsonl; starts the next window."""
        clock, window = self.clock, self.clock.window
        n, seconds = max(window["steps"], 1), max(window["seconds"], 1e-9)
        rate = window["timed_steps"] / seconds
        row = {
            "step": clock.step, "images": clock.images,
            "loss": window["loss"] / n, "grad_norm": window["grad_norm"] / n, "learning_rate": self.learning_rate,
            "images_per_second": round(rate * self.batch_size, 1), **self.speed(rate),
            "data_wait": round(min(window["waiting"] / seconds, 1.0), 4),
            "seconds": round(clock.seconds, 3), "skipped": int(window["skipped"]),
            "loss_by_log_snr": [a / b if b else None for a, b in zip(clock.bin_loss, clock.bin_count)],
            "effective_weight_by_log_snr": [a / n for a in clock.bin_weight],
        }
        for column in [key for key in window if key.startswith("counted/")]:
            name = column.removeprefix("counted/")
            row |= {f"{key}/{name}": window[f"{key}/{name}"] / window[column] for key in ("loss", "grad_norm")}
            row[f"learning_rate/{name}"] = window[f"learning_rate/{name}"]
        clock.window, clock.score = Clock().window, row[self.score]
        for name in _BINNED:
            setattr(clock, name, [])
        return row


_REMEDY = ("Nothing was saved after the last checkpoint. Rerunning repeats the same steps; lower "
           "config.optimizer.learning_rate, lengthen config.optimizer.warmup, use config.network.dtype=float32 or "
           "skip such steps, config.train.nonfinite=skip, with a new --workdir.")


def _describe_bad(m: StepMetrics, examples: np.ndarray, log_snr: np.ndarray) -> str:
    where = "The loss of every example was finite: the gradient overflowed." if not len(examples) else (
        "The loss was not finite for the " + ("first such " if len(examples) == BAD else "") + "examples of the data "
        + ", ".join(f"{i} (log-SNR {x:.2f})" for i, x in zip(examples, log_snr)) + ".")
    return f"the loss is {m.loss} and the gradient norm {m.grad_norm}. {where}"


Dispatch = tuple[Callable, State, dict, dict | None, dict]  # a step and its arguments: state, batch, dataset, frozen


def run_training(training: Generator[Dispatch, tuple[State, StepMetrics], State]) -> State:
    """Drives a training generator to completion and returns its result."""
    reply = None
    with contextlib.closing(training):
        while True:
            try:
                train_step, *arguments = training.send(reply)
            except StopIteration as end:
                return end.value
            # The step's inputs are on the devices; the guard makes any transfer an error instead of a slow step.
            with jax.transfer_guard("disallow"):
                reply = train_step(*arguments)


def training_steps(*, plan: Durations, program: Callable[[int], Callable], state: State, clock: Clock, data: Iterator,
                   dataset: dict | None, mesh: Mesh, started: float,
                   examples_of: Callable[[int, np.ndarray], np.ndarray], write_row: Callable[[dict], None],
                   draw_samples: Callable[[int, State], None], save: Callable[[int, State, Clock], None], progress,
                   interrupts: Interrupts, watchdog: Watchdog,
                   evaluate: Callable[[int, State], None] = lambda step, state: None,
                   snapshot: Callable[[int, State, Clock], None] = lambda step, state, clock: None,
                   frozen: dict | None = None,
                   speed_of: Callable[..., Callable[[float], dict]] = lambda *dispatch: lambda rate: {},
                   trace: Callable[[StepMetrics], None] = lambda metrics: None
                   ) -> Generator[Dispatch, tuple[State, StepMetrics], State]:
    """Trains from clock.step to plan.total, or until `interrupts` requests a stop, and returns the last state, saved.
    The caller (`run_training`, or one that runs several trainings) executes each yielded step and sends back its
    result.

    `program(step)` comes from `compile_train_step`; `frozen` are the parameter sets that are only read; `data` yields
    this process's rows of each batch; `started` is the time.perf_counter() of the program's start, for the time to
    first step; `examples_of(images, positions)` returns the data's indices of the examples at these positions of the
    batch that follows `images` images; `speed_of(step, *arguments)` is asked once, and its result gives columns of the
    log from the steps per second; `trace` is called after each dispatch. Raises DivergedError at a non-finite loss or
    gradient, unless that step was skipped; nothing after the last checkpoint is then saved.
    """
    window, k = Window(clock, plan, examples_of, progress.message), plan.steps_per_dispatch
    first_step, since, booked = clock.step + k, time.perf_counter(), clock.step

    def account():
        """Waits for the device and counts the time since the last call as training."""
        nonlocal since, booked
        window.fetch()
        elapsed, since = time.perf_counter() - since, time.perf_counter()
        clock.seconds += elapsed
        clock.window["seconds"] += elapsed
        clock.window["timed_steps"] += clock.step - booked
        booked = clock.step

    while clock.step < plan.total:
        watchdog("the next batch of data")
        asked = time.perf_counter()
        batch = sharding.place_batch(jax.tree.map(lambda *rows: np.stack(rows), *(next(data) for _ in range(k))),
                                     mesh, leading=1)
        dispatch = program(clock.step), state, batch, dataset, frozen or {}
        if clock.step >= first_step:
            window.waited(time.perf_counter() - asked)
        else:
            window.speed = speed_of(*dispatch)
        watchdog(f"step {clock.step + 1}")
        state, metrics = yield dispatch
        dispatched = time.perf_counter()
        window.add(metrics)
        clock.step += k
        clock.images += k * plan.batch_size
        if clock.step == first_step:
            jax.block_until_ready(metrics)
            interrupts.begin()
            since, booked = time.perf_counter(), first_step  # compilation is not training
            progress.message(f"first step after {since - started:.1f} s (start-up and compilation)")
            if slow := since - dispatched >= _SLOW_STEP:
                progress.expect((since - dispatched) / k)
        elif clock.step == first_step + k and not slow:  # even a quick first step is slower than the others
            jax.block_until_ready(metrics)
            progress.expect((time.perf_counter() - since) / k)
        progress.update(k)
        trace(metrics)

        last, stop = clock.step == plan.total, interrupts()
        if last or clock.step % plan.log_every == 0:
            account()
            row = window.row()
            write_row(row)
            progress.log(row)
        if plan.snapshot_every and (last or clock.step % plan.snapshot_every == 0):
            account()
            watchdog(f"the snapshots of step {clock.step}")
            snapshot(clock.step, state, clock)
            since = time.perf_counter()
        if last or stop or clock.step % plan.checkpoint_every == 0:
            account()
            watchdog(f"the checkpoint of step {clock.step}")
            save(clock.step, state, clock)
            since = time.perf_counter()
        if last or clock.step % plan.sample_every == 0:
            account()
            watchdog(None)
            draw_samples(clock.step, state)
            since = time.perf_counter()
        if plan.evaluate_every and clock.step % plan.evaluate_every == 0 and not stop:
            account()
            watchdog(None)
            evaluate(clock.step, state)
            since = time.perf_counter()
        if stop:
            watchdog(None)
            break
    return state
