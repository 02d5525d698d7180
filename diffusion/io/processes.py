"""Selects the process that writes, and shares its results with the others."""
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_primary() -> bool:
    """Whether this is the process that writes files for all."""
    return jax.process_index() == 0


def print_once(text: str) -> None:
    """Prints a line once, for any number of processes."""
    if is_primary():
        print(text, flush=True)


def primary_says(value: Any) -> Any:
    """The first process's number, in all processes: a shared disk may show the others an older listing.

    Every process must call it; with one process nothing happens.
    """
    return multihost_utils.broadcast_one_to_all(np.asarray(value)).item() if jax.process_count() > 1 else value
