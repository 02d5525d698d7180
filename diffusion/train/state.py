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
    ema: Params                 # float32, like params; what samples are drawn with
    opt_state: optax.OptState
    density: Any = ()           # what the time density has learned of the losses, () if nothing


def init_state(params: Params, optimizer: optax.GradientTransformation, density: Any = ()) -> State:
    """The state before the first step; the moving average starts at the parameters. density: `TimeDensity.init()`."""
    return State(step=jnp.zeros((), jnp.int32), params=params, ema=jax.tree.map(jnp.copy, params),
                 opt_state=optimizer.init(params), density=density)
