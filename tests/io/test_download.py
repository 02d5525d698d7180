import hashlib
import http.server
import threading

import pytest

from diffusion.errors import DataError
from diffusion.io import download

CONTENT = bytes(range(256)) * 2000
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Server:
    """Serves CONTENT at any path but /absent; the next answer breaks off after `breaks_after` bytes, if that is set."""

    def __init__(self):
        self.ranges, self.breaks_after, self.knows_ranges, self.content = [], None, True, CONTENT
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                if self.path == "/absent":
                    return self.send_error(404)
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and outer.knows_ranges else 0
                if start >= len(outer.content):
                    return self.send_error(416)
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:outer.breaks_after])
                outer.breaks_after = None

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/set.tar.gz"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_downloads_and_does_not_do_so_again(tmp_path, server, capsys):
    path = download.fetch(server.url, tmp_path, digest=MD5)
    assert path == tmp_path / "set.tar.gz" and path.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["set.tar.gz"]
    assert download.fetch(server.url, tmp_path, digest=MD5) == path
    assert server.ranges == [None]
    path.write_bytes(b"damaged since")
    assert download.fetch(server.url, tmp_path, digest=MD5).read_bytes() == CONTENT


def test_a_broken_transfer_is_continued(tmp_path, server):
    server.breaks_after = 100_000
    with pytest.raises(DataError, match="connection ended after 100000 of 512000 bytes.*continues where this stopped"):
        download.fetch(server.url, tmp_path, digest=MD5)
    assert not (tmp_path / "set.tar.gz").exists()
    assert download.fetch(server.url, tmp_path, digest=MD5).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def test_a_server_without_ranges_sends_all_of_it(tmp_path, server):
    server.knows_ranges = False
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT[:5000])
    assert download.fetch(server.url, tmp_path, digest=MD5).read_bytes() == CONTENT
    assert server.ranges == ["bytes=5000-"]


def test_a_part_that_is_complete_needs_nothing_more(tmp_path, server):
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT)
    assert download.fetch(server.url, tmp_path, digest=MD5).read_bytes() == CONTENT


def test_without_a_digest_it_starts_anew(tmp_path, server):
    (tmp_path / "set.tar.gz.part").write_bytes(b"of another file")
    (tmp_path / "set.tar.gz").write_bytes(b"of another day")
    assert download.fetch(server.url, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None]


def test_another_content_is_refused_and_deleted(tmp_path, server):
    server.content = b"<html>we have moved</html>"
    with pytest.raises(DataError, match=f"has the md5 .*, not {MD5[4:]}:.*deleted"):
        download.fetch(server.url, tmp_path, digest=MD5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", ["/absent", None])
def test_a_server_that_does_not_answer_is_named(tmp_path, server, end):
    url = server.url.replace("/set.tar.gz", end) if end else "http://127.0.0.1:1/set.tar.gz"
    with pytest.raises(DataError, match="Downloading http://127.0.0.1.* failed: .*(404|refused).*give its path"):
        download.fetch(url, tmp_path, digest=MD5)
