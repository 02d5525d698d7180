"""Writes small files whole or not at all, reads and checks JSON, and explains failures in plain words."""
import errno
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from diffusion.errors import CheckpointError, ConfigError, shown

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up",
         errno.EFBIG: "a file grew over the limit of this system"}
_CAUSES = _FULL | {errno.EACCES: "permission denied", errno.EPERM: "permission denied",
                   errno.EROFS: "the disk is read-only", errno.ENOTDIR: "a file is where a folder should be",
                   errno.EEXIST: "a file is where a folder should be"}


def atomic_write(path: str | os.PathLike, content: bytes | str | Callable[[IO[bytes]], object]) -> None:
    """Replaces the file at `path` by `content`: after a crash either the old or the new file exists, never a part.

    content: the bytes, or text (UTF-8), or a function that writes to a given binary file. Makes the folder if needed.
    Raises CheckpointError if it cannot be written; the old file is then kept.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a file. Give the name of a file.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")  # one per writer
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave an empty file with the new name
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise CheckpointError(cannot_write(path, error)) from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass


def _flush_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk, if its file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF):
            raise
    finally:
        os.close(handle)


_DEEPEST = 50  # nested lists and objects in a JSON file
_NAMES = {dict: "an object", list: "a list"}


def read_json(path: str | os.PathLike, kind: type = dict, *, entries: type | None = None) -> Any:
    """The value of a JSON file, a dict or a list. entries: the type of the list's entries.

    Raises CheckpointError if it cannot be read, or holds another type.
    """
    try:
        return json_value(Path(path).read_text(encoding="utf-8"), kind, entries)
    except (OSError, ValueError) as error:
        why = cause(error) if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be read: {why}. Put the right file back.") from error


def json_value(text: str | bytes, kind: type = dict, entries: type | None = None) -> Any:
    """The value of a JSON text, a dict or a list, checked as in `read_json`. Raises ValueError."""
    try:
        value = json.loads(text)
        level = [value]
        for _ in range(_DEEPEST):
            level = [x for parent in level for x in (parent.values() if isinstance(parent, dict) else parent)
                     if isinstance(x, (dict, list))] if isinstance(value, (dict, list)) else []
        if level:
            raise RecursionError
    except RecursionError:
        raise ValueError(f"it is nested more than {_DEEPEST} deep") from None
    if not isinstance(value, kind):
        raise ValueError(f"it holds {shown(value)}, but {_NAMES[kind]} is needed")
    if entries and (strange := [entry for entry in value if not isinstance(entry, entries)]):
        raise ValueError(f"its list has the entry {shown(strange[0])}, but {_NAMES[entries]} is needed")
    return value


def check_can_be_written(path: str | os.PathLike) -> None:
    """Raises ConfigError, before the work, if the path of a file is a folder or cannot be created."""
    path = Path(path)
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(f"{path} cannot be written: it is a folder, or below a file or a folder that may not be "
                          "changed. Give another name.")


def cannot_write(path: str | os.PathLike, error: BaseException) -> str:
    """The message for a file or folder that could not be written: its path, the cause, and the remedy."""
    return f"{path} could not be written: {cause(error)}. {remedy(error)}"


def remedy(error: BaseException) -> str:
    """The user's remedy for a failed write."""
    if _errno(root(error)) in _FULL:
        return "Free some space, then run the same command again."
    return "Check the folder and its permissions, then run the same command again."


def cause(error: BaseException) -> str:
    """The innermost cause of an error in one short line; common disk failures in plain words."""
    error = root(error)
    # TensorStore appends a page of JSON to its messages.
    text = re.split(r"\s*\[tensorstore_spec|\s*\[os_error_code|\n", str(error), maxsplit=1)[0].strip()
    text = re.sub(r"^[A-Z]+_[A-Z_]+: ", "", text)  # and begins them with an error code
    text = (text if len(text) <= 300 else text[:297] + "...").rstrip(".") or type(error).__name__
    plain = _CAUSES.get(_errno(error))
    return f"{plain} ({text})" if plain else text


def root(error: BaseException) -> BaseException:
    """The error behind a chain of errors: the first system error if there is one, else the original error."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    return next((e for e in chain if _errno(e) is not None), chain[-1])


def _errno(error: BaseException) -> int | None:
    """The system's error number; TensorStore's errors carry it in their text only."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found.group(1)) if found else getattr(error, "errno", None)
