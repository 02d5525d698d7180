"""Trains a model into a run folder, or resumes a run that stopped."""
import dataclasses
import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffusion import program
from diffusion.errors import DivergedError, Interrupted
from diffusion.programs import shared_flags
from diffusion.programs.frozen import open_frozen

if TYPE_CHECKING:
    from diffusion import build
    from diffusion.io.run_folder import RunFolder
    from diffusion.train.interrupts import Interrupts

INSTEAD = {"init_from": "--from_pretrained, which samples from such a model"}


def declare_flags(values: flags.FlagValues) -> None:
    shared_flags.declare_path("init_from", "A model whose weights a new run starts from: a folder in diffusers' "
                              "layout, a name on the Hugging Face hub, or a run folder, PATH[@STEP][#WEIGHTS]. Its own "
                              "config is used if --config is not given.", values)
    flags.DEFINE_bool("profile", False, "Write a trace of ten steps, after the first ones, into the folder profile of "
                      "the run.", flag_values=values)


def prepare_process(values: flags.FlagValues) -> None:
    pass


def run_program(config: ConfigDict, workdir: Path, values: flags.FlagValues) -> None:
    train(config, workdir, program.STARTED, values.init_from, values.profile)


def train(config: ConfigDict, workdir: Path, started: float, init_from: str | None = None, profile: bool = False
          ) -> None:
    """Trains into `workdir`, or resumes the run of the same config there. Drives `training` to its end."""
    from diffusion import build
    from diffusion.io.processes import print_once
    from diffusion.train import loop
    from diffusion.train.interrupts import Interrupts
    config = build.measured(config)
    if (steps := finished_steps(config, workdir)) is not None:
        print_once(finished_message(config, workdir, steps))
        return
    with Interrupts() as interrupts:
        loop.run_training(training(config, workdir, started, interrupts, init_from, profile))


def finished_steps(config: ConfigDict, workdir: Path) -> int | None:
    """The steps of a run of exactly this config whose files show that it is finished; else None.

    Such a run then needs no model and no data. Raises ConfigError for the run of another config.
    """
    import jax

    from diffusion import build
    from diffusion import config as config_lib
    from diffusion.io import checkpoint, run_folder
    from diffusion.train import durations
    if not run_folder.is_run(workdir) or jax.process_count() > 1 or "step" not in config.train.duration:
        return None
    run = run_folder.open_run(workdir, config.to_dict(), resumable_keys=build.RESUMABLE_KEYS,
                              adopt=config_lib.adopt_dict, read_only=True)
    steps = checkpoint.Checkpoints(run.checkpoints, keep=None).steps()
    total = durations.to_steps(config.train.duration, key="train.duration", batch_size=config.train.batch_size,
                               epoch_size=None)
    same = run.before == run_folder.flat_json(config.to_dict())
    done = same and steps and steps[-1] >= total and (run.path / "effective_weight.json").exists() and picture_of(
        run, steps[-1]).exists() and checkpoint.find_fault(run.checkpoints / str(steps[-1])) is None
    return steps[-1] if done else None


def finished_message(config: ConfigDict, path: Path, steps: int) -> str:
    from diffusion.io import run_folder
    longer = run_folder.command(path, f"--config.train.duration={2 * steps} steps", plugins=config.plugins)
    return (f"{path} is finished: {steps:,} of {steps:,} steps are done. To go on, lengthen config.train.duration:\n"
            f"  {longer}")


def training(config: ConfigDict, workdir: Path, started: float, interrupts: "Interrupts", init_from: str | None = None,
             profile: bool = False):
    """A training run in `workdir`, new or resumed, as a generator whose caller makes the steps (`loop.training_steps`).

    `started` is time.perf_counter() at the program's start. init_from: the source (`pretrained.load`) of the weights
    that a new run starts from. profile: whether to trace some steps. Raises the errors of `diffusion.errors`.
    """
    from diffusion import build, pretrained
    from diffusion import config as config_lib
    from diffusion.build import advice
    from diffusion.io import run_folder
    from diffusion.io.checkpoint import Checkpoints
    from diffusion.io.processes import is_primary, primary_says, print_once
    from diffusion.io.progress import Progress, duration
    from diffusion.io.snapshots import Snapshots
    from diffusion.io.writers import MetricsWriter
    from diffusion.programs import evaluation
    from diffusion.train import loop
    from diffusion.train.state import ONLINE, averages_of, weights_of
    from diffusion.train.tracing import StepTrace
    from diffusion.train.watchdog import Watchdog
    source, config = None, build.measured(config)
    if init_from is not None and not run_folder.is_run(workdir):
        source = pretrained.load_source(init_from)
        pretrained.check_same(config, source.config, init_from, pretrained.NETWORK)
    frozen = open_frozen(config, workdir)
    model = build.model(config, frozen=frozen.configs)
    generate = build.generate(config, model)
    parts = build.training(config, model)
    build.check_memory(config, model, parts.abstract_state, rows=config.train.batch_size // config.train.accumulate,
                       key="train.batch_size")
    for note in advice.of_training(config):
        print_once(note)
    if source is not None:
        weights = source.params(pretrained.shared(config, source.config, model.abstract_params))
    held = frozen.read(model)  # before the run folder is made, so that a wrong source leaves none
    extractor = evaluation.load_extractor(config) if parts.plan.evaluate_every else None
    run = run_folder.open_run(workdir, config.to_dict(), resumable_keys=build.RESUMABLE_KEYS,
                              adopt=config_lib.adopt_dict)
    frozen.store(held)
    plan = parts.plan
    with (Checkpoints(run.checkpoints, **parts.retention, log=print_once) as checkpoints,
          Snapshots(run.path, parts.snapshots, log=print_once) as snapshots):
        if (restored := checkpoints.restore_newest(parts.abstract_state, parts.data)) is not None:
            state, clock = restored
            clock = loop.restored_clock(clock, plan.batch_size)
            if clock.images != clock.step * plan.batch_size:
                plan = plan.after(clock)
                parts = dataclasses.replace(parts, program=parts.program_after(clock))
                print_once("note: config.train.batch_size has changed. The images done so far, "
                           f"{clock.images:,}, still count; the schedules of the learning rate continue in steps.")
            print_once(f"resuming {run.path} at step {clock.step:,}")
            for note in advice.of_another_rate(config, run.before, parts.rate_of, clock.step):
                print_once(note)
        else:
            state, clock = parts.create_state(), loop.Clock()
            if source is not None:
                params = {ONLINE: state.params[ONLINE] | weights}
                state = dataclasses.replace(state, params=params, averages=averages_of(params, parts.averages))
                print_once(f"starting from the weights of {init_from}")
                for key in pretrained.differences(config, source.config, ("process", "prediction")):
                    print_once(f"note: {key} differs from {init_from}: the network has to learn it anew")

        snapshots.remove_after(clock.step)

        def draw_samples(step: int, state) -> None:
            x = np.concatenate(list(generate(weights_of(state, config.sample.weights), config.seed, 0,
                                        config.sample.preview)))
            if is_primary():
                model.spec.preview(picture_of(run, step), model.spec.finish(x),
                                   build.titles(config, model, config.sample.preview))

        finished = clock.step >= plan.total
        due = restored is not None and (finished or clock.step % plan.sample_every == 0)
        if primary_says(due and not picture_of(run, clock.step).exists()):  # it stopped after the checkpoint
            draw_samples(clock.step, state)
        if finished:
            if not (run.path / "effective_weight.json").exists():
                draw_curves(run, parts)
            print_once(finished_message(config, run.path, clock.step))
            return

        evaluator = extractor and evaluation.prepare(config, model, extractor, run.path / ".features")

        def evaluate(step: int, state) -> None:
            evaluation.write(run.path / "evaluations", *evaluator(
                weights_of(state, config.sample.weights), config.seed, evaluation.sampling(config, workdir, step)),
                             spec=model.spec, titles=evaluator.titles)

        last_row = {}

        def write_row(row: dict) -> None:
            writer.write(row)
            last_row.update(row)

        with (MetricsWriter(run.metrics, run.tensorboard, from_step=clock.step) as writer,
              Progress(plan.total, unit="step", initial=clock.step, images_per_unit=plan.batch_size,
                       ahead=loop.IN_FLIGHT * plan.steps_per_dispatch) as progress,
              Watchdog(config.train.stall_seconds) as watchdog,
              StepTrace(run.path / "profile", progress.message) if profile else nullcontext(lambda _: None) as trace):
            try:
                yield from loop.training_steps(
                    plan=plan, program=parts.program, state=state, clock=clock, data=parts.data,
                    dataset=parts.dataset, mesh=model.mesh, started=started, write_row=write_row,
                    draw_samples=draw_samples, progress=progress, interrupts=interrupts, watchdog=watchdog,
                    examples_of=parts.examples_of, evaluate=evaluate, frozen=held,
                    speed_of=partial(speed_of, plan.steps_per_dispatch), trace=trace,
                    snapshot=lambda step, state, clock: snapshots.save(step, clock.images, state.averages),
                    save=lambda step, state, clock: checkpoints.save(
                        step, state, parts.data, dataclasses.asdict(clock), clock.score))
            except DivergedError as error:
                checkpoints.wait()
                raise DivergedError(f"{error} Last good checkpoint: {checkpoints.describe()}.") from None
    if clock.step < plan.total:
        raise Interrupted(f"stopped at step {clock.step:,} of {plan.total:,}, which is saved in {run.checkpoints}: the "
                          "same command resumes from it", interrupts.exit_code)
    draw_curves(run, parts)
    print_once(f"""
trained {plan.total:,} steps in {duration(clock.seconds)}{described_speed(last_row)}; in {run.path}:
  samples/step_{plan.total:08d}.png   the last grid of samples
  loss.png, loss_by_noise.png   the loss curve, and the loss by noise level
  effective_weight.png   the weight of each noise level in the loss
Next, draw more samples, or read README.md there:
  {run_folder.command(run.path, "--mode=sample", "--num_samples=256", plugins=config.plugins)}""")


def speed_of(steps: int, program, *arguments) -> Callable[[float], dict]:
    """steps per second -> the columns of the log that say how fast the devices compute, for a dispatch of `steps`: the
    FLOP/s of all convolutions and matrix products, and their share of the peak where the devices' is known."""
    import jax

    from diffusion.planning import chips, flops
    of_step, devices = flops.matrix_flops(program, *arguments) / steps, jax.devices()
    chip = chips.chip_of(devices[0].device_kind)

    def columns(rate: float) -> dict:
        share = {"mfu": round(rate * of_step / (chip.flops * len(devices)), 4)} if chip else {}
        return {"flops_per_second": float(f"{rate * of_step:.4g}"), **share}
    return columns


def described_speed(row: dict) -> str:
    """The speed at the end, from the last row of the log."""
    if "flops_per_second" not in row:
        return ""
    share = f" (MFU {row['mfu']:.1%})" if "mfu" in row else ""
    return f", at {row['flops_per_second'] / 1e9:,.4g} GFLOP/s{share}, {row['data_wait']:.1%} of it waiting for data"


def picture_of(run: "RunFolder", step: int) -> Path:
    """The path of the sample grid of a training step."""
    return run.samples / f"step_{step:08d}.png"


def draw_curves(run: "RunFolder", parts: "build.Training") -> None:
    """Draws the plots of a finished run from its log; effective_weight.json is written last."""
    from diffusion.io.files import atomic_write
    from diffusion.io.processes import is_primary
    from diffusion.io.writers import read_rows
    if is_primary():
        from diffusion.io import plots  # imports matplotlib, which takes half a second
        rows = read_rows(run.metrics)
        plots.plot_loss(rows, run.path / "loss.png")
        plots.plot_loss_by_noise(rows, run.path / "loss_by_noise.png", parts.log_snr_edges)
        curve = parts.effective_weight and {k: v.tolist() for k, v in parts.effective_weight().items()}
        plots.plot_effective_weight(rows, run.path / "effective_weight.png", parts.log_snr_edges, curve)
        atomic_write(run.path / "effective_weight.json", json.dumps(curve))
