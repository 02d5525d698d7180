"""Conditions of a network by name: their declaration, their dropout in training, and values that are left out.

A `Cond` maps names to arrays [B, ...], such as {"label": int32 [B]}; {} is no condition. A network declares those that
it takes as {name: Condition}.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import ConfigError, shown
from diffusion.typing import Array, Cond, Keys


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition: an array of `dtype` and `shape` for each example."""
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    null: Any = None     # the value for "not given", a number or an array that broadcasts to `shape`, which training's
                         # dropout and the weak side of guidance insert; None: it is always given
    default: Any = None  # the value where a program has none, such as zeros; None: it must be given

    def rows(self, value: Any, count: int) -> np.ndarray:
        """[count, *shape] of one value."""
        return np.broadcast_to(np.asarray(value, self.dtype), (count, *self.shape))


Declared = Mapping[str, Condition]


def labels(number: int) -> dict[str, Condition]:
    """The conditions of a network with an embedding of `number` labels: "label", int32; none for 0."""
    return {"label": Condition(dtype="int32")} if number else {}


def examples(declared: Declared, count: int) -> dict[str, np.ndarray]:
    """Zeros for each condition, of `count` examples."""
    return {name: condition.rows(0, count) for name, condition in declared.items()}


def complete(declared: Declared, cond: Cond | None, count: int, who: str = "the network") -> dict[str, Any]:
    """The conditions of `count` examples as the network takes them, with defaults for those left out.

    Raises ConfigError that names the network (`who`) and the condition: for one that it does not declare, one of
    another shape or type, and one that is left out and has no default.
    """
    cond = {} if cond is None else cond
    if not isinstance(cond, Mapping):
        raise ConfigError(f"Conditions are given by name, such as {{\"label\": [3, 7]}}, but got {shown(cond)}.")
    for name in cond:
        if name not in declared:
            raise ConfigError(f"The condition {name!r} was given, but {who} does not declare it. It declares: "
                              f"{', '.join(declared) or 'none'}.")
    found = {}
    for name, condition in declared.items():
        if name not in cond:
            if condition.default is None:
                raise ConfigError(f"{who[0].upper() + who[1:] if who.startswith('the ') else who} needs the condition "
                                  f"{name!r}, {condition.dtype} {[count, *condition.shape]}, which has no default and "
                                  "was not given.")
            found[name] = condition.rows(condition.default, count)
            continue
        value = _array(cond[name], name)
        if np.shape(value) != (count, *condition.shape) or not _same_kind(value, condition.dtype):
            raise ConfigError(f"The condition {name!r} of {who} must be {condition.dtype} {[count, *condition.shape]}, "
                              f"but it is {value.dtype} {list(np.shape(value))}.")
        found[name] = value.astype(condition.dtype)
    return found


def _array(value: Any, name: str) -> Any:
    """The value of a condition as an array. Raises ConfigError for lists of different lengths and words."""
    try:
        array = value if hasattr(value, "astype") else np.asarray(value)
    except ValueError:
        array = None
    if array is None or array.dtype.kind in "OSU":
        raise ConfigError(f"The condition {name!r} must be an array of numbers, but it is {shown(value)}.")
    return array


def _same_kind(value: Any, dtype: str) -> bool:
    """Whether the conversion loses nothing but precision: no float becomes an integer."""
    return np.can_cast(value.dtype, dtype, "same_kind")


def check_record(declared: Declared, record: Mapping[str, Any], who: str, where: str) -> None:
    """Raises ConfigError if an example of the data, `record` of arrays without B, lacks a condition without default, or
    holds one of another shape or type."""
    for name, condition in declared.items():
        if name in record:
            complete({name: condition}, {name: np.asarray(record[name])[None]}, 1, who)
        elif condition.default is None:
            raise ConfigError(f"{who} needs the condition {name!r}, which has no default, and {where} does not hold "
                              f"it. It holds: {', '.join(record)}.")


def nulls(declared: Declared) -> dict[str, Any]:
    """The values for "not given" of the conditions that have one."""
    return {name: condition.null for name, condition in declared.items() if condition.null is not None}


def with_null(cond: Cond, values: Mapping[str, Any]) -> dict[str, Array]:
    """The conditions with those of `values` replaced, for every example."""
    return {name: jnp.broadcast_to(jnp.asarray(values[name], jnp.result_type(x)), x.shape) if name in values else x
            for name, x in cond.items()}


def dropped(cond: Cond, rates: Mapping[str, float], values: Mapping[str, Any],
            keys: Callable[[str], Keys]) -> dict[str, Array]:
    """Each condition of `rates` replaced by its value in `values`, for each example with that probability (Ho &
    Salimans 2022, "Classifier-Free Guidance", Algorithm 1). keys: stream -> [B]; the stream is "NAME_dropout"."""
    found = dict(cond)
    for name, rate in rates.items():
        hide = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys(f"{name}_dropout"))  # noqa: B023
        x = found[name]
        found[name] = jnp.where(hide.reshape(-1, *[1] * (x.ndim - 1)), with_null({name: x}, values)[name], x)
    return found
