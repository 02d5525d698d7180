"""The device mesh (data, fsdp, tensor), and where arrays live on it.

The batch is cut over data and fsdp, and copied over tensor. Parameters, moving average and optimizer state are cut over
fsdp and tensor by rules, and copied over data. The compiler finds the collectives.
"""
import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
_BATCH = P(("data", "fsdp"))
_MIN_SHARDED = 2**12  # smaller arrays cost more to gather than they save

# (regular expression, the mesh axes of the array's last axes): the first rule whose expression is found in the path of
# a parameter, such as "params/down0_block0/conv1/kernel", says how it is cut; None for an axis that is not.
Rule = tuple[str, tuple[str | None, ...]]


def make_mesh(data: int, fsdp: int, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `devices`, by default all of all processes. One of the sizes may be -1: all that remain.

    Raises ConfigError where the sizes do not multiply to the number of devices, or tensor would span processes.
    """
    devices, sizes = list(devices or jax.devices()), [data, fsdp, tensor]
    known = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        given = ", ".join(f"config.mesh.{name} = {size}" for name, size in zip(AXES, (data, fsdp, tensor)))
        raise ConfigError(f"{given} do not make up the {len(devices)} devices. Their product must be that number; one "
                          "of them may be -1, all that remain.")
    local = sum(device.process_index == devices[0].process_index for device in devices)
    if local % sizes[2]:
        raise ConfigError(f"config.mesh.tensor = {sizes[2]} does not divide the {local} devices of a process: a row of "
                          "the batch would belong to two.")
    # The default of axis_types became Explicit in JAX 0.9, under which Flax's layers and table look-ups fail.
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def on_cpu(mesh: Mesh) -> bool:
    """Where XLA runs the gradient of a convolution inside a loop about 12 times slower than outside of it."""
    return mesh.devices.flat[0].platform == "cpu"


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the batch is cut, which it must be a multiple of."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def fill(count: int, mesh: Mesh) -> int:
    """The least such multiple that is not below `count`."""
    return -(-count // batch_shards(mesh)) * batch_shards(mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on each device."""
    return NamedSharding(mesh, P())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis, the first, cut over data and fsdp."""
    return NamedSharding(mesh, P(*(None,) * axis, *_BATCH))


def put_rows(x: np.ndarray, mesh: Mesh) -> jax.Array:
    """x [B, ...], the same in all processes, cut `over_batch`: each process puts its devices' rows there."""
    return jax.make_array_from_callback(x.shape, over_batch(mesh), lambda rows: x[rows])


def of_state(abstract_state, mesh: Mesh, rules: Sequence[Rule] = ()):
    """Shardings for a tree of shapes, by the first of the rules that fits the path.

    An axis that its mesh axis does not divide stays whole. Where no rule fits, the largest axis that fsdp divides is
    cut. Small arrays are copied.
    """
    sizes = mesh.shape

    def sharding(path, leaf):
        if math.prod(leaf.shape) < _MIN_SHARDED:
            return replicated(mesh)
        for pattern, axes in rules:
            if re.search(pattern, name_of(path)) and len(axes) <= len(leaf.shape):
                axes = (None,) * (len(leaf.shape) - len(axes)) + tuple(axes)
                return NamedSharding(mesh, P(*(axis if axis and sizes[axis] > 1 and n % sizes[axis] == 0 else None
                                               for axis, n in zip(axes, leaf.shape))))
        cut = [i for i, n in enumerate(leaf.shape) if n % sizes["fsdp"] == 0]
        if sizes["fsdp"] == 1 or not cut:
            return replicated(mesh)
        largest = max(cut, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, P(*("fsdp" if i == largest else None for i in range(len(leaf.shape)))))

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def check_rules(rules: Sequence[Rule], abstract_params, where: str) -> None:
    """Raises ConfigError for a rule that fits no parameter, or names an axis that the mesh has not."""
    names = [name_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(abstract_params)[0]]
    for pattern, axes in rules:
        try:
            found = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise ConfigError(f"{where}: {pattern!r} is not a regular expression: {error}.") from error
        if not found:
            raise ConfigError(f"{where}: the rule {pattern!r} fits no parameter. They are named like "
                              f"{', '.join(names[:3])} ... {names[-1]}.")
        if strange := set(axes) - {None, "fsdp", "tensor"}:
            raise ConfigError(f"{where}: the rule {pattern!r} names {sorted(strange)}; parameters can be cut over fsdp "
                              "and tensor.")


def name_of(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh, leading: int = 0) -> dict[str, jax.Array]:
    """This process's rows [b, ...] as part of global arrays [B, ...]; `leading` uncut axes stand before them."""
    where = over_batch(mesh, leading)
    return {name: jax.make_array_from_process_local_data(where, value) for name, value in batch.items()}
