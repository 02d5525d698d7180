"""The interface of kinds of data, and the examples that a training step or a likelihood takes from them."""
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp

from diffusion.core import conditions
from diffusion.core.conditions import Declared
from diffusion.errors import ConfigError
from diffusion.typing import Array, Cond, Keys

Record = Mapping[str, Array]  # one batch of stored examples: arrays [B, ...] by name


class Example(NamedTuple):
    """What a loss or a likelihood is computed of, for B examples."""
    x0: Array         # float32 [B, ...]
    cond: Cond        # all that the record holds besides x0


class Spec(Protocol):
    """One kind of data: its shape, and the way from stored records to x0."""
    shape: tuple[int, ...]  # of one x0

    def prepare(self, record: Record, keys: Callable[[str], Keys] | None = None) -> Example:
        """The examples of a batch, under jit: scaled, and augmented by the keys [B] of each named stream; without
        `keys` not augmented."""


# (record, keys of each stream or None) -> Example, with the conditions that the network takes
Prepare = Callable[[Record, Callable[[str], Keys] | None], Example]


def preparation(spec: Spec, declared: Declared, rates: Mapping[str, float] | None = None) -> Prepare:
    """`spec.prepare` for a network that takes the conditions `declared`: others are left out, and those that the record
    lacks get their default. rates: the probability, by name, with which training hides a condition."""
    rates, nulls = rates or {}, conditions.nulls(declared)

    def prepare(record: Record, keys: Callable[[str], Keys] | None = None) -> Example:
        x0, given = spec.prepare(record, keys)
        cond: dict[str, Any] = {}
        for name, one in declared.items():
            if name not in given and one.default is None:
                raise ConfigError(f"The network needs the condition {name!r}, which has no default, and the data do "
                                  f"not hold it. They hold: {', '.join(given) or 'none'}.")
            cond[name] = given[name] if name in given else jnp.asarray(one.rows(one.default, len(x0)))
        return Example(x0, cond if keys is None else conditions.dropped(cond, rates, nulls, keys))
    return prepare
