"""Settings of a whole process: its devices, the cache of compiled programs, and the reuse of freed memory."""
import ctypes
import hashlib
import os
import platform
import sys
import warnings
from pathlib import Path

import jax
from jaxlib import xla_client

from diffusion.errors import ConfigError, shown
from diffusion.planning import gpus

# XLA's choices of kernels that add in a changing order, so that two runs of one program on a GPU differ in their bits.
REPEATABLE = ("xla_gpu_exclude_nondeterministic_ops", "xla_gpu_deterministic_ops")


def repeat_bits() -> None:
    """Has XLA leave out kernels whose results change from run to run on GPUs, unless XLA_FLAGS says otherwise: a run is
    then repeated, and resumed, bit for bit. On an H100 a step of the CIFAR-10 U-Net takes a tenth longer for it
    (docs/results.md); XLA_FLAGS=--xla_gpu_exclude_nondeterministic_ops=false is the faster way. Call it before there
    are devices."""
    given = os.environ.get("XLA_FLAGS", "")
    if gpus.has_plugin() and not any(name in given for name in REPEATABLE):
        os.environ["XLA_FLAGS"] = f"{given} --{REPEATABLE[0]}=true".strip()


def check_flags() -> None:
    """Raises ConfigError for XLA_FLAGS that XLA rejects. Tries them in a copy of the process, which XLA then ends.

    Call it before there are devices or threads.
    """
    if not (given := os.environ.get("XLA_FLAGS", "").strip()):
        return
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about JAX's threads, which do not exist yet
        child = os.fork()
    if child == 0:
        os.dup2(write, 2)
        xla_client.CompileOptions()
        os._exit(0)
    os.close(write)
    with open(read, errors="replace") as file:
        said = " ".join(file.read(300).split())
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise ConfigError(f"XLA rejects XLA_FLAGS={shown(given)[1:-1]}: {said.rpartition('] ')[2]}. Correct or "
                          "unset it.")


# Settings of JAX that would change or prevent the programs' computation.
NEEDED = {"jax_enable_x64": False, "jax_disable_jit": False, "jax_debug_nans": False, "jax_debug_infs": False,
          "jax_numpy_dtype_promotion": "standard", "jax_default_prng_impl": "threefry2x32",
          "jax_threefry_partitionable": True, "jax_no_tracing": False, "jax_transfer_guard": None,
          "jax_transfer_guard_host_to_device": None, "jax_transfer_guard_device_to_device": None,
          "jax_transfer_guard_device_to_host": None}


def check_devices() -> None:
    """Raises ConfigError if JAX finds no devices, or has settings that change our programs' computation."""
    for name, value in NEEDED.items():
        if (found := getattr(jax.config, name)) != value:
            raise ConfigError(f"{name.upper()} is set to {found}: these programs need JAX's default, {value}. Unset "
                              "that environment variable.")
    try:
        jax.devices()
    except Exception as error:  # plugins may raise anything, also AssertionError
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"JAX finds no device{f' of JAX_PLATFORMS={wanted}' * bool(wanted)}: {reason.rstrip('.')}. "
                          "Set JAX_PLATFORMS=cpu, or unset it to use the devices here; the extras cuda and tpu "
                          "install the wheels for those devices.") from error


def keep_compilations(folder: Path) -> None:
    """Caches compiled programs in `folder`/.compiled from now on, for a quick next start, unless the user has set
    JAX_COMPILATION_CACHE_DIR."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute() / ".compiled" / cpu_digest()))


def keep_memory() -> None:
    """Lets glibc keep freed memory for the next step, instead of returning it to the system, which must clear it before
    reuse: on a CPU that took a quarter of a small training's time (docs/results.md)."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        most, m_trim_threshold, m_mmap_threshold = 2**31 - 1, -1, -3  # as in malloc.h
        mallopt(m_trim_threshold, most)
        mallopt(m_mmap_threshold, most)


def cpu_digest() -> str:
    """Eight letters for this kind of CPU: XLA compiles for one exact CPU, and several kinds may share a folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:8]
