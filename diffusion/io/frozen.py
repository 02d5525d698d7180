"""Parameter sets that a run only reads, such as a teacher's, stored once in the run folder:

    frozen/NAME/0/           the parameters, as io/checkpoint.py writes them
    frozen/NAME/config.json  the config of their model
    frozen/NAME/source.json  where they came from, and a digest of the above; written last
"""
import hashlib
import json
from pathlib import Path
from typing import Any

from diffusion.errors import CheckpointError
from diffusion.io.checkpoint import Checkpoints, DamagedError, NoData
from diffusion.io.files import atomic_write, read_json
from diffusion.io.processes import is_primary, primary_says

_RESTORE = "Restore that folder from a copy, or start a new run: what this one has learned depends on them."


def save(folder: Path, params: Any, settings: dict, source: str) -> None:
    """Stores the parameters with the config of their model, `settings`, and the source that they came from. Call it in
    all processes. Raises CheckpointError if the folder cannot be written."""
    if is_primary():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "source.json").unlink(missing_ok=True)
        atomic_write(folder / "config.json", json.dumps(settings, indent=2) + "\n")
    primary_says(0)
    with Checkpoints(folder, keep=None) as checkpoints:
        checkpoints.save(0, params, NoData(), {})
    if is_primary():
        atomic_write(folder / "source.json", json.dumps({"source": source, "sha256": _digest(folder)}) + "\n")
    primary_says(0)


def read_settings(folder: Path) -> dict:
    """The config of the model. Raises CheckpointError if the parameters are missing or have changed."""
    if not (folder / "source.json").is_file():
        raise CheckpointError(f"The frozen parameters {folder} of this run are missing. {_RESTORE}")
    found = read_json(folder / "source.json")
    try:
        digest = _digest(folder)
    except OSError:
        digest = None
    if found.get("sha256") != digest:
        raise CheckpointError(f"The frozen parameters {folder} have changed since the run began: their digest differs "
                              f"from that in source.json. {_RESTORE}")
    return read_json(folder / "config.json")


def restore(folder: Path, abstract: Any) -> Any:
    """The parameters, by a tree of shapes with shardings. Raises CheckpointError if they are missing, have changed, or
    are those of another network."""
    read_settings(folder)
    try:
        return Checkpoints(folder, keep=None).restore(abstract, NoData(), 0)[0]
    except DamagedError as error:
        raise CheckpointError(f"The frozen parameters {folder} have changed since the run began: {error.fault}. "
                              f"{_RESTORE}") from error


def _digest(folder: Path) -> str:
    """Of the files' digests and of the config."""
    files = (folder / "0" / "SHA256SUMS", folder / "config.json")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
