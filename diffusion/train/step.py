"""One optimizer step as a pure function, and its compilation over a mesh."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from diffusion.core import time_densities
from diffusion.core.losses import Loss, LossAux
from diffusion.core.parameterization import Denoiser
from diffusion.core.streams import example_keys, step_key
from diffusion.data.augment import random_flip, to_float
from diffusion.parallel import sharding
from diffusion.train.averages import Average
from diffusion.train.optimizer import with_schedule_of
from diffusion.train.state import ONLINE, State
from diffusion.typing import Array

BAD = 8  # number of examples named in the report of a bad step


class StepMetrics(NamedTuple):
    """The metrics of one step, as arrays that stay on the device until the log is written."""
    loss: Array           # scalar, mean over the global batch
    grad_norm: Array      # scalar, before clipping
    learning_rate: Array  # scalar
    bad_position: Array   # [BAD] int32, batch positions of the first examples with a non-finite loss; then -1
    bad_log_snr: Array    # [BAD] of the same examples; then NaN
    skipped: Array        # scalar, 1 if the step was skipped
    bin_loss: Array       # [K] sum of the losses of the examples in each log-SNR bin
    bin_count: Array      # [K] number of those examples
    bin_weight: Array     # [K] estimate of w(lambda) p(lambda) in each bin, for the squared error in eps


def make_train_step(*, loss: Loss, denoiser: Denoiser, density: time_densities.TimeDensity, stratified: bool,
                    optimizer: optax.GradientTransformation, learning_rate: optax.Schedule,
                    averages: Mapping[str, Average], seed: int, flip: bool, num_classes: int,
                    label_dropout: float = 0.0, accumulate: int, log_snr_edges: np.ndarray,
                    skip_nonfinite: bool = False, unroll: bool = False, images_before: int = 0):
    """train_step(state, batch, dataset) -> (state, StepMetrics); pure, to be compiled by `compile_train_step`.

    batch: image uint8 [B,H,W,C], label int32 [B], position int32 [B]; or index int32 [B] and position, to be looked up
    in `dataset`, which is then dict(image [N,H,W,C], label [N]). The gradient is the mean over the batch, in
    `accumulate` micro-batches. All draws are keyed by (seed, stream, step, position).

    density: of the times t, drawn independently per example or, if `stratified`, evenly over the whole batch.
    num_classes: 0 for an unconditional model. label_dropout: the probability that an example's label becomes
    num_classes, which means no label (Ho & Salimans 2022, "Classifier-Free Guidance", Algorithm 1).
    skip_nonfinite: a step whose loss or gradient is not finite changes nothing but `step` and the schedules' count.
    unroll: micro-batches in unrolled code instead of a loop, see `sharding.on_cpu`. images_before: see `averages.Rule`.
    """
    def draw_u(step, positions, size):
        if stratified:
            return time_densities.stratified(step_key(jax.random.key(seed), "time", step), positions, size)
        return time_densities.independent(example_keys(jax.random.key(seed), "time", step, positions))

    def micro_loss(params, state, batch, size):
        keys = lambda stream: example_keys(jax.random.key(seed), stream, state.step, batch["position"])  # noqa: E731
        x0 = to_float(batch["image"])
        if flip:
            x0 = random_flip(keys("flip"), x0)
        cond = batch["label"] if num_classes else None
        if num_classes and label_dropout:
            dropped = jax.vmap(lambda key: jax.random.bernoulli(key, label_dropout))(keys("label_dropout"))
            cond = jnp.where(dropped, num_classes, cond)
        diffusion = denoiser(params, keys("dropout"))
        times = density.draw(draw_u(state.step, batch["position"], size), diffusion.process, state.statistics)
        per_example, aux = loss(params, diffusion, x0, cond, jax.lax.stop_gradient(times), keys("loss"))
        return jnp.sum(per_example), (per_example, aux)

    def gradient(state, batch, size):
        """The gradient, summed over the batch, and the [B] losses with their LossAux."""
        (_, per_example), grad = jax.value_and_grad(micro_loss, has_aux=True)(state.params[ONLINE], state, batch, size)
        return grad, per_example

    def accumulated(state, batch, size):
        # Row i goes to micro-batch i % accumulate, so that each device keeps its rows.
        split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch)

        def body(total, micro_batch):
            grad, per_example = gradient(state, micro_batch, size)
            return jax.tree.map(jnp.add, total, grad), per_example

        grad, per_example = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, state.params[ONLINE]), split, unroll=unroll)
        return grad, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1), per_example)

    def binned(per_example, aux: LossAux):
        """Sums of losses, counts and effective weights per log-SNR bin; only for weights are the outer bins bounded."""
        k, size = len(log_snr_edges) - 1, len(per_example)
        bins = jnp.clip(jnp.searchsorted(log_snr_edges, aux.log_snr) - 1, 0, k - 1)
        one_hot = jax.nn.one_hot(bins, k)
        within = (aux.log_snr >= log_snr_edges[0]) & (aux.log_snr <= log_snr_edges[-1])
        return {"bin_loss": jnp.where(jnp.isfinite(per_example), per_example, 0) @ one_hot,
                "bin_count": one_hot.sum(0),
                "bin_weight": jnp.where(within, aux.weight, 0) @ one_hot / size / np.diff(log_snr_edges)}

    def train_step(state: State, batch: dict[str, Array], dataset: dict[str, Array] | None = None):
        if dataset is not None:
            rows = batch["index"]
            batch = {"image": dataset["image"][rows], "label": dataset["label"][rows], "position": batch["position"]}
        size = batch["position"].shape[0]
        grad, (per_example, aux) = (accumulated if accumulate > 1 else gradient)(state, batch, size)
        grad = jax.tree.map(lambda g: g / size, grad)
        updates, opt_state = optimizer.update(grad, state.opt_state[ONLINE], state.params[ONLINE])
        params, opt_state = {ONLINE: optax.apply_updates(state.params[ONLINE], updates)}, {ONLINE: opt_state}
        followed = {name: average.rule.update(
            state.averages[name], params[average.of], state.step + 1, batch_size=size, images_before=images_before,
            key=step_key(jax.random.key(seed), _stream(name), state.step)) for name, average in averages.items()}
        learned = state.statistics
        if jax.tree.leaves(learned):
            order = jnp.argsort(batch["position"])  # the kept losses must not depend on the row order
            learned = density.update(learned, aux.t[order], aux.term[order])

        new = State(step=state.step + 1, params=params, averages=followed, opt_state=opt_state, statistics=learned)
        mean, norm = jnp.mean(per_example), optax.tree.norm(grad)
        skipped = ~jnp.isfinite(mean + norm) if skip_nonfinite else jnp.zeros((), bool)
        if skip_nonfinite:
            old = replace(state, step=new.step, opt_state=with_schedule_of(opt_state, state.opt_state))
            new = jax.tree.map(lambda o, n: jnp.where(skipped, o, n), old, new)

        (bad,) = jnp.nonzero(~jnp.isfinite(per_example), size=BAD, fill_value=size)
        metrics = StepMetrics(
            loss=mean, grad_norm=norm, skipped=skipped.astype(jnp.int32),
            learning_rate=jnp.asarray(learning_rate(state.step)),  # a constant schedule gives a plain number
            bad_position=jnp.take(batch["position"], bad, mode="fill", fill_value=-1),
            bad_log_snr=jnp.take(aux.log_snr, bad, mode="fill", fill_value=jnp.nan), **binned(per_example, aux))
        return new, metrics

    return train_step


def _stream(average: str) -> str:
    """The stream of an average's rounding."""
    return average if average == "ema" else f"average/{average}"


def compile_train_step(train_step, *, mesh: Mesh, state_shardings, steps: int):
    """The jitted step with donated state; with `steps` > 1 one dispatch runs that many, over batches [steps, B, ...].

    Its metrics have a leading axis [steps].
    """
    unroll = sharding.on_cpu(mesh)

    def dispatch(state, batches, dataset):
        return jax.lax.scan(lambda s, b: train_step(s, b, dataset), state, batches, unroll=unroll)

    def single(state, batches, dataset):
        state, metrics = train_step(state, jax.tree.map(lambda x: x[0], batches), dataset)
        return state, jax.tree.map(lambda x: x[None], metrics)

    return jax.jit(dispatch if steps > 1 else single, donate_argnums=0,
                   out_shardings=(state_shardings, sharding.replicated(mesh)))


def create_state(make_state: Callable[[Array], State], *, mesh: Mesh, seed: int,
                 rules: Sequence[sharding.Rule] = ()) -> tuple[Callable[[], State], State]:
    """(create, abstract): the state as shapes with shardings, and a function that makes it, sharded from the start.

    `make_state(key)` builds the state; nothing is allocated until `create()` is called. rules: as `sharding.of_state`.
    """
    key = jax.random.key(seed)
    shapes = jax.eval_shape(make_state, key)
    shardings = sharding.of_state(shapes, mesh, rules)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return (lambda: jax.jit(make_state, out_shardings=shardings)(key)), abstract
