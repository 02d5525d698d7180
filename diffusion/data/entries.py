"""The files in a folder, a .zip or a .tar, read at random without unpacking."""
import functools
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from diffusion.data.files import File
from diffusion.errors import DataError
from diffusion.io.reading import ordinary, reading

LARGEST = 2**29   # bytes of one unpacked file
_SHARE, _SMALL = 1000, 2**26  # an archive's larger files may unpack to at most this many times their packed size


class Entries(Protocol):
    """Files by their names: paths with "/", relative to the folder or archive, in sorted order."""
    where: str
    names: Sequence[str]

    def read(self, name: str) -> File:
        """The file. Raises DataError if it cannot be read."""


def opened(path: Path) -> Entries:
    """The files in a folder at any depth or in an archive, or a file alone. Hidden files are left out. Raises DataError
    for an archive that is damaged, or has entries outside its folder, links or encrypted entries."""
    if path.is_dir():
        return FolderEntries(str(path), sorted(_below(path)))
    if path.suffix.lower() not in (".zip", ".tar") and ".tar." not in path.name:
        return FolderEntries(str(path.parent), [path.name])
    if path.suffix.lower() == ".zip":
        return ZipEntries(str(path), _zip_names(path))
    places = {}
    remedy = "Unpack it, and give the folder. A .tar.gz must be unpacked, since it cannot be read at random."
    with reading(f"{path} cannot be read as a .tar, or is damaged", remedy), tarfile.open(ordinary(path), "r:") as tar:
        places |= _tar_places(tar, path)
    return TarEntries(str(path), sorted(places), places)


@dataclass(frozen=True, eq=False)
class FolderEntries:
    """The files below a folder."""
    where: str
    names: Sequence[str]

    def read(self, name: str) -> File:
        path = os.path.join(self.where, name)
        with reading(f"{path} cannot be read", "Replace or remove it."):
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                ordinary(path)  # names what it is instead
            if found.st_size > LARGEST:
                raise DataError(f"{path} has {found.st_size:,} bytes, more than {LARGEST:,} for one example.")
            with open(path, "rb", buffering=0) as file:
                return File(path, file.readall())


def _below(path: Path) -> Iterator[str]:
    """The files below a folder. Links are followed, each folder only once on a path."""
    pending: list[tuple[str, tuple]] = [("", ())]
    while pending:
        below, above = pending.pop()
        with reading(f"The folder {path / below} cannot be read", "Check its permissions."):
            found = os.stat(path / below)
            identity = found.st_dev, found.st_ino
            entries = list(os.scandir(path / below))
        if identity in above:
            raise DataError(f"{path / below} links to a folder above it, which has no end. Remove the link.")
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                pending.append((name, (*above, identity)))
            else:
                yield name


@dataclass(frozen=True, eq=False)
class ZipEntries:
    """The files of a .zip."""
    where: str
    names: Sequence[str]

    def read(self, name: str) -> File:
        where = f"{name} in {self.where}"
        with reading(f"{where} cannot be read, or is damaged", "Pack the archive again."):
            return File(where, _zip(self.where).read(name))


@functools.lru_cache(maxsize=8)
def _zip(path: str) -> zipfile.ZipFile:
    """The open archive, once in each process."""
    return zipfile.ZipFile(ordinary(path))


def _zip_names(path: Path) -> list[str]:
    with reading(f"{path} cannot be read as a .zip, or is damaged", "Copy or pack it again."):
        infos = [info for info in _zip(str(path)).infolist() if not info.is_dir() and not _hidden(info.filename)]
    for info in infos:
        _check_name(info.filename, path)
        if info.flag_bits & 1:
            raise DataError(f"{info.filename} in {path} is encrypted: unpack the archive, and give the folder.")
        _check_size(info.filename, info.file_size, path)
        if info.file_size > _SMALL and info.file_size > _SHARE * info.compress_size:
            raise DataError(f"{info.filename} in {path} unpacks to {info.file_size:,} bytes from "
                            f"{info.compress_size:,}: it is made to fill the memory.")
    names = sorted(info.filename for info in infos)
    if twice := next((a for a, b in zip(names, names[1:]) if a == b), None):
        raise DataError(f"{path} holds {twice} twice. Pack the archive again.")
    return names


@dataclass(frozen=True, eq=False)
class TarEntries:
    """The files of an uncompressed .tar, and of the .tar files in it, each of which is a folder (ImageNet's form)."""
    where: str
    names: Sequence[str]
    places: Mapping[str, tuple[int, int]]  # offset and size of each

    def read(self, name: str) -> File:
        offset, size = self.places[name]
        where = f"{name} in {self.where}"
        with reading(f"{where} cannot be read", "Copy the archive again."):
            content = os.pread(_descriptor(self.where), size, offset)
        if len(content) < size:
            raise DataError(f"{self.where} ends within {name}: it is truncated. Copy it again.")
        return File(where, content)


@functools.lru_cache(maxsize=8)
def _descriptor(path: str) -> int:
    """Of the open file, once in each process."""
    return os.open(path, os.O_RDONLY)


def _tar_places(tar: tarfile.TarFile, path: Path, inside: str = "", start: int = 0) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for member in tar:
        name = re.sub(r"^(\./)+", "", member.name)
        if member.isdir() or _hidden(name):
            continue
        _check_name(name, path)
        if not member.isreg() or member.sparse is not None:
            raise DataError(f"{name} in {path} is a link or a special file, which is not read. Pack the archive with "
                            "the files themselves.")
        name, offset = inside + name, start + member.offset_data
        if name.endswith(".tar") and not inside:
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                found |= _tar_places(inner, path, name.removesuffix(".tar") + "/", offset)
            continue
        _check_size(name, member.size, path)
        if name in found:
            raise DataError(f"{path} holds {name} twice. Pack the archive again.")
        found[name] = offset, member.size
    return found


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") or part == "__MACOSX" for part in name.split("/"))


def _check_name(name: str, path: Path) -> None:
    if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name or ":" in name.split("/")[0]:
        raise DataError(f"{path} has the entry {name!r}, which leaves the archive's folder: it is not read.")


def _check_size(name: str, size: int, path: Path) -> None:
    if size > LARGEST:
        raise DataError(f"{name} in {path} has {size:,} bytes, more than {LARGEST:,} for one example.")
