"""The programs that `main --mode=NAME` runs, put together from built parts, the run folder and the disk."""
import collections
import dataclasses
import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffusion import build, pretrained
from diffusion import config as config_lib
from diffusion import evaluate as evaluation
from diffusion.build import advice
from diffusion.data.sources import take
from diffusion.errors import DivergedError, Interrupted
from diffusion.io import images, run_folder
from diffusion.io.checkpoint import Checkpoints
from diffusion.io.files import atomic_write, check_can_be_written
from diffusion.io.processes import is_primary, primary_says, say
from diffusion.io.progress import Progress, duration, of_chains
from diffusion.io.run_folder import open_run
from diffusion.io.writers import MetricsWriter, read_rows
from diffusion.likelihood.vlb import rate_distortion
from diffusion.train import loop
from diffusion.train.interrupts import Interrupts
from diffusion.train.state import average_of, in_dtype
from diffusion.train.watchdog import Watchdog


def train(config: ConfigDict, workdir: Path, started: float, init_from: str | None = None) -> None:
    """Trains into `workdir`, or goes on where a run of the same config stopped there: `training`, alone."""
    with Interrupts() as interrupts:
        loop.alone(training(config, workdir, started, interrupts, init_from))


def training(config: ConfigDict, workdir: Path, started: float, interrupts: Interrupts, init_from: str | None = None):
    """A training into `workdir`, or its rest, that leaves its steps to whoever runs it, as `loop.steps` does.

    `started` is time.perf_counter() at the program's start. init_from: the source (`pretrained.load`) of the weights
    that a new run starts from. Raises the errors of `diffusion.errors`.
    """
    source = None
    if init_from is not None and not run_folder.is_run(workdir):
        source = pretrained.load(init_from)
        pretrained.check_same(config, source.config, init_from, pretrained.NETWORK)
    model = build.model(config)
    generate = build.generate(config, model)
    parts = build.training(config, model)
    build.check_memory(config, model, parts.abstract_state, rows=config.train.batch_size // config.train.accumulate,
                       key="train.batch_size")
    for note in advice.of_training(config):
        say(note)
    if source is not None:
        weights = source.params(pretrained.shared(config, source.config, model.abstract_params))
    extractor = evaluation.load_extractor(config) if parts.plan.evaluate_every else None
    run = open_run(workdir, config.to_dict(), resumable_keys=build.RESUMABLE_KEYS, defaults=config_lib.defaults())
    plan = parts.plan
    with Checkpoints(run.checkpoints, **parts.retention, say=say) as checkpoints:
        if (restored := checkpoints.restore_newest(parts.abstract_state, parts.data)) is not None:
            state, clock = restored
            clock = loop.restored_clock(clock, plan.batch_size)
            if clock.images != clock.step * plan.batch_size:
                plan = plan.after(clock)
                parts = dataclasses.replace(parts, train_step=parts.train_step_after(clock))
                say(f"note: config.train.batch_size was another until now. The images that are done, {clock.images:,}, "
                    "count as they were; the schedules of the learning rate go on in steps.")
            say(f"resuming {run.path} at step {clock.step:,}")
            for note in advice.of_another_rate(config, run.before, parts.rate_of, clock.step):
                say(note)
        else:
            state, clock = parts.create_state(), loop.Clock()
            if source is not None:
                params = state.params | weights
                state = dataclasses.replace(state, params=params, ema=average_of(params, config.ema.dtype))
                say(f"starting from the weights of {init_from}")
                for key in pretrained.differences(config, source.config, ("process", "prediction")):
                    say(f"note: {key} is not that of {init_from}: the network has to learn it anew")

        def draw_samples(step: int, state) -> None:
            x = np.concatenate(list(generate(in_dtype(state.ema, "float32"), config.seed, 0, config.sample.preview)))
            if is_primary():
                images.save_png(picture_of(run, step), images.grid(images.to_uint8(x)))

        finished = clock.step >= plan.total
        due = restored is not None and (finished or clock.step % plan.sample_every == 0)
        if primary_says(due and not picture_of(run, clock.step).exists()):  # it was stopped after the checkpoint
            draw_samples(clock.step, state)
        if finished:
            if not (run.path / "effective_weight.json").exists():
                draw_curves(run, parts)
            longer = run_folder.command(run.path, f"--config.train.duration={2 * clock.step} steps")
            say(f"{run.path} is finished: {clock.step:,} of {plan.total:,} steps are done. To go on, lengthen "
                f"config.train.duration:\n  {longer}")
            return

        evaluator = extractor and evaluation.prepare(config, model, extractor, run.path / ".features")

        def evaluate(step: int, state) -> None:
            evaluation.write(run.path / "evaluations", *evaluator(in_dtype(state.ema, "float32"), config.seed,
                                                                  evaluation.sampling(config, workdir, step)))

        with (MetricsWriter(run.metrics, run.tensorboard, from_step=clock.step) as writer,
              Progress(plan.total, unit="step", initial=clock.step, images_per_unit=plan.batch_size,
                       ahead=loop.IN_FLIGHT * plan.steps_per_dispatch) as progress,
              Watchdog(config.train.stall_seconds) as watchdog):
            try:
                yield from loop.steps(
                    plan=plan, train_step=parts.train_step, state=state, clock=clock, data=parts.data,
                    dataset=parts.dataset, mesh=model.mesh, started=started, write_row=writer.write,
                    draw_samples=draw_samples, progress=progress, interrupts=interrupts, watchdog=watchdog,
                    examples_of=parts.examples_of, evaluate=evaluate,
                    save=lambda step, state, clock: checkpoints.save(
                        step, state, parts.data, dataclasses.asdict(clock), clock.score))
            except DivergedError as error:
                checkpoints.wait()
                raise DivergedError(f"{error} Last good checkpoint: {checkpoints.describe()}.") from None
    if clock.step < plan.total:
        raise Interrupted(f"stopped at step {clock.step:,} of {plan.total:,}, which is saved in {run.checkpoints}: the "
                          "same command goes on from it", interrupts.exit_code)
    draw_curves(run, parts)
    say(f"""
trained {plan.total:,} steps in {duration(clock.seconds)}; in {run.path}:
  samples/step_{plan.total:08d}.png   the last grid of samples
  loss.png, loss_by_noise.png   the loss curve, and the loss by noise level
  effective_weight.png   how much each noise level counts in the loss
Next, draw more of them, or look at README.md there:
  {run_folder.command(run.path, "--mode=sample", "--num_samples=256")}""")


def picture_of(run: run_folder.RunFolder, step: int) -> Path:
    """The picture of the samples of a training's step."""
    return run.samples / f"step_{step:08d}.png"


def draw_curves(run: run_folder.RunFolder, parts: build.Training) -> None:
    """The pictures of a finished run, of the rows of its log; effective_weight.json is the last."""
    if is_primary():
        from diffusion.io import plots  # imports matplotlib: half a second that only its users pay
        rows = read_rows(run.metrics)
        plots.plot_loss(rows, run.path / "loss.png")
        plots.plot_loss_by_noise(rows, run.path / "loss_by_noise.png", parts.log_snr_edges)
        curve = parts.effective_weight and {k: v.tolist() for k, v in parts.effective_weight().items()}
        plots.plot_effective_weight(rows, run.path / "effective_weight.png", parts.log_snr_edges, curve)
        atomic_write(run.path / "effective_weight.json", json.dumps(curve))


def sample(config: ConfigDict, workdir: Path, source: str | None = None, *, num_samples: int, seed: int, out: Path,
           step: int | None, classes: list[int] | None = None) -> None:
    """Draws `num_samples` images into `out`, of the run in `workdir` or of another model, `source` (`pretrained.load`).

    classes: of the images, in turn; None: all that the model has. `config` is the model's but for what may be chosen,
    the sampler. `step`: of a run, the checkpoint; default the newest. The weights of a run are the averaged ones.
    """
    if source is None:
        open_run(workdir, config.to_dict(), resumable_keys=build.RESUMABLE_KEYS, read_only=True,
                 defaults=config_lib.defaults())
    model, read = pretrained.open_model(config, source or workdir, checkpoint=step)
    generate = build.generate(config, model, classes)
    for note in advice.of_sampling(config):
        say(note)
    images.check_samples_folder(out)
    params = read()
    progress, report = of_chains(num_samples, batch=config.sample.batch_size,
                                 steps=len(build.grid_of(config, model)(params)))
    with progress:
        batches = map(images.to_uint8, generate(params, seed, 0, num_samples, report))
        if is_primary():
            images.save_samples(out, batches, count=num_samples)
        else:  # every process computes its share
            collections.deque(batches, maxlen=0)
    say(f"{num_samples:,} images, grid.png and samples.npz are in {out}")


def likelihood(config: ConfigDict, workdir: Path, source: str | None = None, *, num_examples: int | None, seed: int,
               out: Path, step: int | None) -> None:
    """Bits per dimension of the first `num_examples` images of config.data (None: all), by config.likelihood, into the
    file `out`, JSON, with a plot beside it for the terms of a bound. Other arguments as in `sample`."""
    model, read = pretrained.open_model(config, source or workdir, checkpoint=step)
    evaluator = build.evaluator(config, model, seed)
    check_can_be_written(out)
    images_of = build.training_images(config)
    params = read()
    count = min(num_examples or len(images_of), len(images_of))

    with Progress(count, unit="image") as progress:
        found = evaluator(params, lambda indices: take(images_of, indices), count, progress.update)
    found = {**found, "estimator": config.likelihood.to_dict(), "data": config.data.to_dict(), "seed": seed,
             "variance": config.sample.variance, "clip": config.sample.clip}
    if config.likelihood.estimator == "vlb":
        prior, vlb, x0_mse = (np.array(found["terms"][name]["mean"], float) for name in ("prior", "vlb", "x0_mse"))
        rate, distortion = rate_distortion(prior, vlb, x0_mse)
        times = build.likelihood_chain(config, model)[:, 0]
        found |= {"times": times.tolist(), "rate": rate.tolist(), "distortion": distortion.tolist()}
    if is_primary():
        atomic_write(out, json.dumps(found, indent=2))
        if config.likelihood.estimator == "vlb":
            from diffusion.io import likelihood_plots  # imports matplotlib
            likelihood_plots.plot_terms(times, vlb, rate, distortion, out.with_suffix(".png"))
    error = "?" if count == 1 else f"{found['standard_error']:.4f}"
    say(f"{found['bits_per_dim']:.4f} +- {error} bits/dim over {count:,} images of "
        f"{config.data.split} (standard error), by {config.likelihood.estimator}; its terms are in {out}")
