"""One optimizer step as a pure function, and its compilation over a mesh."""
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from diffusion.core import time_densities
from diffusion.core.losses import Loss, LossAux
from diffusion.core.parameterization import Denoiser
from diffusion.core.streams import example_keys, step_key
from diffusion.parallel import sharding
from diffusion.train import ema
from diffusion.train.optimizer import with_schedule_of
from diffusion.train.state import State
from diffusion.typing import Array, Params

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
                    ema_share: Callable[[Array], Array], seed: int, prepare: Callable[..., Any], accumulate: int,
                    log_snr_edges: np.ndarray, skip_nonfinite: bool = False, unroll: bool = False):
    """train_step(state, batch, dataset) -> (state, StepMetrics); pure, to be compiled by `compile_train_step`.

    batch: a record of arrays [B, ...] by name, such as image uint8 [B,H,W,C] and label int32 [B], with position int32
    [B]; or index int32 [B] and position, to be looked up in `dataset`, the record of all N examples. prepare(record,
    keys of a stream) -> (x0, cond, mask), with augmentation and dropout of conditions (`kinds.base.preparation`). The
    gradient is the mean over the batch, in `accumulate` micro-batches. `ema_share(step)` is the weight of the new
    parameters in the average. All draws are keyed by (seed, stream, step, position).

    density: of the times t, drawn independently per example or, if `stratified`, evenly over the whole batch.
    skip_nonfinite: a step whose loss or gradient is not finite changes nothing but `step` and the schedules' count.
    unroll: micro-batches in unrolled code instead of a loop, see `sharding.on_cpu`.
    """
    def draw_u(step, positions, size):
        if stratified:
            return time_densities.stratified(step_key(jax.random.key(seed), "time", step), positions, size)
        return time_densities.independent(example_keys(jax.random.key(seed), "time", step, positions))

    def micro_loss(params, state, batch, size):
        keys = lambda stream: example_keys(jax.random.key(seed), stream, state.step, batch["position"])  # noqa: E731
        x0, cond, mask = prepare({name: value for name, value in batch.items() if name != "position"}, keys)
        diffusion = denoiser(params, keys("dropout"))
        times = density.draw(draw_u(state.step, batch["position"], size), diffusion.process, state.density)
        per_example, aux = loss(params, diffusion, x0, cond, jax.lax.stop_gradient(times), keys("loss"),
                                *([] if mask is None else [mask]))
        return jnp.sum(per_example), (per_example, aux)

    def gradient(state, batch, size):
        """The gradient, summed over the batch, and the [B] losses with their LossAux."""
        (_, per_example), grad = jax.value_and_grad(micro_loss, has_aux=True)(state.params, state, batch, size)
        return grad, per_example

    def accumulated(state, batch, size):
        # Row i goes to micro-batch i % accumulate, so that each device keeps its rows.
        split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch)

        def body(total, micro_batch):
            grad, per_example = gradient(state, micro_batch, size)
            return jax.tree.map(jnp.add, total, grad), per_example

        grad, per_example = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, state.params), split, unroll=unroll)
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
            batch = {name: x[batch["index"]] for name, x in dataset.items()} | {"position": batch["position"]}
        size = batch["position"].shape[0]
        grad, (per_example, aux) = (accumulated if accumulate > 1 else gradient)(state, batch, size)
        grad = jax.tree.map(lambda g: g / size, grad)
        updates, opt_state = optimizer.update(grad, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = ema.update(state.ema, params, ema_share(state.step + 1),
                             step_key(jax.random.key(seed), "ema", state.step))
        learned = state.density
        if jax.tree.leaves(learned):
            order = jnp.argsort(batch["position"])  # the kept losses must not depend on the row order
            learned = density.update(learned, aux.t[order], aux.term[order])

        new = State(step=state.step + 1, params=params, ema=average, opt_state=opt_state, density=learned)
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
