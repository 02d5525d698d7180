"""Verifies that a stopped and resumed run ends in exactly the same state as an undisturbed one, bit for bit."""
import contextlib
import dataclasses
import hashlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffusion.errors import CheckpointError
from diffusion.programs.frozen import open_frozen
from diffusion.train.watchdog import Watchdog

if TYPE_CHECKING:
    from diffusion.train import loop

INSTEAD: dict[str, str] = {}
_SHOWN = 8  # arrays listed in a message
_TIMES = ("seconds", "timed_steps", "waiting")  # of the clock


def declare_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("verify_steps", 20, "The number of steps before the checkpoint, and after it.", lower_bound=1,
                         upper_bound=10**6, flag_values=values)


def prepare_process(values: flags.FlagValues) -> None:
    pass


def run_program(config: ConfigDict, workdir: Path, values: flags.FlagValues) -> None:
    verify_resume(config, workdir, values.verify_steps)


class NoInterrupts:
    """Stands for `Interrupts` without any interrupt."""

    def begin(self) -> None:
        pass

    def __call__(self) -> bool:
        return False


def verify_resume(config: ConfigDict, workdir: Path, steps: int) -> None:
    """Trains 2 x `steps` from the newest checkpoint of `workdir`, or from the start; restores the checkpoint after the
    first half, repeats the second half, and compares all arrays of the state, the clock and the rows of the log.

    The run itself is not changed. Raises CheckpointError if anything differs, in any process.
    """
    import jax
    from jax.experimental import multihost_utils

    from diffusion import build
    from diffusion.io.checkpoint import Checkpoints
    from diffusion.io.processes import is_primary, print_once
    from diffusion.io.progress import Progress
    from diffusion.train import loop
    config, frozen = build.measured(config), open_frozen(config, workdir)
    model = build.model(config, frozen=frozen.configs)
    parts = build.training(config, model)
    held = frozen.read(model)
    k = parts.plan.steps_per_dispatch
    steps = -(-steps // k) * k
    folder = workdir / "verify_resume"
    with contextlib.ExitStack() as stack:
        stack.callback(remove, folder, workdir, made=not workdir.exists())
        if is_primary():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        saved = stack.enter_context(Checkpoints(folder / "checkpoints", keep=None))
        run = Checkpoints(workdir / "checkpoints", keep=None)
        if run.steps():
            state, clock = run.restore(parts.abstract_state, parts.data)
            clock = loop.restored_clock(clock, parts.plan.batch_size)
            parts = dataclasses.replace(parts, program=parts.program_after(clock))
        else:
            state, clock = parts.create_state(), loop.Clock()
        start = clock.step

        def train(state, clock, data):
            """Trains `steps` more steps and saves; returns the rows of the log."""
            plan = dataclasses.replace(parts.plan, total=clock.step + steps, log_every=k, sample_every=2**31,
                                       checkpoint_every=2**31)
            rows = []
            with (Progress(plan.total, unit="step", initial=clock.step, images_per_unit=plan.batch_size) as progress,
                  Watchdog(config.train.stall_seconds) as watchdog):
                state = loop.run_training(loop.training_steps(
                    plan=plan, program=parts.program, state=state, clock=clock, data=data, dataset=parts.dataset,
                    mesh=model.mesh, started=time.perf_counter(), examples_of=parts.examples_of, write_row=rows.append,
                    draw_samples=lambda step, state: None, progress=progress, interrupts=NoInterrupts(),
                    watchdog=watchdog, frozen=held, save=lambda step, state, clock: saved.save(
                        step, state, data, dataclasses.asdict(clock))))
            return state, rows

        state, _ = train(state, clock, parts.data)
        middle = clock.step
        straight, rows = train(state, clock, parts.data)
        expected = digests(straight, clock, rows, parts.data)
        saved.wait()
        state, resumed = saved.restore(parts.abstract_state, parts.data, middle)
        resumed = loop.restored_clock(resumed, parts.plan.batch_size)
        state, rows = train(state, resumed, parts.data)
        found = digests(state, resumed, rows, parts.data)

    differing = [name for name in expected if found[name] != expected[name]]
    wrong = np.array(len(differing))
    if (multihost_utils.process_allgather(wrong) if jax.process_count() > 1 else wrong).any():
        named = ", ".join(differing[:_SHOWN]) + (", ..." if len(differing) > _SHOWN else "")
        raise CheckpointError(f"Steps {middle + 1:,} to {clock.step:,}, repeated from the checkpoint of step "
                              f"{middle:,}, gave another result: {named or 'in another process'}. On NVIDIA's GPUs "
                              "sums in no fixed order may be the cause: XLA_FLAGS=--xla_gpu_deterministic_ops=true.")
    whole = hashlib.sha256("".join(expected.values()).encode()).hexdigest()
    print_once(f"resume is exact: {steps:,} steps from {start:,}, saved, then steps {middle + 1:,} to {clock.step:,} "
               "twice. "
        f"{len(expected) - 3} arrays, the clock, the place in the data and {len(rows)} rows of the log are equal, bit "
        f"for bit (SHA-256 of all: {whole[:16]}...)")


def digests(state, clock: "loop.Clock", rows: list[dict], data) -> dict[str, str]:
    """SHA-256 of each array (of this process's shards), the clock, the log and the place in the data, except times."""
    import jax

    from diffusion.io.writers import TIMES

    def of_array(x) -> str:
        digest = hashlib.sha256()
        for shard in sorted(x.addressable_shards, key=lambda shard: shard.device.id):
            digest.update(np.ascontiguousarray(shard.data).tobytes())
        return digest.hexdigest()

    def of_values(value) -> str:
        return hashlib.sha256(repr(value).encode()).hexdigest()

    clock = dataclasses.asdict(clock)
    window = {name: value for name, value in clock.pop("window").items() if name not in _TIMES}
    found = {jax.tree_util.keystr(path, simple=True, separator="."): of_array(x)
             for path, x in jax.tree_util.tree_flatten_with_path(state)[0]}
    return found | {
        "the clock": of_values([{name: clock[name] for name in clock if name not in _TIMES}, window]),
        "the log": of_values([{name: row[name] for name in row if name not in TIMES} for row in rows]),
        "the place in the data": of_values(data.get_state())}


def remove(folder: Path, workdir: Path, made: bool) -> None:
    from diffusion.io.processes import is_primary
    if is_primary():
        shutil.rmtree(folder, ignore_errors=True)
        if made and not any(workdir.iterdir()):
            workdir.rmdir()
