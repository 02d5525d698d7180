"""Files that were made to hang, to fill the memory or to run code: each is one DataError that names it."""
import io
import os
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest

from diffusion.errors import DataError
from diffusion.io import npz, reading


def archive(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def array_bytes(shape, descr="|u1", content=b"", version=1):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header + content


WHOLE = io.BytesIO()
np.save(WHOLE, np.arange(12, dtype=np.uint8).reshape(3, 4))
BAD = {
    "claims": ({"arr_0.npy": array_bytes((2**50, 32, 32, 3))}, "arr_0 should be uint8 .*but has 0"),
    "negative": ({"arr_0.npy": array_bytes((-1, 4), content=b"x")}, "damaged"),
    "bare_pickle": ({"arr_0": pickle.dumps([1])}, "holds 'arr_0', which is not an array"),
    "pickle": ({"arr_0.npy": pickle.dumps([1])}, "cannot be read as an npz of plain arrays"),
    "objects": ({"arr_0.npy": array_bytes((1,), "|O", pickle.dumps([1]))}, "arr_0 in .* holds Python objects"),
    "no_shape": ({"arr_0.npy": array_bytes("'x'")}, "cannot be read as an npz"),
    "code": ({"arr_0.npy": array_bytes("__import__('os')")}, "cannot be read as an npz"),
    "deep": ({"arr_0.npy": array_bytes("(" * 5000)}, "cannot be read as an npz"),
    "version": ({"arr_0.npy": array_bytes((1,), content=b"x", version=9)}, "cannot be read as an npz"),
    "short": ({"arr_0.npy": WHOLE.getvalue()[:-1]}, "12 bytes, but has 11"),
    "empty_member": ({"arr_0.npy": b""}, "cannot be read as an npz"),
}


@pytest.mark.parametrize("name", BAD)
def test_npz_files_that_lie(tmp_path, name):
    members, message = BAD[name]
    path = archive(tmp_path / "x.npz", members)
    for read in (npz.headers, npz.read_npz, lambda path: list(npz.batches(path, "arr_0", 2))):
        with pytest.raises(DataError, match=f"x.npz|{message}") as raised:
            read(path)
    with pytest.raises(DataError, match=message):
        npz.headers(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_npz_files_are_read(tmp_path):
    array = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", array, other=np.float64(2))
        assert str(npz.headers(tmp_path / "a.npz")["arr_0"]) == "int16 [4, 3, 2]"
        found = npz.read_npz(tmp_path / "a.npz")
        np.testing.assert_array_equal(found["arr_0"], array)
        assert found["other"] == 2 and set(npz.read_npz(tmp_path / "a.npz", ["other"])) == {"other"}
        np.testing.assert_array_equal(np.concatenate(list(npz.batches(tmp_path / "a.npz", "arr_0", 3))), array)


def test_an_npz_that_memory_does_not_hold_is_not_decoded(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", np.zeros((1000, 1000), np.uint8))  # 1 kB
    monkeypatch.setattr(reading, "memory_limit", lambda: 500_000)
    with pytest.raises(DataError, match="a.npz would take .* GiB of memory"):
        npz.read_npz(tmp_path / "a.npz")
    assert len(list(npz.batches(tmp_path / "a.npz", "arr_0", 100))) == 10


def test_the_limit_of_the_shell_is_known():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (12345 * 2**20, before[1]))
        assert reading.memory_limit() <= 12345 * 2**20
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def test_only_ordinary_files_are_opened(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").write_text("x")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    assert reading.ordinary("~/link") == tmp_path / "link"
    for path, message in ((tmp_path / "pipe", "a named pipe"), ("/dev/zero", "a device"), (tmp_path, "is a folder"),
                          (tmp_path / "b", "There is no file"), ("a\0b", "cannot be used as a path: .*null byte"),
                          ("~no-one-here/a", "home folder"),
                          (tmp_path / "a" / "b", "cannot be opened|no file"), (tmp_path / "loop", "cannot be opened"),
                          (tmp_path / ("x" * 300), "cannot be used as a path: .*too long"),
                          ("\ud800", "cannot be used as a path"),
                          ("", "is empty")):
        with pytest.raises(DataError, match=message):
            reading.ordinary(path)


def test_errors_of_any_class_become_one():
    for error in (MemoryError(), RuntimeError("a\nb"), KeyError("x"), struct.error("y")):
        with pytest.raises(DataError, match=r"x is odd: .+\. Mend it\."), reading.reading("x is odd", "Mend it."):
            raise error
    with pytest.raises(KeyboardInterrupt), reading.reading("", ""):
        raise KeyboardInterrupt
