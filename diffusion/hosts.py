"""Runs of several processes: how they find each other, and that they are about to run the same thing."""
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion.errors import ConfigError

_PACKAGES = ("jax", "jaxlib", "flax", "optax")
_COMPARED = ("config, mode or --workdir", "code of diffusion/", f"Python and {', '.join(_PACKAGES)}")


def join(coordinator: str | None, count: int | None, index: int | None, seconds: float) -> None:
    """Joins the processes of a run of several, or leaves this one alone.

    coordinator: HOST:PORT of process 0, with `count` and `index`; if None, what the environment says, where one of
    `cluster` started several. Raises ConfigError where they contradict each other or do not meet within `seconds`.
    """
    if coordinator is None:
        if count is not None or index is not None:
            raise ConfigError("--num_processes and --process_id need --coordinator=HOST:PORT, that of process 0.")
        found = cluster(os.environ)
        if found is None:
            return
        where, arguments = f"the processes of {found}", {}
    else:
        if count is None or index is None or index >= count:
            raise ConfigError("--coordinator needs --num_processes, and --process_id below it; got "
                              f"{count} and {index}.")
        where = f"the {count} processes at --coordinator={coordinator}"
        _reach(coordinator, index, seconds)
        arguments = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    began = time.monotonic()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=max(int(seconds), 1))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"This process could not join {where} within {time.monotonic() - began:.0f} s "
                          f"(--connect_seconds={seconds:g}): {str(error).splitlines()[0]}. Are all of them "
                          "started, with the same address and count?") from error


def cluster(environment: Mapping[str, str]) -> str | None:
    """What started this process as one of several, of what JAX can ask for the others: Slurm's srun, Open MPI's
    mpirun, a TPU pod (also on GKE); None for a process alone."""
    if "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        return "the Slurm job " + environment.get("SLURM_JOB_ID", "?")
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "mpirun"
    if environment.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        # GKE names the hosts of a slice; on TPU VMs without these variables only Google's metadata does.
        if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or int(environment.get("MEGASCALE_NUM_SLICES", "1")) > 1:
            return "the TPU slice"
        if "TPU_WORKER_HOSTNAMES" not in environment and any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0"))):
            return "the TPU pod"
    return None


def _reach(coordinator: str, index: int, seconds: float) -> None:
    """Raises ConfigError unless process 0 can listen at the address, and the others reach it within `seconds`."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator={coordinator} is not an address: write HOST:PORT, such as 10.0.0.2:1234.")
    if index == 0:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", int(port)))
            except OSError as error:
                raise ConfigError(f"Process 0 cannot listen at --coordinator={coordinator}: {error.strerror}. Give "
                                  "another port.") from error
        return
    began, told, failure = time.monotonic(), False, None
    while time.monotonic() - began < seconds:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            failure = error.strerror or error
        if not told and time.monotonic() - began > 5:
            told = True
            print(f"waiting for process 0 at {coordinator}: {failure}", file=sys.stderr, flush=True)
        time.sleep(0.2)
    raise ConfigError(f"There is no process 0 at --coordinator={coordinator} ({failure}) after {seconds:g} s "
                      "(--connect_seconds). Was it started, and does a firewall let that port through?")


def check_same(*settings: object) -> None:
    """Raises ConfigError, in all processes, where one has other settings (JSON), code or versions than process 0.

    They would otherwise wait for each other for ever, or compute something that no one asked for.
    """
    if jax.process_count() == 1:
        return
    versions = [platform.python_version(), *map(importlib.metadata.version, _PACKAGES)]
    here = Path(__file__).parent
    code = [(path.relative_to(here).as_posix(), path.read_text()) for path in sorted(here.rglob("*.py"))]
    digests = [np.frombuffer(hashlib.sha256(json.dumps(part, sort_keys=True).encode()).digest(), np.uint8)
               for part in (settings, code, versions)]
    everyone = multihost_utils.process_allgather(np.stack(digests))
    for what, theirs in zip(_COMPARED, everyone.swapaxes(0, 1)):
        if other := [i for i, digest in enumerate(theirs) if (digest != theirs[0]).any()]:
            raise ConfigError(f"Process {', '.join(map(str, other))} of {jax.process_count()} has another {what}, by "
                              "its hash, than process 0. All must run the same command on the same checkout and "
                              "environment.")
