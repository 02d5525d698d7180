"""Runs of several processes: they find each other and check that all have the same settings and code."""
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion.errors import ConfigError, shown

_PACKAGES = ("jax", "jaxlib", "flax", "optax")
_COMPARED = ("config, mode or --workdir", "code of diffusion/", f"Python and {', '.join(_PACKAGES)}")


def join(coordinator: str | None, count: int | None, index: int | None, *, seconds: float, heartbeat: float) -> None:
    """Joins a run of several processes; does nothing for a single process.

    coordinator: HOST:PORT of process 0, with `count` and `index`; if None, these come from the launcher's environment
    (see `cluster`). Raises ConfigError if the arguments contradict each other or the processes do not meet within
    `seconds`. heartbeat: seconds of silence after which a process counts as dead and the others abort.
    """
    if coordinator is None:
        if count is not None or index is not None:
            raise ConfigError("--num_processes and --process_id need --coordinator=HOST:PORT, process 0's address.")
        found = cluster(os.environ)
        if found is None:
            return
        where, arguments = f"the processes of {found}", {}
        if (address := slurm_address(os.environ)) is not None:
            _meet(address, number(os.environ, "SLURM_NTASKS"), number(os.environ, "SLURM_PROCID"), seconds)
    else:
        if count is None or index is None or index >= count:
            raise ConfigError("--coordinator needs --num_processes, and --process_id below it; got "
                              f"{count} and {index}.")
        where = f"the {count} processes at --coordinator={coordinator}"
        _meet(coordinator, count, index, seconds)
        arguments = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    began = time.monotonic()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=max(int(seconds), 1),
                                   heartbeat_timeout_seconds=int(heartbeat))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"This process could not join {where} within {time.monotonic() - began:.0f} s "
                          f"(--connect_seconds={seconds:g}): {str(error).splitlines()[0]}. Are all of them "
                          "started, with the same address and count?") from error


def cluster(environment: Mapping[str, str]) -> str | None:
    """The launcher that started this process as one of several, if JAX supports it: Slurm's srun, Open MPI's mpirun, a
    TPU pod (also on GKE); None for a single process. Raises ConfigError for an invalid number."""
    if "SLURM_STEP_NODELIST" in environment and number(environment, "SLURM_NTASKS", 1) > 1:
        return "the Slurm job " + environment.get("SLURM_JOB_ID", "?")
    if number(environment, "OMPI_COMM_WORLD_SIZE", 1) > 1:
        return "mpirun"
    if environment.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        # GKE lists the hosts of a slice in variables; on TPU VMs without them only Google's metadata does.
        if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or number(environment, "MEGASCALE_NUM_SLICES", 1) > 1:
            return "the TPU slice"
        if "TPU_WORKER_HOSTNAMES" not in environment and any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0"))):
            return "the TPU pod"
    return None


def number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """A whole number from an environment variable, or the default if it is unset or empty. Raises ConfigError for any
    other value, and for an unset variable without a default."""
    text = environment.get(name, "").strip()
    if not text and default is not None:
        return default
    if not text.isdecimal() or len(text) > 9:
        raise ConfigError(f"The environment variable {name} is {shown(text)}, not a whole number from 0. The "
                          "launcher sets it: unset it to run one process, with JAX_PLATFORMS if need be.")
    return int(text)


def slurm_address(environment: Mapping[str, str]) -> str | None:
    """HOST:PORT at which JAX looks for the first task of a Slurm step; None outside Slurm. JAX derives the port, one of
    the 4096 highest, from the job's number (jax/_src/clusters/slurm_cluster.py)."""
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    first = re.match(r"([^,\[\]]+)(?:\[([^,\-\]]+))?", nodes)  # host[07-12,20], or host,other
    if first is None or number(environment, "SLURM_NTASKS", 1) < 2:
        return None
    job = number(environment, "SLURM_JOB_ID")
    return f"{first[1]}{first[2] or ''}:{65536 - 4096 + job % 4096}"


def _meet(coordinator: str, count: int, index: int, seconds: float) -> None:
    """Returns when all processes are connected, or raises ConfigError that names the missing ones.

    JAX's own coordination would abort the program without naming the address.
    """
    host, _, port = coordinator.rpartition(":")
    try:
        host.encode("idna")  # as in a DNS look-up
    except UnicodeError:
        host = ""
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator={coordinator} is not an address: write HOST:PORT, such as 10.0.0.2:1234.")
    deadline = time.monotonic() + seconds
    if index == 0:
        _gather(coordinator, int(port), set(range(1, count)), deadline, seconds)
        return
    failure = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, int(port)), timeout=min(left, 5.0)) as connection:
                connection.settimeout(left)
                connection.sendall(f"{index} ".encode())
                if connection.recv(2) == b"go":
                    return
        except OSError as error:
            failure = error.strerror or error
        time.sleep(0.2)
    raise ConfigError(f"Process {index} found no process 0 at --coordinator={coordinator} within {seconds:g} s "
                      f"(--connect_seconds): {failure}. Was it started, and does a firewall let that port through?")


def _gather(coordinator: str, port: int, missing: set[int], deadline: float, seconds: float) -> None:
    """In process 0: waits until all other processes have connected, then releases them."""
    connections = []
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise ConfigError(f"Process 0 cannot listen at --coordinator={coordinator}: {error.strerror}. Give another "
                              "port.") from error
        listener.listen(len(missing) + 1)
        while missing and (left := deadline - time.monotonic()) > 0:
            listener.settimeout(left)
            try:
                connection, _ = listener.accept()
                connection.settimeout(5.0)
                missing.discard(int(connection.recv(8)))
                connections.append(connection)
            except (OSError, ValueError):  # nobody connected, or a stranger, or a process that gave up
                continue
    if missing:
        raise ConfigError(f"Process {', '.join(map(str, sorted(missing)))} did not reach --coordinator={coordinator} "
                          f"within {seconds:g} s (--connect_seconds). Were all started, with the same address and "
                          "--num_processes?")
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.sendall(b"go")
        connection.close()


def package_code() -> list[tuple[str, str]]:
    """Name and text of each file of diffusion/."""
    package = Path(__file__).parents[1]
    return [(path.relative_to(package).as_posix(), path.read_text()) for path in sorted(package.rglob("*.py"))]


def check_same(*settings: object) -> None:
    """Raises ConfigError in all processes if one has other settings (JSON), code or versions than process 0.

    They would otherwise wait for each other for ever, or compute a wrong result.
    """
    if jax.process_count() == 1:
        return
    versions = [platform.python_version(), *map(importlib.metadata.version, _PACKAGES)]
    digests = [np.frombuffer(hashlib.sha256(json.dumps(part, sort_keys=True).encode()).digest(), np.uint8)
               for part in (settings, package_code(), versions)]
    everyone = multihost_utils.process_allgather(np.stack(digests))
    for what, theirs in zip(_COMPARED, everyone.swapaxes(0, 1)):
        if other := [i for i, digest in enumerate(theirs) if (digest != theirs[0]).any()]:
            raise ConfigError(f"Process {', '.join(map(str, other))} of {jax.process_count()} has another {what}, by "
                              "its hash, than process 0. All must run the same command on the same checkout and "
                              "environment.")
