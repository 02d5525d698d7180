"""The training state: all that changes from step to step, and nothing else."""
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffusion.typing import Array, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class State:
    """Randomness is not in it: draws are functions of the seed and the step (core/streams.py)."""
    step: Array                 # int32 scalar, updates done
    params: Params              # float32
    ema: Params                 # like params, possibly in bfloat16; samples are drawn with it
    opt_state: optax.OptState
    density: Any = ()           # the state of the time density, () if it learns nothing


def init_state(params: Params, optimizer: optax.GradientTransformation, density: Any = (),
               ema_dtype: str = "float32") -> State:
    """The state before the first step; the moving average starts at the parameters. density: `TimeDensity.init()`."""
    return State(step=jnp.zeros((), jnp.int32), params=params, ema=average_of(params, ema_dtype),
                 opt_state=optimizer.init(params), density=density)


def in_dtype(params: Params, dtype: str) -> Params:
    """The parameters in this dtype, copied only where theirs differs."""
    return jax.tree.map(lambda x: x if x.dtype == dtype else x.astype(dtype), params)


def average_of(params: Params, dtype: str) -> Params:
    """A copy of the parameters in the average's dtype."""
    return jax.tree.map(lambda x: jnp.array(x, dtype), params)
