"""Checks lower bounds on the memory that a config needs, so that a typing mistake ends in a message.

`main --mode=plan` computes the actual memory use.
"""
import math
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion.build.models import Model
from diffusion.build.rules import require_key
from diffusion.errors import ConfigError
from diffusion.io.reading import memory_limit
from diffusion.parallel import sharding


def check_memory(config: ConfigDict, model: Model, kept: Any, *, rows: int, key: str) -> None:
    """Raises ConfigError if a device's memory cannot hold the arrays `kept` (a tree of shapes with shardings), or one
    feature map of the first level for `rows` images, the number that config.`key` gives the devices at a time."""
    room = room_of(model.mesh)
    if room is None:
        return
    here = len(model.mesh.local_devices) if sharding.on_cpu(model.mesh) else 1  # CPU devices share its memory
    size = here * sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(kept))
    if size > room:
        raise ConfigError(f"This model takes {in_gib(size)} of memory without a single image, but a device has "
                          f"{in_gib(room)}: make config.network smaller, or shard it over more devices "
                          "(config.mesh.fsdp).")
    c, patch = config.network, config.network.get("patch", 1)
    each = math.prod(math.ceil(side / patch) for side in model.shape[:-1]) * c.get("channels", 1) * (
        2 if c.get("dtype") == "bfloat16" else 4)
    size = here * each * math.ceil(rows / sharding.batch_shards(model.mesh))
    require_key(size <= room, key, rows, f"needs {in_gib(size)} for only one feature map of the network, but a "
         f"device has {in_gib(room)}: make it smaller.")


def room_of(mesh: Mesh) -> int | None:
    """Bytes of a device's memory; None if the device does not report it."""
    if sharding.on_cpu(mesh):
        return memory_limit()
    return (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")


def in_gib(size: int) -> str:
    return f"{size / 2**30:,.3g} GiB"
