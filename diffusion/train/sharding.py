"""The device mesh (data, fsdp), and where arrays live on it.

The batch is cut over both axes. Parameters, moving average and optimizer state are cut over fsdp and copied over data.
"""
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion.errors import ConfigError

_BATCH = P(("data", "fsdp"))
_MIN_SHARDED = 2**12  # smaller arrays cost more to gather than they save


def make_mesh(data: int, fsdp: int) -> Mesh:
    """A mesh of all devices of all processes. One of the sizes may be -1: all that remain.

    Raises ConfigError where the sizes do not multiply to the number of devices.
    """
    devices, sizes = jax.device_count(), [data, fsdp]
    if sizes.count(-1) == 1 and -1 not in (known := [s for s in sizes if s != -1]) and devices % known[0] == 0:
        sizes[sizes.index(-1)] = devices // known[0]
    if min(sizes) < 1 or math.prod(sizes) != devices:
        raise ConfigError(f"config.mesh.data = {data} and config.mesh.fsdp = {fsdp} do not make up the {devices} "
                          "devices. Their product must be that number; one of them may be -1, all that remain.")
    # The default of axis_types became Explicit in JAX 0.9, under which Flax's layers and table look-ups fail.
    return jax.make_mesh(tuple(sizes), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on each device."""
    return NamedSharding(mesh, P())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The first axis cut over all devices."""
    return NamedSharding(mesh, _BATCH)


def of_state(abstract_state, mesh: Mesh):
    """Shardings for a tree of shapes: the largest axis that fsdp divides is cut, small arrays are copied."""
    fsdp = mesh.shape["fsdp"]

    def rule(leaf):
        axes = [i for i, n in enumerate(leaf.shape) if n % fsdp == 0]
        if fsdp == 1 or not axes or math.prod(leaf.shape) < _MIN_SHARDED:
            return replicated(mesh)
        largest = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, P(*("fsdp" if i == largest else None for i in range(len(leaf.shape)))))

    return jax.tree.map(rule, abstract_state)


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh, leading: int = 0) -> dict[str, jax.Array]:
    """This process's rows [b, ...] as part of global arrays [B, ...]; `leading` uncut axes stand before them."""
    sharding = NamedSharding(mesh, P(*(None,) * leading, *_BATCH))
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
