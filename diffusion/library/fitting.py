"""Training on data in memory, without a run folder."""
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion.core.losses import Loss
from diffusion.data import pipeline
from diffusion.errors import DivergedError, FieldError, require
from diffusion.kinds.array import ArraySpec
from diffusion.kinds.base import preparation
from diffusion.kinds.image import ImageSpec
from diffusion.library.arguments import (
    check_averages,
    check_dropout,
    check_models,
    check_params,
    dataset,
    differing,
    whole,
)
from diffusion.library.model import Model
from diffusion.library.objectives import Objective, objective
from diffusion.library.streams import Examples, is_source
from diffusion.parallel import sharding
from diffusion.train import gradients
from diffusion.train import step as step_lib
from diffusion.train.averages import Average, Power
from diffusion.train.optimizer import hold
from diffusion.train.state import ONLINE, State, init_state
from diffusion.train.updates import Update, check_updates
from diffusion.typing import Array, Params

EMA = {"ema": Average(rule=Power.of_width(0.1))}  # forgets the start at once, and needs no length
_EDGES = np.linspace(-20.0, 20.0, 11)  # log-SNR bins of the metrics


def fit(model: Model | Mapping[str, Model], objective: Objective | Loss | Sequence[Update] | str = "denoising", *,
        data: Array | Mapping[str, Array] | Sequence[Mapping[str, Any]], batch_size: int, steps: int,
        optimizer: optax.GradientTransformation | None = None, seed: int = 0,
        condition_dropout: Mapping[str, float] | None = None, accumulate: int = 1,
        averages: Mapping[str, Average] = EMA,
        params: Mapping[str, Params] | None = None, frozen: Mapping[str, Params] | None = None,
        state: State | None = None, learning_rate: optax.Schedule | None = None,
        report: Callable[[int, dict[str, Any]], None] | None = None) -> State:
    """Trains for `steps` steps and returns the state: its params["online"] and its averages, for `draw`.

    Args:
      model: the model; or, for an objective with several sets, the model of each trained and each frozen set by name.
      objective: an `Objective`; or its loss, or the name of one, with uniform times; or a list of `Update`.
      data: x_0 [N, ...] as floats, standardised by the caller, or as uint8 images, which are scaled to [-1, 1]; or a
        mapping with "x0", the network's conditions by name, such as "label", and "mask" (bool [N, ...]: the valid
        entries) if there is one. Copied to every device. Or an object with `len(data)` and `data[i]`, such mappings of
        one example (`library.streams.Examples`), which is read in the same order, ahead in a thread.
      optimizer: of the online set, unless the objective is a list of updates, which have their own.
      condition_dropout: the probability, by name, that a condition is hidden, as its `null`, such as {"label": 0.1}.
      accumulate: micro-batches of a step. averages: kept besides the parameters, by name.
      params: the parameters at the start, by set, instead of drawn ones. frozen: parameters that are only read.
      state: of an earlier call, to go on from: `steps` counts from its step, and all draws are those of one long call.
      learning_rate: the optimizer's schedule, for `report` only.
      report: called with the step and the step's metrics, as numbers, after each step; slows training down.

    The result is a function of the arguments only; a batch is the same for any number of devices. Raises DataError for
    data that do not fit the model or are not finite, FieldError for impossible arguments, and DivergedError if a loss
    becomes NaN or infinite.
    """
    models = dict(model) if isinstance(model, Mapping) else {ONLINE: model}
    check_models(models)
    found = _objective(objective, models, optimizer, learning_rate)
    check_averages(averages)
    frozen, params = dict(frozen or {}), dict(params or {})
    trained = [name for name in models if name not in frozen]
    check_updates(found.loss, trained, {name: average.of for name, average in averages.items()}, list(frozen))
    for field, given in (("frozen", frozen), ("params", params)):
        for name in given:
            require(name in models, field, name, "has no model: give model={\"online\": ..., NAME: ...}, with one for "
                    f"each set. Those are: {', '.join(models)}.")
    untrained = {name: getattr(models[name].network, "untrained", ()) for name in trained}
    updates = [replace(update, optimizer=hold(update.optimizer, untrained[update.trains])) for update in found.loss]
    mesh, main = next(iter(models.values())).mesh, models[ONLINE if ONLINE in models else trained[0]]
    for name, one in models.items():
        require(set(one.conditions) <= set(main.conditions), "model", name, f"takes the conditions "
                f"{', '.join(one.conditions)}, but the data are prepared for a model that takes "
                f"{', '.join(main.conditions) or 'none'}.")
    for field, given in (("frozen", frozen), ("params", params)):
        for name, values in given.items():
            check_params(f"{field}[{name!r}]", values, models[name])
    spec = main.spec
    require(getattr(spec, "measured", True), "spec", spec, "has no mean and deviation yet: give both.")
    source = Examples(data, main) if is_source(data) else None
    records = dataset(data, main) if source is None else source.first
    seed, steps, accumulate = whole("seed", seed, 0), whole("steps", steps, 1), whole("accumulate", accumulate, 1)
    require(report is None or callable(report), "report", report, "is a function of (step, metrics).")
    pieces = sharding.batch_shards(mesh) * accumulate
    batch_size = whole("batch_size", batch_size, 1)
    require(batch_size % pieces == 0, "batch_size", batch_size, f"must be a multiple of {pieces}: devices times "
            "accumulate.")
    rates = condition_dropout or {}
    check_dropout(rates, main)
    spec = spec or (ImageSpec(shape=main.shape) if "image" in records else
                    ArraySpec(shape=main.shape, mean=(0.0,), deviation=(1.0,)))

    def init(key: Array) -> dict[str, Params]:
        start = {name: models[name].init(jax.random.fold_in(key, i) if i else key) for i, name in enumerate(trained)}
        return start | jax.tree.map(jnp.asarray, params)

    def make_state(start: dict[str, Params]) -> State:
        return init_state(start, {update.trains: update.optimizer for update in updates}, averages,
                          found.density.init())

    create, abstract = step_lib.create_state(init, make_state, mesh=mesh, seed=seed, rules=main.rules)
    made = step_lib.make_train_step(
        updates=updates, denoisers={name: one.denoiser for name, one in models.items()}, density=found.density,
        stratified=found.stratified, averages=averages, seed=seed, accumulate=accumulate,
        prepare=preparation(spec, main.conditions, rates), log_snr_edges=_EDGES, unroll=sharding.on_cpu(mesh),
        gather=gradients.gathers(mesh), coupling=found.coupling,
        project={name: models[name].project for name in trained if models[name].project})
    program = step_lib.compile_train_step(made, mesh=mesh, steps=1, updates=updates,
                                          state_shardings=jax.tree.map(lambda x: x.sharding, abstract))
    if state is not None:
        require(isinstance(state, State), "state", type(state).__name__, "must be the state that `fit` returned.")
        if differences := differing(state, abstract):
            raise FieldError("state", f"of step {int(state.step)}", "does not fit this training, of the same model, "
                             f"optimizer and averages: {'; '.join(differences)}.")
    first = 0 if state is None else int(state.step)
    everywhere = sharding.replicated(mesh)
    shapes = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(  # noqa: E731
        np.shape(x), jnp.result_type(x), sharding=everywhere), tree)
    index = np.zeros((1, batch_size), np.int32)
    batch = {"index": index} if source is None else {
        name: np.broadcast_to(value, (1, batch_size, *value.shape)) for name, value in records.items()}
    # Before any compilation, so that a loss or a network that is wrong fails at once; the trace is kept.
    records = None if source else records
    program(first).eval_shape(abstract, shapes(batch | {"position": index}), shapes(records), shapes(frozen))
    state = create() if state is None else jax.tree.map(jnp.array, state)  # the step overwrites it
    records, frozen = jax.device_put(records, everywhere), jax.device_put(frozen, everywhere)
    shards = {"batch_size": batch_size, "seed": seed, "shard_index": jax.process_index(),
              "shard_count": jax.process_count()}
    rows = source.batches(**shards) if source else pipeline.index_batches(len(next(iter(records.values()))), **shards)
    rows.set_state({"next_example": first * batch_size})
    with contextlib.closing(rows):
        return _train(rows, range(first, first + steps), program, state, records, frozen, mesh, report)


def _train(rows: pipeline.Batches, steps: range, program: Callable, state: State, records: Any, frozen: Any, mesh: Any,
           report: Callable | None) -> State:
    """The state after these steps. Raises DivergedError for a loss that is not finite."""
    pending = []
    for n in steps:
        batch = sharding.place_batch({name: value[None] for name, value in next(rows).items()}, mesh, leading=1)
        state, metrics = program(n)(state, batch, records, frozen)
        pending.append((n + 1, metrics))
        if report or len(pending) == _CHECKED or n + 1 == steps.stop:
            for at, found_there in jax.device_get(pending):
                row = _row(found_there)
                if not np.isfinite(sum(value for name, value in row.items() if name.startswith(("loss", "grad_norm")))):
                    raise DivergedError(f"Training stopped at step {at}: the loss is {row['loss']} and the gradient "
                                        f"norm {row['grad_norm']}. Lower the learning rate, or clip the gradient "
                                        "(optax.clip_by_global_norm).")
                if report:
                    report(at, row)
            pending.clear()
    return state


_CHECKED = 50  # steps between two looks at the losses


def _objective(given: Any, models: Mapping[str, Model], optimizer: Any, learning_rate: Any) -> Objective:
    """The objective with a list of updates."""
    main = models.get(ONLINE, next(iter(models.values())))
    if not isinstance(given, Objective):
        require(isinstance(given, (str, list, tuple)) or callable(given), "objective", given, "must be an Objective, a "
                "loss or the name of one, or a list of Update.")
        given = objective(main, given)
    if not callable(given.loss):
        for name, value in (("optimizer", optimizer), ("learning_rate", learning_rate)):
            require(value is None, name, value, "is given by each Update of the objective.")
        return replace(given, loss=list(given.loss))
    require(optimizer is not None, "optimizer", optimizer, "is missing: give one, such as optax.adam(1e-3).")
    return replace(given, loss=[Update(loss=given.loss, optimizer=optimizer, learning_rate=learning_rate)])


def _row(metrics: step_lib.StepMetrics) -> dict[str, float]:
    """The metrics of a step as numbers, those of updates after the first as NAME/SET."""
    row = {name: float(getattr(metrics, name)[0]) for name in ("loss", "grad_norm", "learning_rate")}
    for name, other in metrics.others.items():
        row |= {f"{key}/{name}": float(other[key][0]) for key in ("loss", "grad_norm", "learning_rate")}
    return row
