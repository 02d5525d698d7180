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

# (regular expression, the mesh axes of the array's last axes): the first rule whose expression matches in the path of a
# parameter, such as "params/down0_block0/conv1/kernel", defines how it is cut; None for an axis that is not cut.
Rule = tuple[str, tuple[str | None, ...]]


def make_mesh(data: int, fsdp: int, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `devices`, by default all devices of all processes. One of the sizes may be -1: all that remain.

    Raises ConfigError if the product of the sizes is not the number of devices, or tensor would span processes.
    """
    devices, sizes = list(devices or jax.devices()), [data, fsdp, tensor]
    known = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        given = ", ".join(f"config.mesh.{name} = {size}" for name, size in zip(AXES, (data, fsdp, tensor)))
        raise ConfigError(f"{given} do not make up the {len(devices)} devices. Their product must be that number; one "
                          "of them may be -1: all that remain.")
    local = sum(device.process_index == devices[0].process_index for device in devices)
    if local % sizes[2]:
        raise ConfigError(f"config.mesh.tensor = {sizes[2]} does not divide the {local} devices of a process: a row of "
                          "the batch would be split between two processes.")
    # The default of axis_types became Explicit in JAX 0.9, under which Flax's layers and table look-ups fail.
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def platform(mesh: Mesh) -> str:
    """The platform of the devices: cpu, gpu or tpu."""
    return mesh.devices.flat[0].platform


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are CPUs, where XLA runs a convolution's gradient about 12 times slower inside a loop."""
    return platform(mesh) == "cpu"


def batch_shards(mesh: Mesh) -> int:
    """The number of parts the batch is cut into; the batch size must be a multiple of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def fill(count: int, mesh: Mesh) -> int:
    """`count` rounded up to a multiple of `batch_shards`."""
    return -(-count // batch_shards(mesh)) * batch_shards(mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on each device."""
    return NamedSharding(mesh, P())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Axis `axis`, by default the first, cut over data and fsdp."""
    return NamedSharding(mesh, P(*(None,) * axis, *_BATCH))


def put_rows(x: np.ndarray, mesh: Mesh) -> jax.Array:
    """x [B, ...], the same in all processes, cut `over_batch`: each process provides its devices' rows."""
    return jax.make_array_from_callback(x.shape, over_batch(mesh), lambda rows: x[rows])


def place(tree, shardings):
    """The tree of arrays, the same in all processes, with these shardings: each process provides its devices' parts."""
    return jax.tree.map(lambda x, s: jax.make_array_from_callback(x.shape, s, lambda part, x=np.asarray(x): x[part]),
                        tree, shardings)


def of_state(abstract_state, mesh: Mesh, rules: Sequence[Rule] = ()):
    """Shardings for a tree of shapes, by the first rule that matches the path.

    An axis that its mesh axis does not divide stays whole. Where no rule matches, the largest axis that fsdp divides is
    cut. Small arrays are replicated.
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
    """Raises ConfigError for a rule that matches no parameter or names an unknown mesh axis."""
    names = [name_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(abstract_params)[0]]
    for pattern, axes in rules:
        try:
            found = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise ConfigError(f"{where}: {pattern!r} is not a regular expression: {error}.") from error
        if not found:
            raise ConfigError(f"{where}: the rule {pattern!r} matches no parameter. Parameters are named like "
                              f"{', '.join(names[:3])} ... {names[-1]}.")
        if strange := set(axes) - {None, "fsdp", "tensor"}:
            raise ConfigError(f"{where}: the rule {pattern!r} names {sorted(strange)}; parameters can be cut over fsdp "
                              "and tensor.")


def name_of(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh, leading: int = 0) -> dict[str, jax.Array]:
    """This process's rows [b, ...] as part of global arrays [B, ...], after `leading` uncut axes."""
    where = over_batch(mesh, leading)
    return {name: jax.make_array_from_process_local_data(where, value) for name, value in batch.items()}
