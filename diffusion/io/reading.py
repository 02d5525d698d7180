"""Reads untrusted files.

Only ordinary files are opened (a named pipe or a device may never end), nothing is decoded that needs more memory than
exists, and any error of a decoder becomes one DataError that names the file.
"""
import contextlib
import errno
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

from diffusion.errors import DataError, DiffusionError
from diffusion.io.files import cause

_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def expanded(path: str | os.PathLike) -> Path:
    """`path` with a leading ~ or ~USER replaced. Raises DataError for an unusable path."""
    if not os.fspath(path):
        raise DataError("The path of a file or folder is empty.")
    try:
        found = Path(path).expanduser()
        os.lstat(found)
    except RuntimeError as error:
        raise DataError(f"{str(path)!r} names the home folder of an unknown user. Give the whole "
                        "path.") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte, or invalid text
        if getattr(error, "errno", None) not in (errno.ENOENT, errno.ENOTDIR):  # it may still be created
            why = getattr(error, "strerror", None) or str(error).partition(":")[0]
            raise DataError(f"{str(path)[:100]!r} cannot be used as a path: {why}.") from error
    return found


def ordinary(path: str | os.PathLike) -> Path:
    """The path of an ordinary file that can be opened, with ~ expanded and links followed. Raises DataError for any
    other path."""
    path = expanded(path)
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {cause(error)}.") from error
    if kind == stat.S_IFDIR:
        raise DataError(f"{path} is a folder; a file is needed here.")
    if kind != stat.S_IFREG:
        raise DataError(f"{path} is {_KINDS.get(kind, 'no ordinary file')}, which is not read: copy its content into "
                        "an ordinary file.")
    return path


@contextlib.contextmanager
def reading(problem: str, remedy: str) -> Iterator[None]:
    """Raises DataError "PROBLEM: cause. REMEDY" for any error inside except our own: damaged files make decoders raise
    errors of every class, including MemoryError."""
    try:
        yield
    except DiffusionError:
        raise
    except Exception as error:
        text, kind = str(error).partition("\n")[0].strip()[:300].rstrip("."), type(error).__name__
        text = text if text and isinstance(error, (OSError, ValueError)) else f"{kind}: {text}" if text else kind
        raise DataError(f"{problem}: {text}. {remedy}") from error


def check_room(size: int, what: str) -> None:
    """Raises DataError if `size` bytes are more than this process can ever have."""
    if size > (room := memory_limit()):
        raise DataError(f"{what} would take {size / 2**30:,.3g} GiB of memory, but there are only {room / 2**30:,.3g} "
                        "GiB: it is damaged, made to fill the memory, or for a larger machine.")


def memory_limit() -> int:
    """The bytes that this process may have, limited by machine, container (cgroup v2) and shell (ulimit)."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    limits += [soft for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
               if (soft := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY]
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)
