"""The optimizer: an optax chain, and its learning rate as a function of the step."""
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from diffusion.errors import ConfigError, require
from diffusion.parallel.sharding import name_of
from diffusion.typing import Array, Params


def learning_rate(peak: float, *, warmup_steps: float, decay: Literal["constant", "cosine", "linear", "inverse_sqrt"],
                  total_steps: int, reference_steps: int = 0) -> optax.Schedule:
    """Linear warm-up from 0 over `warmup_steps`, then constant, or a half cosine or a line to 0 at `total_steps`.

    inverse_sqrt: peak / sqrt(max(step / reference_steps, 1)) times the warm-up (Karras et al. 2024, "EDM2", as
    `learning_rate_schedule` of their code).
    """
    if decay == "inverse_sqrt":
        def rate(step):
            warm = jnp.minimum(step / warmup_steps, 1.0) if warmup_steps else 1.0
            return peak * warm / jnp.sqrt(jnp.maximum(step / reference_steps, 1.0))
        return rate
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


def norm_of(grad: Params, known_norm: tuple[Params, Array]) -> Array:
    """The global norm, which is not computed again for a gradient whose norm the step knows: known_norm = (gradient,
    norm)."""
    of, norm = known_norm
    same = [*map(id, jax.tree.leaves(of))] == [*map(id, jax.tree.leaves(grad))]
    return norm if same else optax.tree.norm(grad)


def clip(clip_norm: float) -> optax.GradientTransformation:
    """optax.clip_by_global_norm, with `norm_of`."""
    def update(grad, state, params=None, *, known_norm=((), None), **_):
        norm = norm_of(grad, known_norm)
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


def radam(schedule: optax.Schedule, *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8,
          clip_norm: float = 1.0,
          ) -> optax.GradientTransformation:
    """RAdam (Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond"), after clipping as in adam.

    Adam whose first steps, while the second moment is of few gradients, are smaller or not divided by it.
    """
    _check(beta1, beta2, epsilon, clip_norm)
    return optax.chain(clip(clip_norm), optax.radam(schedule, b1=beta1, b2=beta2, eps=epsilon))


def muon(schedule: optax.Schedule, decayed: Callable[[Params], Any], *,
         momentum: float = 0.95,   # of the gradients of matrices, with Nesterov's step
         update_rms: float = 0.2,  # root of the mean square of a matrix' update / the learning rate, as Adam's (Liu et
                                   # al. 2025); 0: sqrt(max(1, outputs / inputs)) times an orthogonal matrix (Jordan)
         beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, clip_norm: float = 1.0,
         mu_dtype: Literal["float32", "bfloat16"] = "float32", weight_decay: float = 0.0,
         ) -> optax.GradientTransformation:
    """Muon (Jordan 2024; Liu et al. 2025, "Muon is Scalable for LLM Training"), after clipping as in adam.

    The update is the momentum of each kernel, as a matrix of its inputs and outputs, made orthogonal by 5 Newton-Schulz
    iterations. Vectors, numbers and embeddings are trained by Adam with Nesterov's step, without weight decay.
    """
    _check(beta1, beta2, epsilon, clip_norm)
    require(0 <= momentum < 1, "momentum", momentum, "must lie in [0, 1) (Jordan 2024: 0.95).")
    require(update_rms >= 0, "update_rms", update_rms, "must not be negative (Liu et al. 2025: 0.2).")
    require(weight_decay >= 0, "weight_decay", weight_decay, "must not be negative (Liu et al. 2025: 0.1).")
    return optax.chain(clip(clip_norm), optax.contrib.muon(
        schedule, beta=momentum, eps=epsilon, weight_decay=weight_decay, weight_decay_mask=decayed, mu_dtype=mu_dtype,
        adam_b1=beta1, adam_b2=beta2, consistent_rms=update_rms or None, muon_weight_dimension_numbers=as_matrices))


def as_matrices(params: Params) -> Any:
    """Which axes of a parameter are inputs and outputs: all but the last, and the last; None for those that are no
    kernels."""
    def axes(path, x):
        if x.ndim < 2 or name_of(path).endswith("/embedding"):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)
    return jax.tree_util.tree_map_with_path(axes, params)


class ScheduleFree(optax.GradientTransformationExtraArgs):
    """An optimizer whose parameters are where gradients are taken, and not those to evaluate."""

    def evaluated(self, state: optax.OptState, params: Params) -> Params:
        """The parameters that averages follow."""
        is_its = lambda x: isinstance(x, optax.contrib.ScheduleFreeState)  # noqa: E731
        (found,) = (x for x in jax.tree.leaves(state, is_leaf=is_its) if is_its(x))
        return optax.contrib.schedule_free_eval_params(found, params)


def schedule_free(schedule: optax.Schedule, decayed: Callable[[Params], Any], *, beta1: float = 0.9,
                  beta2: float = 0.999, epsilon: float = 1e-8, clip_norm: float = 1.0, weight_decay: float = 0.0,
                  ) -> optax.GradientTransformation:
    """Schedule-free AdamW (Defazio et al. 2024, "The Road Less Scheduled"), after clipping as in adam.

    Instead of a decay of the rate, the result is the running mean x of the iterates z; gradients are taken at y = beta1
    x + (1 - beta1) z. Averages follow x: ema.name=copy with ema.every="1 steps" is x itself. The raw parameters are y.
    """
    _check(beta1, beta2, epsilon, clip_norm)
    require(beta1 > 0, "beta1", beta1, "must be positive: y is between x and z (Defazio et al. 2024: 0.9).")
    require(weight_decay >= 0, "weight_decay", weight_decay, "must not be negative.")
    base = optax.chain(optax.scale_by_rms(decay=beta2, eps=epsilon, eps_in_sqrt=False, bias_correction=True),
                       optax.add_decayed_weights(weight_decay, decayed), optax.scale_by_learning_rate(schedule))
    return ScheduleFree(*optax.chain(clip(clip_norm), optax.contrib.schedule_free(base, schedule, b1=beta1)))


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
    of = optax.with_extra_args_support(optimizer)

    def update(grad, state, params=None, **known):
        changes, state = of.update(grad, state, params, **known)
        return jax.tree_util.tree_map_with_path(lambda path, x: jnp.zeros_like(x) if any(
            re.search(pattern, name_of(path)) for pattern in untrained) else x, changes), state
    return of._replace(update=update)


OPTIMIZERS = {"adam": adam, "adamw": adamw, "radam": radam, "muon": muon, "schedule_free": schedule_free}
