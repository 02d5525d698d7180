"""The order of the training loop, with a step that costs nothing."""
import contextlib
import pathlib
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.parallel import sharding
from diffusion.train import loop
from diffusion.train.step import BAD, StepMetrics
from diffusion.train.tracing import StepTrace
from diffusion.train.watchdog import Watchdog


class Progress:
    """Hears what a Progress hears."""

    def __init__(self):
        self.said = []

    def __getattr__(self, name):
        return lambda *args: self.said.append((name, *args))


class Interrupts:
    def __init__(self, at=None):
        self.at, self.calls = at, 0

    def begin(self):
        pass

    def __call__(self):
        self.calls += 1
        return self.calls == self.at


def train_step(state, batch, dataset, frozen):
    one = jnp.ones(1)
    return state + 1, StepMetrics(
        loss=one, grad_norm=one, learning_rate=one, bad_position=jnp.full((1, BAD), -1), bad_log_snr=one[:, None],
        skipped=jnp.zeros(1), counted=one, others={}, bin_loss=one[:, None], bin_count=one[:, None],
        bin_weight=one[:, None])


def run(stop_at=None, fails=None, **plan):
    """What was done, in its order; and what was said."""
    done, progress = [], Progress()

    def note(name, step):
        done.append(f"{name} {step}")
        if fails == f"{name} {step}":
            raise RuntimeError(fails)

    settings = dict(total=4, log_every=4, sample_every=2, checkpoint_every=2, evaluate_every=2, batch_size=1)
    with contextlib.suppress(RuntimeError), jax.transfer_guard("allow"):
        loop.run_training(loop.training_steps(
            plan=loop.Durations(**settings | plan), program=lambda step: train_step, state=jnp.zeros(()),
            clock=loop.Clock(),
            data=iter(lambda: {"image": np.zeros((1, 1))}, None), dataset=None, mesh=sharding.make_mesh(1, 1),
            started=time.perf_counter(), examples_of=None, write_row=lambda row: note("row", row["step"]),
            draw_samples=lambda step, state: note("samples", step), progress=progress,
            evaluate=lambda step, state: note("evaluation", step),
            save=lambda step, state, clock: note("checkpoint", step),
            interrupts=Interrupts(stop_at), watchdog=Watchdog(0.0)))
    return done, progress.said


def test_a_row_says_how_fast_the_devices_compute_and_how_long_they_waited_for_data(monkeypatch):
    clock, rows, seconds = loop.Clock(), [], iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))  # each question takes a second
    loop.run_training(loop.training_steps(
        plan=loop.Durations(total=4, log_every=4, sample_every=4, checkpoint_every=4, batch_size=3),
        program=lambda step: train_step, state=jnp.zeros(()), clock=clock, dataset=None, started=0.0, examples_of=None,
        data=iter(lambda: {"image": np.zeros((1, 1))}, None), mesh=sharding.make_mesh(1, 1), write_row=rows.append,
        draw_samples=lambda *_: None, progress=Progress(), save=lambda *_: None, interrupts=Interrupts(None),
        watchdog=Watchdog(0.0), speed_of=lambda step, state, *_: lambda rate: {"steps_per_second": rate}))
    (row,) = rows
    assert row["steps_per_second"] == pytest.approx(row["images_per_second"] / 3, rel=0.1)
    assert 3 / row["seconds"] - 1e-3 < row["data_wait"] < 1  # of the three steps after the first

    window = loop.Window(clock, loop.Durations(total=1, log_every=1, sample_every=1, checkpoint_every=1, batch_size=3),
                         None, None)
    for ready, waiting in ((False, 0), (True, 5)):  # while a step is being made, nothing waits
        window.pending = [(0, 0, SimpleNamespace(loss=SimpleNamespace(is_ready=lambda ready=ready: ready)))]
        window.waited(5)
        assert clock.window["waiting"] == waiting


def test_a_trace_is_of_ten_dispatches_or_of_those_that_there_were(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(f"start {folder}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    for dispatches, traced in ((20, 10), (5, 3)):
        said = []
        with StepTrace(pathlib.Path("there"), said.append) as trace:
            for i in range(dispatches):
                trace(jnp.zeros(()))
        assert calls == ["start there", "stop"] and said[0].startswith(f"a trace of {traced} dispatches is in there")
        calls.clear()


@pytest.fixture(autouse=True)
def transfers(monkeypatch):
    """The step is not compiled here."""
    monkeypatch.setattr(jax, "transfer_guard", lambda mode: contextlib.nullcontext())


def test_what_only_reports_comes_after_the_checkpoint():
    whole = ["checkpoint 2", "samples 2", "evaluation 2", "row 4", "checkpoint 4", "samples 4", "evaluation 4"]
    assert run()[0] == whole
    for name in ("samples 2", "evaluation 2", "samples 4", "evaluation 4"):
        assert run(fails=name)[0] == whole[:whole.index(name) + 1]  # the checkpoint of its step is among them


def test_who_asks_to_stop_gets_the_checkpoint_first_and_no_evaluation():
    assert run(stop_at=2)[0] == ["checkpoint 2", "samples 2"]
    assert run(stop_at=1)[0] == ["checkpoint 1"]


@pytest.mark.parametrize(("slow", "order"), [(0.0, ["message", "expect", "update", "update"]),
                                             (1e9, ["message", "update", "expect", "update"])])
def test_how_long_it_takes_is_said_after_a_step_or_two(monkeypatch, slow, order):
    monkeypatch.setattr(loop, "_SLOW_STEP", slow)
    assert [name for name, *_ in run(evaluate_every=None, sample_every=9, checkpoint_every=9)[1]][:4] == order
