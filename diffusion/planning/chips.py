"""Peak rates of accelerators, as stated by their makers, and topologies to compile for."""
import importlib.util
import re
from dataclasses import dataclass

from diffusion.errors import ConfigError
from diffusion.planning import gpus


@dataclass(frozen=True)
class Chip:
    """The peak rates of one device, as JAX counts devices."""
    name: str
    flops: float      # per second, bfloat16 matrix products
    memory: float     # bytes
    bandwidth: float  # bytes per second, of this memory
    link: float       # bytes per second, one way, of one of its two links to neighbours in a ring
    source: str


def _gpu(name: str, flops: float, link: float, source: str) -> Chip:
    """A GPU, with the memory that XLA is told of."""
    gpu = gpus.GPUS[name]
    return Chip(f"NVIDIA {name.upper()}", flops, gpu.memory, gpu.bandwidth, link, source)


_CLOUD, _NVIDIA = "docs.cloud.google.com/tpu/docs/", "nvidia.com/en-us/data-center/"
# Two of a chip's links lie along one axis of the torus, one each way. Topologies list both cores of a v4 chip.
CHIPS = {
    "v4": Chip("TPU v4 core", 275e12 / 2, 32e9 / 2, 1228e9 / 2, 50e9 / 2, _CLOUD + "v4"),
    "v5e": Chip("TPU v5e", 197e12, 16e9, 819e9, 50e9, _CLOUD + "v5e"),
    "v5p": Chip("TPU v5p", 459e12, 95e9, 2765e9, 100e9, _CLOUD + "v5p"),
    "v6e": Chip("TPU v6e", 918e12, 32e9, 1640e9, 100e9, _CLOUD + "v6e"),
    # All of a GPU's NVLinks send round a ring, half of them to each side; the network between hosts is slower.
    "a100": _gpu("a100", 312e12, 150e9, _NVIDIA + "a100"),
    "h100": _gpu("h100", 989e12, 225e9, _NVIDIA + "h100"),
    "h200": _gpu("h200", 989e12, 225e9, _NVIDIA + "h200"),
    "b200": _gpu("b200", 2250e12, 450e9, _NVIDIA + "dgx-b200"),
}
KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p",
         "TPU v6 lite": "v6e", "TPU v6e": "v6e"} | {gpu.name: name for name, gpu in gpus.GPUS.items()}
FORMS = {"v4": "v4:2x2x2, v4:2x2x4, v4:4x4x4 ...", "v5e": "v5e:2x2, v5e:2x4, v5e:4x4, v5e:4x8 ... v5e:16x16",
         "v5p": "v5p:2x2x1, v5p:2x2x2, v5p:2x2x4, v5p:4x4x4 ...", "v6e": "v6e:2x2, v6e:2x4, v6e:4x4 ... v6e:16x16"}


def chip_of(kind: str) -> Chip | None:
    """The chip of a device_kind; None if the table lacks it, as for a CPU."""
    return CHIPS.get(KINDS.get(kind))


def devices_of(topology: str):
    """The devices of a TPU slice or of hosts with GPUs to compile for, which need not exist. Raises ConfigError for an
    unknown topology, or without the compiler."""
    if gpus.is_gpu(topology):
        return gpus.devices_of(topology)
    known = "; ".join(FORMS.values()) + f"; {gpus.FORMS}; or local, this machine's devices"
    name, _, size = topology.partition(":")
    if name not in FORMS or not re.fullmatch(r"\d+x\d+(x\d+)?", size):
        raise ConfigError(f"--topology={topology} is not known. It can be one of: {known}.")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("Planning for a TPU needs its compiler, not a TPU: pip install -e .[tpu]")
    from jax.experimental import topologies
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # of any kind, from libtpu
        raise ConfigError(f"--topology={topology} is not one of its kind: {str(error).splitlines()[0]}. Known are: "
                          f"{known}.") from error
