"""GPUs to compile for that need not be there: what XLA wants to know of them."""
import importlib.util
import os
import re
from dataclasses import dataclass

from diffusion.errors import ConfigError

# With these settings XLA's compiler for GPUs needs no driver and times no kernels. Untimed, its tiles for Triton's
# products do not fit some shapes.
VARIABLES = {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


@dataclass(frozen=True)
class Gpu:
    """What differs between the GPUs, from the files of openxla/xla, xla/backends/gpu/target_config/specs."""
    name: str            # as JAX's device_kind
    cores: int           # streaming multiprocessors
    fpus: int            # of a core
    shared: int          # bytes of shared memory of a core
    cache: int           # bytes of the second-level cache
    clock: float         # GHz
    memory: int          # bytes
    bandwidth: int       # bytes per second
    capability: int      # major compute capability

    def target(self) -> str:
        """XLA's GpuTargetConfig, as a text proto."""
        limit = self.shared - 1024  # of a block that asks for it
        return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {self.shared} shared_memory_per_block_optin: {limit}
  core_count: {self.cores} fpus_per_core: {self.fpus} clock_rate_ghz: {self.clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {self.bandwidth} l2_cache_size: {self.cache} device_memory_size: {self.memory}
  cuda_compute_capability {{ major: {self.capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{self.name}"
"""


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 108, 64, 167936, 41943040, 1.41, 85100068864, 2039040000000, 8),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 132, 128, 233472, 52428800, 1.98, 84942979072, 3352320000000, 9),
    "h200": Gpu("NVIDIA H200", 132, 128, 233472, 52428800, 1.98, 151397597184, 4800000000000, 9),
    "b200": Gpu("NVIDIA B200", 148, 128, 233472, 132644864, 1.965, 191514411008, 7672320000000, 10),
}
FORMS = "h100:1, h100:8, h100:4x8 (4 hosts of 8); also a100, h200 and b200"


def is_gpu(topology: str) -> bool:
    """Whether a --topology names a GPU of GPUS."""
    return topology.partition(":")[0] in GPUS


def has_plugin() -> bool:
    """Whether JAX's plugin for NVIDIA GPUs is installed."""
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def prepare() -> None:
    """Sets this process's environment for `devices_of`; call it before JAX is imported."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    if FLAGS not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()


def devices_of(topology: str):
    """The devices of a topology such as h100:8 or h100:4x8, which need not exist. Raises ConfigError for one that is
    not of this form, or without JAX's plugin for NVIDIA GPUs."""
    name, _, size = topology.partition(":")
    found = re.fullmatch(r"(?:(\d+)x)?(\d+)", size or "1")
    if name not in GPUS or not found or not int(found[2]) or found[1] == "0":
        raise ConfigError(f"--topology={topology} is not known. GPUs are written {FORMS}.")
    if not has_plugin():
        raise ConfigError("Compiling for a GPU needs JAX's plugin for NVIDIA GPUs, but neither a GPU nor a driver: "
                          "pip install -e .[cuda]")
    from jax.experimental import topologies
    return topologies.get_topology_desc(platform="cuda", target_config=GPUS[name].target(),
                                        topology=f"1x{found[1] or 1}x{found[2]}").devices
