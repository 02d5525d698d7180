"""One optimizer step as a pure function, and its compilation over a mesh."""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from diffusion.core.losses import Loss
from diffusion.core.parameterization import Denoiser
from diffusion.core.streams import example_keys
from diffusion.data.augment import random_flip, to_float
from diffusion.train import ema, sharding
from diffusion.train.state import State
from diffusion.typing import Array


class StepMetrics(NamedTuple):
    """What one step reports, as arrays that stay on the device until the log is written."""
    loss: Array           # scalar, mean over the global batch
    grad_norm: Array      # scalar, before clipping
    learning_rate: Array  # scalar
    bad_log_snr: Array    # scalar, log-SNR of the first example whose loss is not finite; NaN where there is none
    bin_loss: Array       # [K] sum of the losses of the examples in each log-SNR bin
    bin_count: Array      # [K] number of those examples


def make_train_step(*, loss: Loss, denoiser: Denoiser, optimizer: optax.GradientTransformation,
                    learning_rate: optax.Schedule, ema_decay: Callable[[Array], Array], seed: int, flip: bool,
                    conditional: bool, accumulate: int, log_snr_edges: np.ndarray):
    """train_step(state, batch, dataset) -> (state, StepMetrics); pure, to be compiled by `compile_train_step`.

    batch: image uint8 [B,H,W,C], label int32 [B], position int32 [B]; or index int32 [B] and position, to be looked up
    in `dataset`, which is then dict(image [N,H,W,C], label [N]). The gradient is the mean over the batch, in
    `accumulate` micro-batches. `ema_decay(step)` is the factor of the old average. All draws are keyed by (seed,
    stream, step, position).
    """
    # XLA's CPU backend runs the gradient of a convolution inside a loop about 12 times slower than outside of it.
    unroll = jax.default_backend() == "cpu"

    def micro_loss(params, step, batch):
        keys = lambda stream: example_keys(jax.random.key(seed), stream, step, batch["position"])  # noqa: E731
        x0 = to_float(batch["image"])
        if flip:
            x0 = random_flip(keys("flip"), x0)
        cond = batch["label"] if conditional else None
        per_example, aux = loss(keys("loss"), denoiser(params, keys("dropout")), x0, cond)
        return jnp.sum(per_example), (per_example, aux.log_snr)

    def gradient(params, step, batch):
        """Sums over the batch: the gradient, and [B] losses with their log-SNRs."""
        (_, per_example), grad = jax.value_and_grad(micro_loss, has_aux=True)(params, step, batch)
        return grad, per_example

    def accumulated(params, step, batch):
        # Row i goes to micro-batch i % accumulate, so that each device keeps its rows.
        split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch)

        def body(total, micro_batch):
            grad, per_example = gradient(params, step, micro_batch)
            return jax.tree.map(jnp.add, total, grad), per_example

        grad, per_example = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), split, unroll=unroll)
        return grad, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1), per_example)

    def train_step(state: State, batch: dict[str, Array], dataset: dict[str, Array] | None = None):
        if dataset is not None:
            rows = batch["index"]
            batch = {"image": dataset["image"][rows], "label": dataset["label"][rows], "position": batch["position"]}
        size = batch["position"].shape[0]
        grad, (per_example, log_snr) = (accumulated if accumulate > 1 else gradient)(state.params, state.step, batch)
        grad = jax.tree.map(lambda g: g / size, grad)
        updates, opt_state = optimizer.update(grad, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = ema.update(state.ema, params, ema_decay(state.step + 1))

        bad = ~jnp.isfinite(per_example)
        bins = jnp.clip(jnp.searchsorted(log_snr_edges, log_snr) - 1, 0, len(log_snr_edges) - 2)
        one_hot = jax.nn.one_hot(bins, len(log_snr_edges) - 1)
        metrics = StepMetrics(
            loss=jnp.mean(per_example), grad_norm=optax.tree.norm(grad), learning_rate=learning_rate(state.step),
            bad_log_snr=jnp.where(bad.any(), log_snr[jnp.argmax(bad)], jnp.nan),
            bin_loss=jnp.where(bad, 0, per_example) @ one_hot, bin_count=one_hot.sum(0))
        return State(step=state.step + 1, params=params, ema=average, opt_state=opt_state), metrics

    return train_step


def compile_train_step(train_step, *, mesh: Mesh, state_shardings, steps: int):
    """The jitted step with donated state; with `steps` > 1 one dispatch runs that many, over batches [steps, B, ...].

    Its metrics have a leading axis [steps].
    """
    unroll = jax.default_backend() == "cpu"  # as in make_train_step

    def dispatch(state, batches, dataset):
        return jax.lax.scan(lambda s, b: train_step(s, b, dataset), state, batches, unroll=unroll)

    def single(state, batches, dataset):
        state, metrics = train_step(state, jax.tree.map(lambda x: x[0], batches), dataset)
        return state, jax.tree.map(lambda x: x[None], metrics)

    return jax.jit(dispatch if steps > 1 else single, donate_argnums=0,
                   out_shardings=(state_shardings, sharding.replicated(mesh)))


def create_state(make_state: Callable[[Array], State], *, mesh: Mesh, seed: int) -> tuple[Callable[[], State], State]:
    """(create, abstract): the state as shapes with shardings, and a function that makes it, sharded from the start.

    `make_state(key)` builds the state; nothing is allocated until `create()` is called.
    """
    key = jax.random.key(seed)
    shapes = jax.eval_shape(make_state, key)
    shardings = sharding.of_state(shapes, mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return (lambda: jax.jit(make_state, out_shardings=shardings)(key)), abstract
