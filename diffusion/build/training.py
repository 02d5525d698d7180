"""Builds the parts of training other than the model: the data, the objective and the optimizer."""
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion.build import averages as averages_lib
from diffusion.build.conditions import dropout_rates
from diffusion.build.kinds import source as open_source
from diffusion.build.kinds import spec
from diffusion.build.models import Model
from diffusion.build.networks import check_times
from diffusion.build.objective import objective
from diffusion.build.rules import lookup, require_key
from diffusion.core.conditions import check_record
from diffusion.data import pipeline, sources
from diffusion.families import BY_NAME
from diffusion.kinds.base import preparation
from diffusion.parallel import sharding
from diffusion.train import durations, gradients, optimizer, spikes, step
from diffusion.train.averages import Average
from diffusion.train.loop import Clock, Durations
from diffusion.train.state import ONLINE, State, init_state
from diffusion.train.updates import Update

DECAYS = {"constant", "cosine", "linear", "inverse_sqrt"}
NONFINITE = {"stop", "skip"}
SCORES = {"loss", "grad_norm"}  # columns of metrics.jsonl

RATE_KEYS = ("optimizer.learning_rate", "optimizer.decay", "optimizer.decay_from", "optimizer.warmup", "train.duration",
             "train.batch_size")
# Keys that a resumed run may change, since the finished steps do not depend on them.
RESUMABLE_KEYS = (*RATE_KEYS, "train.*_every", "train.keep_*", "train.best_metric", "train.steps_per_dispatch",
                  "train.accumulate", "train.nonfinite", "train.stall_seconds", "network.remat", "mesh.*", "sample.*",
                  "likelihood.*", "evaluate.*", "data.dir", "data.on_device", "data.workers")
LOG_SNR_BINS = 10
UNROLLED = 256  # most steps x micro-batches of a dispatch that a CPU can compile


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """All parts of training except the data: the step, its optimizer and its schedule of events."""
    plan: Durations
    program: Callable[[int], Callable]  # step -> the compiled step of the updates that are due there
    program_after: Callable[[Clock], Callable]  # the same for a run that had another batch size before
    create_state: Callable[[], State]
    abstract_state: State
    log_snr_edges: np.ndarray         # [LOG_SNR_BINS + 1]
    effective_weight: Callable | None  # see Objective
    averages: dict[str, Average]
    snapshots: dict[str, float]       # the averages of which snapshots are taken, and their exponents
    rate_of: Callable                 # config -> the learning rate as a function of the step
    retention: dict                   # keyword arguments of Checkpoints


@dataclass(frozen=True, kw_only=True)
class Training(TrainingStep):
    """All parts of training other than the model."""
    data: Any                         # iterator over this process's rows
    dataset: dict | None              # arrays on the device, if the data lives there
    examples_of: Callable             # (images, positions) -> the examples there, see loop.training_steps


def training(config: ConfigDict, model: Model) -> Training:
    """Opens the data and builds the step. Raises ConfigError or DataError before anything is compiled."""
    c = config
    require_key(c.seed >= 0, "seed", c.seed, "must not be negative.")
    require_key(c.data.workers >= 0, "data.workers", c.data.workers, "must not be negative; 0: threads of this "
                "process.")
    check_batch(c.train, sharding.batch_shards(model.mesh))
    source = training_images(c)
    size = len(source)
    require_key(c.network.num_classes in (0, source.num_classes), "network.num_classes", c.network.num_classes,
                f"the data has labels of {source.num_classes} classes; it is that, or 0 for an unconditional model.")
    check_record(model.conditions, source[0], f"network.name = {c.network.name!r}", f"config.data ({c.data.name})")
    built = training_step(c, model, size)
    shards = dict(batch_size=c.train.batch_size, seed=c.seed, shard_index=jax.process_index(),
                  shard_count=jax.process_count())
    raw, load = sources.drawn(source, model.spec)
    require_key(not (load and c.data.on_device), "data.on_device", True, f"holds each example once, but data.crop = "
                f"{c.data.get('crop')!r} of data.kind = {c.data.kind!r} draws it anew each time that it is read.")
    if c.data.on_device:
        data, dataset = pipeline.index_batches(size, **shards), jax.device_put(
            pipeline.to_arrays(source), sharding.replicated(model.mesh))
    else:
        data, dataset = pipeline.batches(raw, workers=c.data.workers, load=load, **shards), None
    return Training(**vars(built), data=data, dataset=dataset, examples_of=lambda images, positions: pipeline.examples(
        images + positions.astype(np.int64), size=size, seed=c.seed))


def training_step(config: ConfigDict, model: Model, epoch_size: int | None) -> TrainingStep:
    """The step for data of `epoch_size` examples; None: not known, so that nothing may be given in epochs."""
    c = config
    check_times(model.network, model.process, between_times=c.sample.between_times)
    loss, density, effective_weight = objective(c, model.process)
    check_batch(c.train, sharding.batch_shards(model.mesh))
    require_key(not sharding.on_cpu(model.mesh) or c.train.accumulate * c.train.steps_per_dispatch <= UNROLLED,
                "train.steps_per_dispatch", c.train.steps_per_dispatch, f"times train.accumulate is above {UNROLLED}: "
                "on a CPU each step and each micro-batch of a dispatch is compiled separately.")
    in_steps = partial(durations.to_steps, batch_size=c.train.batch_size, epoch_size=epoch_size)
    plan = make_durations(c.train, in_steps)

    optim, rate = check_optimizer(c, epoch_size, model.network), rate_of(c, epoch_size)
    kept = averages_lib.averages(c, epoch_size)
    averages_lib.check_lengths(c, kept, plan.total * c.train.batch_size)
    averages_lib.check_trained_weights(c)

    prepare = preparation(model.spec, model.conditions, dropout_rates(c, model.conditions))
    # Clipped where the ends are (nearly) infinite; values beyond fall into the first and last bins.
    edges = np.linspace(*(np.clip(float(model.process.log_snr(t)), -20.0, 20.0)
                          for t in (model.process.t_max, model.process.t_min)), LOG_SNR_BINS + 1)
    create, abstract = step.create_state(
        lambda key: {ONLINE: model.init(key)},
        lambda params: init_state(params, {ONLINE: optim}, kept, density.init()),
        mesh=model.mesh, rules=model.rules, seed=c.seed)

    updates = [Update(loss=loss, optimizer=optim, learning_rate=rate)]

    def program(images_before: int = 0):
        """The programs of the training step, each compiled at its first call. images_before: see `averages.Rule`."""
        made = step.make_train_step(
            updates=updates, density=density, stratified=c.loss.stratified,
            denoisers={ONLINE: model.denoiser} | {name: one.denoiser for name, one in model.frozen.items()},
            averages=kept, images_before=images_before, coupling=BY_NAME["coupling"].make(c.loss),
            project={ONLINE: model.project} if model.project else None,
            seed=c.seed, prepare=prepare, accumulate=c.train.accumulate,
            log_snr_edges=edges, skip_nonfinite=c.train.nonfinite == "skip", unroll=sharding.on_cpu(model.mesh),
            gather=gradients.gathers(model.mesh))
        return step.compile_train_step(made, mesh=model.mesh, steps=plan.steps_per_dispatch, updates=updates,
                                       state_shardings=jax.tree.map(lambda x: x.sharding, abstract))

    return TrainingStep(
        plan=plan, rate_of=partial(rate_of, epoch_size=epoch_size), create_state=create, abstract_state=abstract,
        log_snr_edges=edges, effective_weight=effective_weight, averages=kept,
        snapshots=averages_lib.snapshots(c, kept), retention=retention(c.train, in_steps),
        program=program(), program_after=lambda clock: program(clock.images - clock.step * c.train.batch_size))


def check_optimizer(c: ConfigDict, epoch_size: int | None, net: Any = None) -> Any:
    """The optimizer, which honours what the network says of its parameters. Raises ConfigError for it, or for what
    training does at a non-finite loss."""
    o = c.optimizer
    lookup(DECAYS, "optimizer.decay", o.decay)
    require_key(o.learning_rate > 0, "optimizer.learning_rate", o.learning_rate, "must be positive.")
    lookup(NONFINITE, "train.nonfinite", c.train.nonfinite)
    require_key(c.train.stall_seconds >= 0, "train.stall_seconds", c.train.stall_seconds, "must not be negative; 0: "
                "never.")
    untrained = getattr(net, "untrained", ())
    mask = partial(optimizer.decay_mask, never=(*getattr(net, "undecayed", ()), *untrained))
    found = BY_NAME["optimizer"].make(o, schedule=rate_of(c, epoch_size), decayed=mask)
    require_key(not (hasattr(found, "evaluated") and hasattr(net, "project")), "optimizer.name", o.name, "keeps two "
                f"sequences of parameters, of which network.name = {c.network.name!r} would normalise only one after "
                "each update. Choose another optimizer.")
    found = optimizer.hold(found, untrained)
    require_key(c.train.spike >= 0, "train.spike", c.train.spike, "is a number of standard deviations; 0 skips none.")
    return spikes.skip_spikes(found, c.train.spike) if c.train.spike else found


def rate_of(config: ConfigDict, epoch_size: int | None) -> Callable:
    """The learning rate as a function of the step."""
    o, in_steps = config.optimizer, partial(durations.to_steps, batch_size=config.train.batch_size,
                                            epoch_size=epoch_size)
    reference = in_steps(o.decay_from, key="optimizer.decay_from")
    require_key((reference > 0) == (o.decay == "inverse_sqrt"), "optimizer.decay_from", o.decay_from, "is where "
                "optimizer.decay = 'inverse_sqrt' begins, and \"0 steps\" for the others (Karras et al. 2024: 70k "
                "steps of 2048 images, for ImageNet-512).")
    return optimizer.learning_rate(o.learning_rate, decay=o.decay, reference_steps=reference,
                                   total_steps=in_steps(config.train.duration, key="train.duration"),
                                   warmup_steps=in_steps(o.warmup, key="optimizer.warmup"))


def training_images(config: ConfigDict, *, labelled: bool = False):
    """The data source of config.data, without labels if the model has no classes, unless they are asked for. Raises
    ConfigError or DataError if it is missing or does not match the config."""
    c, classes = config.data, config.network.num_classes
    source = open_source(config)
    spec(config).check(source, f"config.data ({c.name})")
    require_key(classes == 0 or source.num_classes <= classes, "network.num_classes", classes,
                f"the data has labels of {source.num_classes} classes; it is that, or 0 for an unconditional model.")
    kind = spec(config)
    if kind.needs_load(getattr(source, "encoded", False)):
        source = sources.Loaded(source, kind.load)
    return source if classes or labelled else sources.without_labels(source)


def check_batch(c: ConfigDict, shards: int) -> None:
    pieces = shards * c.accumulate
    require_key(c.accumulate >= 1, "train.accumulate", c.accumulate, "must be 1 (no accumulation) or more.")
    require_key(c.batch_size >= 1 and c.batch_size % pieces == 0, "train.batch_size", c.batch_size,
                f"must be a multiple of {pieces} = {shards} devices that share it x config.train.accumulate. The "
                f"nearest are {c.batch_size // pieces * pieces or pieces} and "
                f"{math.ceil((c.batch_size + 1) / pieces) * pieces}.")


def retention(c: ConfigDict, in_steps) -> dict:
    require_key(c.keep_checkpoints >= 1, "train.keep_checkpoints", c.keep_checkpoints, "must be 1 or more.")
    require_key(c.keep_best >= 0, "train.keep_best", c.keep_best, "must not be negative; 0 keeps none.")
    every = 0 if c.keep_every == "never" else in_steps(c.keep_every, key="train.keep_every")
    between = in_steps(c.checkpoint_every, key="train.checkpoint_every")
    require_key(every % between == 0, "train.keep_every", c.keep_every,
                f"must be a multiple of train.checkpoint_every ({c.checkpoint_every}), or \"never\".")
    return {"keep": c.keep_checkpoints, "every": every, "best": c.keep_best}


def make_durations(c: ConfigDict, in_steps) -> Durations:
    plan = Durations(batch_size=c.batch_size, steps_per_dispatch=c.steps_per_dispatch,
                total=in_steps(c.duration, key="train.duration"),
                score=lookup(SCORES, "train.best_metric", c.best_metric),
                **{name: in_steps(c[name], key=f"train.{name}")
                   for name in ("log_every", "sample_every", "checkpoint_every")})
    for name in ("evaluate_every", "snapshot_every"):
        if c[name] != "never":
            plan = replace(plan, **{name: in_steps(c[name], key=f"train.{name}")})
    if "step" not in c.duration:
        plan = replace(plan, images=plan.total * c.batch_size)
    require_key(c.steps_per_dispatch >= 1, "train.steps_per_dispatch", c.steps_per_dispatch, "must be 1 or more.")
    for name, steps in (("duration", plan.total), ("log_every", plan.log_every), ("sample_every", plan.sample_every),
                        ("checkpoint_every", plan.checkpoint_every), ("evaluate_every", plan.evaluate_every),
                        ("snapshot_every", plan.snapshot_every)):
        if steps is None:
            continue
        require_key(steps >= 1, f"train.{name}", c[name], "must be one step or more.")
        require_key(steps % c.steps_per_dispatch == 0, f"train.{name}", c[name],
                    f"is {steps} steps, which config.train.steps_per_dispatch = {c.steps_per_dispatch} does not "
                    "divide: samples, checkpoints and rows of the log are made between dispatches.")
    return plan
