"""The optimizer: an optax chain, and its learning rate as a function of the step."""
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from diffusion.errors import ConfigError, require
from diffusion.parallel.sharding import name_of
from diffusion.typing import Params


def learning_rate(peak: float, *, warmup_steps: int, decay: Literal["constant", "cosine", "linear"],
                  total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 over `warmup_steps`, then constant, or a half cosine or a line to 0 at `total_steps`."""
    if decay == "constant":
        # With a warm-up of 0 steps, optax would keep the initial learning rate, 0, for ever.
        return optax.warmup_constant_schedule(peak if warmup_steps == 0 else 0.0, peak, warmup_steps)
    if warmup_steps >= total_steps:
        raise ConfigError(f"config.optimizer.warmup ({warmup_steps} steps) is not shorter than config.train.duration "
                          f"({total_steps} steps), so that the {decay} decay has no room. Shorten the warm-up.")
    if decay == "linear":
        down = optax.linear_schedule(peak, 0.0, total_steps - warmup_steps)
        return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), down], [warmup_steps])
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps)


def with_schedule_of(new: optax.OptState, old: optax.OptState) -> optax.OptState:
    """`old` with the schedule counts of `new`, so that the rate stays a function of the step after a skipped one."""
    counts = lambda x: isinstance(x, optax.ScaleByScheduleState)  # noqa: E731
    return jax.tree.map(lambda n, o: n if counts(n) else o, new, old, is_leaf=counts)


def _check(beta1: float, beta2: float, epsilon: float, clip_norm: float) -> None:
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        require(0 <= beta < 1, name, beta, "must lie in [0, 1) (Kingma & Ba 2015: 0.9 and 0.999).")
    require(epsilon > 0, "epsilon", epsilon, "must be positive (Kingma & Ba 2015: 1e-8).")
    require(clip_norm >= 0, "clip_norm", clip_norm, "must not be negative; 0 turns clipping off.")


def clip(clip_norm: float) -> optax.GradientTransformation:
    """optax.clip_by_global_norm, which does not compute again the norm of a gradient whose norm the step knows, given
    as known_norm = (gradient, norm)."""
    def update(grad, state, params=None, *, known_norm=((), None), **_):
        of, norm = known_norm
        if [*map(id, jax.tree.leaves(of))] != [*map(id, jax.tree.leaves(grad))]:
            norm = optax.tree.norm(grad)
        return jax.tree.map(lambda g: jax.lax.select(
            norm < clip_norm, g, (g / norm.astype(g.dtype)) * clip_norm), grad), state
    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update) if clip_norm else optax.identity()


def adam(schedule: optax.Schedule, *,
         beta1: float = 0.9,
         beta2: float = 0.999,
         epsilon: float = 1e-8,
         clip_norm: float = 1.0,  # limit of the global gradient norm; 0: no clipping
         mu_dtype: Literal["float32", "bfloat16"] = "float32",  # precision of the first moment
         ) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015) after clipping the global gradient norm at `clip_norm`; 0: no clipping.

    mu_dtype: of the first moment; the second always has the parameters' float32, which it needs since the update
    divides by its square root.
    """
    _check(beta1, beta2, epsilon, clip_norm)
    return optax.chain(clip(clip_norm), optax.adam(schedule, b1=beta1, b2=beta2, eps=epsilon, mu_dtype=mu_dtype))


def adamw(schedule: optax.Schedule, decayed: Callable[[Params], Any], *,
          beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, clip_norm: float = 1.0,
          mu_dtype: Literal["float32", "bfloat16"] = "float32",
          weight_decay: float = 0.01,  # share of a parameter that a step at learning rate 1 takes away
          ) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), after clipping as in adam.

    decayed: parameters -> a tree of which are decayed (`decay_mask`).
    """
    _check(beta1, beta2, epsilon, clip_norm)
    require(weight_decay >= 0, "weight_decay", weight_decay, "must not be negative (Loshchilov & Hutter 2019: 0.01).")
    return optax.chain(clip(clip_norm), optax.adamw(schedule, b1=beta1, b2=beta2, eps=epsilon, mu_dtype=mu_dtype,
                                                     weight_decay=weight_decay, mask=decayed))


def decay_mask(params: Params, never: Sequence[str] = ()) -> Any:
    """Which parameters weight decay may shrink: matrices and kernels, not vectors and numbers (biases, scales of
    norms), nor those whose path one of the regular expressions `never` matches, such as embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.ndim >= 2 and not any(re.search(pattern, name_of(path)) for pattern in never), params)


def hold(optimizer: optax.GradientTransformation, untrained: Sequence[str]) -> optax.GradientTransformation:
    """The optimizer that never changes the parameters whose path one of the regular expressions matches; its state is
    the same."""
    if not untrained:
        return optimizer

    def update(grad, state, params=None, **known):
        changes, state = optax.with_extra_args_support(optimizer).update(grad, state, params, **known)
        return jax.tree_util.tree_map_with_path(lambda path, x: jnp.zeros_like(x) if any(
            re.search(pattern, name_of(path)) for pattern in untrained) else x, changes), state
    return optax.GradientTransformationExtraArgs(optimizer.init, update)


OPTIMIZERS = {"adam": adam, "adamw": adamw}
