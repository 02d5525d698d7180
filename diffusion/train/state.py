"""The training state: all that changes from step to step, and nothing else."""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffusion.train.averages import Average
from diffusion.typing import Array, Params

ONLINE = "online"  # the parameter set of plain training
RAW = "raw"        # the name, among the averages', of the online parameters themselves


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class State:
    """Randomness is not in it: draws are functions of the seed and the step (core/streams.py)."""
    step: Array                            # int32 scalar, updates done
    params: dict[str, Params]              # by set, float32
    averages: dict[str, Params]            # by name, each like the set it follows, possibly in bfloat16
    opt_state: dict[str, optax.OptState]   # by set
    statistics: Any = ()                   # what the time density has learned from the losses, () if it learns nothing


def init_state(params: Mapping[str, Params], optimizers: Mapping[str, optax.GradientTransformation],
               averages: Mapping[str, Average], statistics: Any = ()) -> State:
    """The state before the first step; averages start at the parameters. statistics: `TimeDensity.init()`."""
    return State(step=jnp.zeros((), jnp.int32), params=dict(params), averages=averages_of(params, averages),
                 opt_state={name: optimizer.init(params[name]) for name, optimizer in optimizers.items()},
                 statistics=statistics)


def averages_of(params: Mapping[str, Params], averages: Mapping[str, Average]) -> dict[str, Params]:
    """The averages of a training that starts at the parameters."""
    return {name: jax.tree.map(lambda x: jnp.array(x, average.dtype), params[average.of])
            for name, average in averages.items()}


def weights_of(state: State, name: str) -> Params:
    """The average of that name, or the online parameters for "raw", `in_float32`."""
    return in_float32(state.params[ONLINE] if name == RAW else state.averages[name])


def in_float32(params: Params) -> Params:
    """The parameters as they are, but for those kept in bfloat16."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, params)
