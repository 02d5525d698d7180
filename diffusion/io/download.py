"""Downloads that resume if a digest can check their content, and else start again."""
import hashlib
import http.client
import os
import pathlib
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

from tqdm import tqdm

from diffusion.errors import DataError


def is_url(source: str) -> bool:
    return source.lower().startswith(("http://", "https://"))


def file_name(url: str) -> str:
    """The last part of a URL's path as a name valid on any file system; "download" if it is empty."""
    path = urllib.parse.unquote(re.split(r"[?#]", url, maxsplit=1)[0].partition("://")[2].partition("/")[2])
    name = re.sub(r"[^\w.+ -]", "_", path.rstrip("/").rpartition("/")[2], flags=re.ASCII).lstrip(".")
    return name[-100:] or "download"


def fetch(url: str, folder: pathlib.Path, *, digest: str = "", timeout: float = 60.0) -> pathlib.Path:
    """The path of the file at `url`, downloaded into `folder`.

    digest: the file's known digest, "md5:" or "sha256:" and all or the first of its hexadecimal digits. With it, a
    finished file with this digest is reused, and an interrupted download continues; without, neither. Raises
    DataError if the server cannot be reached, the transfer breaks off, or the digest differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / (name := file_name(url)), folder / f"{name}.part"
    algorithm, _, expected = digest.partition(":")
    if digest and path.is_file() and of_file(path, algorithm).startswith(expected):
        print(f"Using {path}, which is already downloaded.", file=sys.stderr)
        return path
    if not digest:
        part.unlink(missing_ok=True)
    try:
        _transfer(url, part, timeout)
    except (OSError, http.client.HTTPException, ValueError) as e:  # URLError and timeouts are OSErrors
        again = ", which continues where this stopped," if digest else ""
        raise DataError(f"Downloading {url} failed: {e}. Run the same command again{again} or download the file by "
                        "other means and give its path instead of the URL.") from e
    if digest and not (found := of_file(part, algorithm)).startswith(expected):
        part.unlink()
        raise DataError(f"The file at {url} has the {algorithm} {found}, not {expected}: it is damaged or another "
                        "file, and was deleted. Run the same command again, or give another URL or a path.")
    os.replace(part, path)
    return path


def of_file(path: pathlib.Path, algorithm: str) -> str:
    """The digest of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _transfer(url: str, part: pathlib.Path, timeout: float) -> None:
    """Appends the missing rest of the file at `url` to `part` if the server supports that, else writes it anew."""
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as e:
        if e.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return  # nothing is left to send: the digest checks that the file is whole
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
