"""Downloads that resume where their content can be checked, and start again where it cannot."""
import hashlib
import http.client
import os
import pathlib
import urllib.error
import urllib.parse
import urllib.request

from tqdm import tqdm

from diffusion.errors import DataError


def fetch(url: str, folder: pathlib.Path, *, md5: str | None = None, timeout: float = 60.0) -> pathlib.Path:
    """The path of the file at `url`, downloaded into `folder`.

    With an md5, a finished file that has it is used as it is, and an interrupted download continues; without, neither.
    Raises DataError if the server cannot be reached, the transfer breaks off, or the md5 differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = pathlib.PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name or "download"
    path, part = folder / name, folder / f"{name}.part"
    if md5 and path.is_file() and _md5(path) == md5:
        print(f"Using {path}, which is already downloaded.")
        return path
    if not md5:
        part.unlink(missing_ok=True)
    try:
        _transfer(url, part, timeout)
    except (OSError, http.client.HTTPException, ValueError) as e:  # URLError and timeouts are OSErrors
        again = ", which continues where this stopped," if md5 else ""
        raise DataError(f"Downloading {url} failed: {e}. Run the same command again{again} or download the file by "
                        "other means and give its path as --source.") from e
    if md5 and (found := _md5(part)) != md5:
        part.unlink()
        raise DataError(f"The file at {url} has the md5 {found}, not {md5}: it is damaged or another file, and was "
                        "deleted. Run the same command again, or give another URL or a path as --source.")
    os.replace(part, path)
    return path


def _transfer(url: str, part: pathlib.Path, timeout: float) -> None:
    """Appends to `part` what it lacks of the file at `url`, if the server can do that; else writes it anew."""
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as e:
        if e.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return  # nothing is left to send: the md5 tells whether the file is whole
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (open(part, "ab" if start else "wb") as file,
              tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, mininterval=1) as progress):
            while block := response.read(1 << 20):
                file.write(block)
                progress.update(len(block))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"the connection ended after {part.stat().st_size} of {total} bytes")


def _md5(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
