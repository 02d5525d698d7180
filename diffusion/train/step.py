"""One training step as a pure function, and its compilation over a mesh.

The order of a step: the gradient of each update that is due, at the parameters before the step; clipping and the
optimizers; the averages; the network's own projection of its parameters.
"""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from diffusion.core import time_densities
from diffusion.core.losses import Bind, Inputs, LossAux
from diffusion.core.numerics import normal
from diffusion.core.parameterization import Denoiser
from diffusion.core.streams import example_keys, step_key
from diffusion.parallel import sharding
from diffusion.train import gradients
from diffusion.train.averages import Average
from diffusion.train.couplings import Coupling
from diffusion.train.optimizer import with_schedule_of
from diffusion.train.spikes import SpikeState
from diffusion.train.state import ONLINE, State, in_float32
from diffusion.train.updates import Update, check_updates, due, loss_of, rate_of
from diffusion.typing import Array, Params

BAD = 8  # number of examples named in the report of a bad step


class StepMetrics(NamedTuple):
    """The metrics of one step, as arrays that stay on the device until the log is written. Those of the first update,
    unless they say otherwise."""
    loss: Array           # scalar, mean over the global batch
    grad_norm: Array      # scalar, before clipping
    learning_rate: Array  # scalar
    counted: Array        # scalar, 1 if the first update was due; else its other metrics are 0
    bad_position: Array   # [BAD] int32, batch positions of the first examples with a non-finite loss; then -1
    bad_log_snr: Array    # [BAD] of the same examples; then NaN
    skipped: Array        # scalar, 1 if the step was skipped, or an update of it (`spikes.skip_spikes`)
    bin_loss: Array       # [K] sum of the losses of the examples in each log-SNR bin
    bin_count: Array      # [K] number of those examples
    bin_weight: Array     # [K] estimate of w(lambda) p(lambda) in each bin, for the squared error in eps
    others: dict[str, dict[str, Array]]  # of each other update by its set: loss, grad_norm, learning_rate, counted


def make_train_step(*, updates: Sequence[Update], denoisers: Mapping[str, Denoiser],
                    density: time_densities.TimeDensity, stratified: bool, averages: Mapping[str, Average], seed: int,
                    prepare: Callable[..., Any], accumulate: int, log_snr_edges: np.ndarray,
                    skip_nonfinite: bool = False, unroll: bool = False, gather: bool = False, images_before: int = 0,
                    coupling: Coupling | None = None,
                    project: Mapping[str, Callable[[Params], Params]] | None = None):
    """train_step(state, batch, dataset=None, frozen=None, made=None) -> (state, StepMetrics); pure, to be compiled by
    `compile_train_step`.

    batch: a record of arrays [B, ...] by name, such as image uint8 [B,H,W,C] and label int32 [B], with position int32
    [B]; or index int32 [B] and position, to be looked up in `dataset`, the record of all N examples. prepare(record,
    keys of a stream) -> (x0, cond, mask), with augmentation and dropout of conditions (`kinds.base.preparation`).
    frozen: parameters by name that losses may ask for and nothing trains. made: which of the updates are made; None:
    all. The gradient is the mean over the batch, in `accumulate` micro-batches. All draws are keyed by (seed, stream,
    step, position); those of an update that does not train the online set have streams of their own, named STREAM/SET.

    denoisers: of each trained and each frozen set; an average has its set's. density: of the times t, drawn
    independently per example or, if `stratified`, evenly over the whole batch. coupling: pairs data and noise over the
    whole batch.
    skip_nonfinite: a step whose losses or gradients are not finite changes nothing but `step` and the schedules' count.
    unroll: micro-batches in unrolled code instead of a loop, see `sharding.on_cpu`. gather: see `gradients.gathers`.
    images_before: see `averages.Rule`.
    project: by set, applied to its parameters at the end of a step that trained it.
    """
    followed = {name: average.of for name, average in averages.items()}

    def draw_u(keys, step, positions, size):
        if not stratified:
            return time_densities.independent(keys("time"), density.uniforms)
        u = time_densities.stratified(step_key(jax.random.key(seed), "time", step), positions, size)
        return u if density.uniforms == 1 else jnp.concatenate(
            [u, time_densities.independent(keys("time"), density.uniforms)[:, 1:]], axis=1)

    def keys_of(step, positions):
        return lambda stream: example_keys(jax.random.key(seed), stream, step, positions)

    def prepared(keys, batch):
        return prepare({name: value for name, value in batch.items() if name != "position"}, keys)

    def coupled(state, batch):
        """The batch prepared as a whole, with the noise that the coupling gives each example."""
        keys = keys_of(state.step, batch["position"])
        x0, cond, mask = prepared(keys, batch)
        if mask is not None:
            raise ValueError("A coupling pairs whole examples: it does not take data with a mask of valid entries.")
        x0, noise, cond = coupling(x0, normal(keys("loss"), x0.shape[1:], x0.dtype), cond)
        return {"x0": x0, "noise": noise, "cond": cond, "position": batch["position"]}

    def micro_loss(trained, update, state, frozen, batch, size):
        keys = keys_of(state.step, batch["position"])
        x0, cond, mask = prepared(keys, batch) if coupling is None else (batch["x0"], batch["cond"], None)
        own = keys if update.trains == ONLINE else lambda stream: keys(f"{stream}/{update.trains}")
        others = {name: in_float32(average) for name, average in state.averages.items()} | state.params | frozen
        bind = Bind(denoisers | {name: denoisers[of] for name, of in followed.items()},
                    jax.lax.stop_gradient(others) | {update.trains: trained})
        process = denoisers[update.trains](trained).process
        times = density.draw(draw_u(own, state.step, batch["position"], size), process, state.statistics, state.step)
        inputs = Inputs(x0, cond, jax.lax.stop_gradient(times), own, state.step, batch.get("noise"), mask)
        per_example, aux = loss_of(update, bind, inputs)
        return jnp.sum(per_example), (per_example, aux._asdict() if isinstance(aux, LossAux) else dict(aux))

    def gradient(update, state, frozen, batch, size):
        """The gradient, summed over the batch, and the [B] losses with their auxiliary values."""
        params = state.params[update.trains]
        (_, per_example), grad = jax.value_and_grad(micro_loss, has_aux=True)(
            gradients.gathered(params) if gather else params, update, state, frozen, batch, size)
        return grad, per_example

    def accumulated(update, state, frozen, batch, size):
        # Row i goes to micro-batch i % accumulate, so that each device keeps its rows.
        split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch)

        def body(total, micro_batch):
            grad, per_example = gradient(update, state, frozen, micro_batch, size)
            return jax.tree.map(jnp.add, total, grad), per_example

        zeros = jax.tree.map(jnp.zeros_like, state.params[update.trains])
        grad, per_example = jax.lax.scan(body, zeros, split, unroll=unroll)
        return grad, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1), per_example)

    def binned(per_example, aux):
        """Sums of losses, counts and effective weights per log-SNR bin; only for weights are the outer bins bounded."""
        k, size = len(log_snr_edges) - 1, len(per_example)
        if "log_snr" not in aux:
            return dict.fromkeys(("bin_loss", "bin_count", "bin_weight"), jnp.zeros(k))
        bins = jnp.clip(jnp.searchsorted(log_snr_edges, aux["log_snr"]) - 1, 0, k - 1)
        one_hot = jax.nn.one_hot(bins, k)
        within = (aux["log_snr"] >= log_snr_edges[0]) & (aux["log_snr"] <= log_snr_edges[-1])
        weight = aux.get("weight", jnp.zeros(size))
        return {"bin_loss": jnp.where(jnp.isfinite(per_example), per_example, 0) @ one_hot,
                "bin_count": one_hot.sum(0),
                "bin_weight": jnp.where(within, weight, 0) @ one_hot / size / np.diff(log_snr_edges)}

    def bad_examples(position, per_example, aux):
        size = len(per_example)
        (bad,) = jnp.nonzero(~jnp.isfinite(per_example), size=BAD, fill_value=size)
        log_snr = aux.get("log_snr", jnp.full(size, jnp.nan))
        return {"bad_position": jnp.take(position, bad, mode="fill", fill_value=-1),
                "bad_log_snr": jnp.take(log_snr, bad, mode="fill", fill_value=jnp.nan)}

    def train_step(state: State, batch: dict[str, Array], dataset: dict[str, Array] | None = None,
                   frozen: Mapping[str, Params] | None = None, made: tuple[bool, ...] | None = None):
        frozen = dict(frozen or {})
        check_updates(updates, list(state.params), followed, list(frozen))
        if dataset is not None:
            batch = {name: x[batch["index"]] for name, x in dataset.items()} | {"position": batch["position"]}
        size = batch["position"].shape[0]
        position, batch = batch["position"], batch if coupling is None else coupled(state, batch)
        params, opt_state, learned, told, first = dict(state.params), dict(state.opt_state), state.statistics, {}, ()
        sums = None  # [B], not finite where the loss of an example is not, in any update
        for update in (u for u, now in zip(updates, made or (True,) * len(updates)) if now):
            name = update.trains
            grad, (per_example, aux) = (accumulated if accumulate > 1 else gradient)(update, state, frozen, batch, size)
            grad, norm = gradients.mean(grad, size, gather=gather)
            changes, opt_state[name] = optax.with_extra_args_support(update.optimizer).update(
                grad, state.opt_state[name], state.params[name], known_norm=(grad, norm))
            params[name] = optax.apply_updates(state.params[name], changes)
            told[name] = {"loss": jnp.mean(per_example), "grad_norm": norm,
                          "learning_rate": rate_of(update, state.opt_state[name]), "counted": jnp.ones((), jnp.int32)}
            first, sums = first or (per_example, aux), per_example if sums is None else sums + per_example
            if update is updates[0] and jax.tree.leaves(learned):
                order = jnp.argsort(position)  # the kept losses must not depend on the row order
                learned = density.update(learned, aux["t"][order], aux["term"][order])
        follow = params | {u.trains: u.optimizer.evaluated(opt_state[u.trains], params[u.trains]) for u in updates
                           if hasattr(u.optimizer, "evaluated")}
        kept = {name: average.rule.update(
            state.averages[name], follow[average.of], state.step + 1, batch_size=size, images_before=images_before,
            key=step_key(jax.random.key(seed), _stream(name), state.step)) for name, average in averages.items()}
        for name in told:
            if project and name in project:
                params[name] = project[name](params[name])

        new = State(step=state.step + 1, params=params, averages=kept, opt_state=opt_state, statistics=learned)
        total = sum(row["loss"] + row["grad_norm"] for row in told.values())
        skipped = ~jnp.isfinite(total) if skip_nonfinite else jnp.zeros((), bool)
        if skip_nonfinite:
            counted = {name: with_schedule_of(opt_state[name], old) for name, old in state.opt_state.items()}
            old = replace(state, step=new.step, opt_state=counted)
            new = jax.tree.map(lambda o, n: jnp.where(skipped, o, n), old, new)

        none = {"loss": jnp.zeros(()), "grad_norm": jnp.zeros(()), "learning_rate": jnp.asarray(jnp.nan),
                "counted": jnp.zeros((), jnp.int32)}
        rows = {update.trains: told.get(update.trains, none) for update in updates}
        bins = binned(*first)
        if not told.get(updates[0].trains):
            bins = jax.tree.map(jnp.zeros_like, bins)
        for name in told:
            if isinstance(opt_state[name], SpikeState):
                skipped |= opt_state[name].skipped
        metrics = StepMetrics(**rows.pop(updates[0].trains), others=rows, skipped=skipped.astype(jnp.int32),
                              **bad_examples(position, sums, first[1]), **bins)
        return new, metrics

    return train_step


def _stream(average: str) -> str:
    """The stream of an average's rounding."""
    return average if average == "ema" else f"average/{average}"


def compile_train_step(train_step, *, mesh: Mesh, state_shardings, steps: int, updates: Sequence[Update] = ()):
    """program(step) -> the jitted training step of the updates that are due after `step` steps, with donated state.

    It takes (state, batches [steps, B, ...], dataset, frozen) and makes `steps` steps; its metrics have a leading axis
    [steps]. Each set of due updates is compiled once. updates: those of `make_train_step`; (): all in each step.
    """
    unroll, compiled = sharding.on_cpu(mesh), {}

    def dispatch(made, state, batches, dataset, frozen):
        if len(set(made)) == 1 and steps > 1:
            return jax.lax.scan(lambda s, b: train_step(s, b, dataset, frozen, made[0]), state, batches, unroll=unroll)
        told = []
        for i, now in enumerate(made):
            state, metrics = train_step(state, jax.tree.map(lambda x: x[i], batches), dataset, frozen, now)
            told.append(metrics)
        return state, jax.tree.map(lambda *rows: jnp.stack(rows), *told)

    def program(step: int):
        made = tuple(due(updates, step + i) or None for i in range(steps))
        if made not in compiled:
            def run(state, batches, dataset, frozen=None):
                return dispatch(made, state, batches, dataset, frozen)
            compiled[made] = jax.jit(run, donate_argnums=0, out_shardings=(state_shardings, sharding.replicated(mesh)))
        return compiled[made]

    return program


def create_state(init: Callable[[Array], Params], make_state: Callable[[Params], State], *, mesh: Mesh, seed: int,
                 rules: Sequence[sharding.Rule] = ()) -> tuple[Callable[[], State], State]:
    """(create, abstract): the state as shapes with shardings, and a function that makes it, sharded from the start.

    `init(key)` draws the parameters and `make_state(params)` builds the state; nothing is allocated until `create()` is
    called. rules: as `sharding.of_state`. For an accelerator the parameters are drawn on the host where JAX has a CPU
    back end: they are a CPU's to the bit, and the program of all draws compiles in seconds there, against more than 25
    on a GPU.
    """
    key = jax.random.key(seed)
    shapes = jax.eval_shape(lambda key: make_state(init(key)), key)
    shardings = sharding.of_state(shapes, mesh, rules)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)

    def create() -> State:
        if sharding.on_cpu(mesh) or (host := host_device()) is None:
            return jax.jit(lambda key: make_state(init(key)), out_shardings=shardings)(key)
        with jax.default_device(host):
            params = jax.jit(init)(jax.random.key(seed))
        return jax.jit(make_state, out_shardings=shardings, donate_argnums=0)(sharding.place(params, shardings.params))

    return create, abstract


def host_device() -> jax.Device | None:
    """A CPU device of this process; None if JAX has no CPU back end, as with JAX_PLATFORMS=cuda."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
