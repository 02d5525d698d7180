"""Small files written whole or not at all, and the causes of failed writes in plain words."""
import errno
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from diffusion.errors import CheckpointError

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up",
         errno.EFBIG: "a file grew over the limit of this system"}
_CAUSES = _FULL | {errno.EACCES: "permission denied", errno.EPERM: "permission denied",
                   errno.EROFS: "the disk is read-only", errno.ENOTDIR: "a file is where a folder should be",
                   errno.EEXIST: "a file is where a folder should be"}


def atomic_write(path: str | os.PathLike, content: bytes | str | Callable[[IO[bytes]], object]) -> None:
    """Replaces the file at `path` by `content`: after a crash there is the old file or the new one, never a part.

    content: the bytes, or text (UTF-8), or a function that writes to the binary file it is given. Makes the folder if
    needed. Raises CheckpointError if it cannot be written; then the old file is still there.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, where a file is to be written. Give the name of a file.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")  # each writer its own
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # without it a power cut may leave the new name on an empty file
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
    """Puts the names in it on the disk, where its file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF):
            raise
    finally:
        os.close(handle)


def cannot_write(path: str | os.PathLike, error: BaseException) -> str:
    """The message for a file or folder that could not be written: what, why, and what to do."""
    return f"{path} could not be written: {cause(error)}. {remedy(error)}"


def remedy(error: BaseException) -> str:
    """What the user can do about a failed write."""
    if _errno(root(error)) in _FULL:
        return "Free some space, then run the same command again."
    return "Check the folder and its permissions, then run the same command again."


def cause(error: BaseException) -> str:
    """The innermost cause of an error in one short line; the usual failures of a disk in plain words."""
    error = root(error)
    # TensorStore appends a page of JSON to its messages.
    text = re.split(r"\s*\[tensorstore_spec|\s*\[os_error_code|\n", str(error), maxsplit=1)[0].strip()
    text = re.sub(r"^[A-Z]+_[A-Z_]+: ", "", text)  # and begins them with its code
    text = (text if len(text) <= 300 else text[:297] + "...").rstrip(".") or type(error).__name__
    plain = _CAUSES.get(_errno(error))
    return f"{plain} ({text})" if plain else text


def root(error: BaseException) -> BaseException:
    """The error behind a chain of them: the first of the system's if there is one, else the one that began it."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    return next((e for e in chain if _errno(e) is not None), chain[-1])


def _errno(error: BaseException) -> int | None:
    """The system's error number; TensorStore's errors carry it in their text only."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found.group(1)) if found else getattr(error, "errno", None)
