"""Users' networks of any kind as our networks: init(key, x, c_noise, cond) -> {"params": ...}, and apply(variables, x,
c_noise, cond, keys) -> F.

A network takes x [B, ...], c_noise [B] and, if its signature has more arguments, the conditions by name. It is a Linen
module, an NNX module, an Equinox module (of one example: it is mapped over the batch) or a pair of plain functions
(init, apply). Its call must not change its own variables, since a step applies several parameter sets of one network.
"""
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from diffusion.typing import NO_COND, Array, Cond, Image, Keys, Params

KINDS = ("a Flax Linen module, an NNX module, an Equinox module, or a pair of functions (init, apply): "
         "init(key) -> parameters and apply(parameters, x, c_noise[, cond[, keys]]) -> F")


def adapted(network: Any) -> Any:
    """The network with the methods `init` and `apply`. Raises TypeError for an object of another kind, ValueError for a
    module whose call changes its own variables."""
    if isinstance(network, nn.Module):
        return LinenNetwork(network)
    if isinstance(network, nnx.Module):
        return NNXNetwork(*nnx.split(network, nnx.Param, ...))
    equinox = sys.modules.get("equinox")
    if equinox is not None and isinstance(network, equinox.Module):
        return EquinoxNetwork(*equinox.partition(network, equinox.is_inexact_array))
    if isinstance(network, tuple) and len(network) == 2 and all(map(callable, network)):
        return PlainNetwork(*network)
    if hasattr(network, "init") and hasattr(network, "apply"):
        return network
    raise TypeError(f"network = {network!r} is not a network. Give {KINDS}.")


def _given(function: Callable, arguments: tuple) -> tuple:
    """As many of the positional arguments as the function takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return arguments
    return arguments[:sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)]


def _refuse(what: str) -> None:
    raise ValueError(f"A call of the network changes its own variables ({what}), which would be lost: a training step "
                     "applies several parameter sets of one network. Use layers without a state of their own, such as "
                     "group or layer normalisation; dropout takes its keys as an argument.")


@dataclass(frozen=True)
class PlainNetwork:
    """A pair of functions."""
    make: Callable
    call: Callable

    def init(self, key: Array, x: Image, c_noise: Array, cond: Cond = NO_COND) -> dict[str, Params]:
        return {"params": self.make(key)}

    def apply(self, variables: dict[str, Params], x: Image, c_noise: Array, cond: Cond = NO_COND,
              keys: Keys | None = None) -> Array:
        return self.call(*_given(self.call, (variables["params"], x, c_noise, cond, keys)))


@dataclass(frozen=True)
class LinenNetwork:
    """A Linen module, with the attributes of the module."""
    module: nn.Module

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "module"), name)

    def init(self, key: Array, x: Image, c_noise: Array, cond: Cond = NO_COND) -> dict[str, Params]:
        variables = self.module.init(key, *_given(self.module.__call__, (x, c_noise, cond)))
        if others := sorted(set(variables) - {"params"}):
            _refuse(", ".join(others))
        return dict(variables)

    def apply(self, variables: dict[str, Params], x: Image, c_noise: Array, cond: Cond = NO_COND,
              keys: Keys | None = None) -> Array:
        return self.module.apply(variables, *_given(self.module.__call__, (x, c_noise, cond, keys)))


@dataclass(frozen=True)
class NNXNetwork:
    """An NNX module: its parameters as they are, and its other variables, which no call may change."""
    graph: Any
    params: Any
    others: Any

    def init(self, key: Array, x: Image, c_noise: Array, cond: Cond = NO_COND) -> dict[str, Params]:
        return {"params": nnx.to_pure_dict(self.params)}

    def apply(self, variables: dict[str, Params], x: Image, c_noise: Array, cond: Cond = NO_COND,
              keys: Keys | None = None) -> Array:
        params, others = (jax.tree.map(lambda value: value, part) for part in (self.params, self.others))
        nnx.replace_by_pure_dict(params, variables["params"])
        before = jax.tree.leaves_with_path((params, others))
        module = nnx.merge(self.graph, params, others)
        found = module(*_given(module.__call__, (x, c_noise, cond)))
        graph, *after = nnx.split(module, nnx.Param, ...)
        if graph != self.graph:
            _refuse("attributes that it adds or sets")
        after = jax.tree.leaves(after)
        names = [jax.tree_util.keystr(path[1:], simple=True, separator=".").removesuffix(".value")
                 for (path, old), new in zip(before, after, strict=True) if old is not new]
        if names:
            _refuse(", ".join(names))
        return found


@dataclass(frozen=True)
class EquinoxNetwork:
    """An Equinox module of one example."""
    params: Any
    static: Any

    def init(self, key: Array, x: Image, c_noise: Array, cond: Cond = NO_COND) -> dict[str, Params]:
        return {"params": self.params}

    def apply(self, variables: dict[str, Params], x: Image, c_noise: Array, cond: Cond = NO_COND,
              keys: Keys | None = None) -> Array:
        import equinox
        module = equinox.combine(variables["params"], self.static)
        return jax.vmap(module)(*_given(module.__call__, (x, c_noise, cond)))
