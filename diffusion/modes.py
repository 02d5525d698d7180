"""The programs that `main --mode=NAME` runs, put together from built parts, the run folder and the disk."""
import collections
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion import build
from diffusion.errors import ConfigError, DivergedError
from diffusion.io import images, plots
from diffusion.io.checkpoint import Checkpoints
from diffusion.io.processes import is_primary
from diffusion.io.progress import Progress, duration
from diffusion.io.run_folder import command_line, open_run
from diffusion.io.writers import MetricsWriter, read_rows
from diffusion.train import loop


def start_processes(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the processes of a run of several; without `coordinator` this one is alone."""
    if coordinator is None:
        if count is not None or index is not None:
            raise ConfigError("--num_processes and --process_id need --coordinator=HOST:PORT, that of process 0.")
        return
    if count is None or index is None or index >= count:
        raise ConfigError(f"--coordinator needs --num_processes and --process_id below it; got {count} and {index}.")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, num_processes=count, process_id=index)


def train(config: ConfigDict, workdir: Path, started: float) -> None:
    """Trains into `workdir`, or goes on where a run of the same config stopped there.

    `started` is time.perf_counter() at the program's start. Raises the errors of `diffusion.errors`.
    """
    model = build.model(config)
    parts = build.training(config, model)
    run = open_run(workdir, config.to_dict(), resumable_keys=build.RESUMABLE_KEYS)
    plan = parts.plan
    with Checkpoints(run.checkpoints, keep=parts.keep_checkpoints) as checkpoints:
        if checkpoints.steps():
            state, clock = checkpoints.restore(parts.abstract_state, parts.data)
            clock = loop.Clock(**clock)
            say(f"resuming {run.path} at step {clock.step:,}")
        else:
            state, clock = parts.create_state(), loop.Clock()
        if clock.step >= plan.total:
            say(f"{run.path} is finished: {clock.step:,} of {plan.total:,} steps are done. Lengthen "
                "config.train.duration to go on.")
            return

        def draw_samples(step: int, state) -> None:
            x = np.concatenate(list(model.generate(state.ema, config.seed, 0, model.preview)))
            if is_primary():
                images.save_png(run.samples / f"step_{step:08d}.png", images.grid(images.to_uint8(x)))

        with (MetricsWriter(run.metrics, run.tensorboard, from_step=clock.step) as writer,
              Progress(plan.total, unit="step", initial=clock.step, images_per_unit=plan.batch_size) as progress):
            try:
                loop.run(plan=plan, train_step=parts.train_step, state=state, clock=clock, data=parts.data,
                         dataset=parts.dataset, mesh=model.mesh, started=started, write_row=writer.write,
                         draw_samples=draw_samples, progress=progress,
                         save=lambda step, state, clock: checkpoints.save(step, state, parts.data, asdict(clock)))
            except DivergedError as error:
                checkpoints.wait()
                raise DivergedError(f"{error} Last good checkpoint: {checkpoints.describe()}.") from None
    if is_primary():
        rows = read_rows(run.metrics)
        plots.plot_loss(rows, run.path / "loss.png")
        plots.plot_loss_by_noise(rows, run.path / "loss_by_noise.png", parts.log_snr_edges)
    say(f"""
trained {plan.total:,} steps in {duration(clock.seconds)}; in {run.path}:
  samples/step_{plan.total:08d}.png   the last grid of samples
  loss.png, loss_by_noise.png   the loss curve, and the loss by noise level
Next, draw more of them, or look at README.md there:
  {command_line()} --mode=sample --num_samples=256""")


def sample(config: ConfigDict, workdir: Path, *, num_samples: int, seed: int, out: Path, step: int | None) -> None:
    """Draws `num_samples` images with the averaged weights of a checkpoint (the newest, or of `step`) into `out`."""
    model = build.model(config)
    run = open_run(workdir, config.to_dict(), resumable_keys=build.RESUMABLE_KEYS, read_only=True)
    with Checkpoints(run.checkpoints, keep=None) as checkpoints:
        params = checkpoints.restore_part("ema", model.abstract_params, step)
    with Progress(num_samples, unit="image") as progress:
        def batches():
            for batch in model.generate(params, seed, 0, num_samples):
                yield images.to_uint8(batch)
                progress.update(len(batch))

        if is_primary():
            images.save_samples(out, batches())
        else:  # every process computes its share
            collections.deque(batches(), maxlen=0)
    say(f"{num_samples:,} images, grid.png and samples.npz are in {out}")


def say(text: str) -> None:
    """Prints a line once, whatever the number of processes."""
    if is_primary():
        print(text, flush=True)
