"""Builds the process of config.process."""
import numpy as np
from ml_collections import ConfigDict

from diffusion.build.rules import require_finite, require_key
from diffusion.core import grids, processes
from diffusion.errors import ConfigError
from diffusion.families import BY_NAME, naming_keys

_FAMILY, _TABULATED = BY_NAME["process"], BY_NAME["table_of"]


def process(c: ConfigDict) -> processes.Process:
    """The process. `build.models` checks which predictions it allows. Raises ConfigError for keys that do not fit."""
    require_finite(c, "process")
    found = _FAMILY.make(c, **_given(c))
    if not found.discrete:
        check_ends(c, found)
    return found


def betas(c: ConfigDict) -> np.ndarray:
    """The named schedule's betas [T], before `zero_terminal_snr`. Raises ConfigError for a process without a table."""
    make = _FAMILY.member(c.name).make
    if not hasattr(make, "schedule"):
        tables = sorted(name for name, member in _FAMILY.members().items() if hasattr(member.make, "schedule"))
        raise ConfigError(f"config.process.name = {c.name!r} is a process in continuous time without a table of "
                          f"betas. Processes with a table: {', '.join(tables)}.")
    of_chain = ("rescale_times", "zero_terminal_snr")
    keys = {key: c[key] for key in _FAMILY.member(c.name).keys if key not in of_chain}
    with naming_keys("process."):
        return make.schedule(**keys, **_given(c))


def _given(c: ConfigDict) -> dict[str, processes.Process]:
    """The continuous-time process that a discretized table needs as an argument; {} for other processes."""
    return {"process": _TABULATED.make(c)} if "table_of" in c else {}


def check_ends(c: ConfigDict, proc: processes.Process) -> None:
    """Checks that float32 can represent the noise levels, which losses and solvers square."""
    try:
        low, high = grids.noise_levels(proc)
    except OverflowError:
        low = high = float("nan")
    require_key(1e-17 < low < high and (high < 1e17 or high == float("inf")), "process.name", c.name, "has noise "
                f"levels from {low:.3g} to {high:.3g} with these keys of config.process, but float32 holds those from "
                "1e-17 to 1e17.")
