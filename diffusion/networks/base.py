"""The interface of networks: what training, sampling and likelihoods call."""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax.numpy as jnp

from diffusion.core.conditions import Declared, examples
from diffusion.errors import ConfigError
from diffusion.typing import Array, Cond, Keys, Params

Heads = Mapping[str, Array]  # the outputs by name: "f" the prediction F, "variance" the second head's; each [B, ...]


class Network(Protocol):
    """A network as a pair of functions of its parameters, which it never keeps or changes.

    It may also have `project(params) -> params`, applied after each update; `untrained` and `undecayed`, regular
    expressions of the paths of parameters that no update changes, or that weight decay leaves alone; `sharding`, its
    rules (`parallel/sharding.py`); `spatial`, the number of axes of x before the channels; `check` and `check_times`.
    """
    cond: Declared  # the conditions that it takes

    def init(self, key: Array) -> Params:
        """New parameters."""

    def apply(self, params: Params, x: Array, c_noise: Array, cond: Cond, keys: Keys | None = None) -> Heads:
        """The heads of x [B, ...] at the noise c_noise [B], or [B, 2] of a network of two times; keys [B] given means
        that dropout is on."""


@dataclass(frozen=True, kw_only=True)
class ModuleNetwork:
    """A Flax Linen module, or another object with its `init` and `apply`, as a `Network`.

    The module's output is a mapping of heads, or one array, whose last axis holds the heads one after another.
    """
    module: Any
    shape: tuple[int, ...]                       # of one x
    cond: Declared
    heads: tuple[tuple[str, int], ...] = ()      # name and channels of each head
    times: int = 1                               # 2: c_noise is [B, 2], of t and r

    def init(self, key: Array) -> Params:
        c_noise = jnp.zeros((1,) if self.times == 1 else (1, self.times))
        return self.module.init(key, jnp.zeros((1, *self.shape)), c_noise, examples(self.cond, 1))["params"]

    def apply(self, params: Params, x: Array, c_noise: Array, cond: Cond, keys: Keys | None = None) -> Heads:
        return split(self.module.apply({"params": params}, x, c_noise, cond, keys), self.heads, x.shape)


def split(output: Array | Heads, heads: tuple[tuple[str, int], ...], shape: tuple[int, ...]) -> Heads:
    """The heads by name of a module's output for x of this shape [B, ...]. Raises ConfigError for another shape or
    type."""
    if isinstance(output, Mapping):
        if lacking := [name for name, _ in heads if name not in output]:
            raise ConfigError(f"The network returns the heads {', '.join(map(str, output))}, but not "
                              f"{', '.join(lacking)}.")
        for name, number in heads:
            _check(f"as the head {name!r}", output[name], (*shape[:-1], number), shape)
        return output
    _check(f"(heads: {', '.join(f'{name} {number}' for name, number in heads)})", output,
           (*shape[:-1], sum(number for _, number in heads)), shape)
    found, first = {}, 0
    for name, number in heads:
        found[name] = output[..., first:first + number] if len(heads) > 1 else output
        first += number
    return found


def _check(which: str, output: Any, expected: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raises ConfigError unless the output is an array of floats of the expected shape."""
    right = f"The network must return floats {list(expected)} {which} for x {list(shape)}, but it returned"
    if not hasattr(output, "shape") or not hasattr(output, "dtype"):
        raise ConfigError(f"{right} {'nothing' if output is None else f'a {type(output).__name__}'}.")
    if output.shape != expected or not jnp.issubdtype(output.dtype, jnp.floating):
        raise ConfigError(f"{right} {output.dtype} {list(output.shape)}.")
