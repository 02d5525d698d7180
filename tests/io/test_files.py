import concurrent.futures
import os
import threading

import pytest

from diffusion.errors import CheckpointError, ConfigError
from diffusion.io.files import atomic_write, cause, check_can_be_written


def test_writes_text_bytes_and_functions_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.txt"
    atomic_write(path, "é")
    assert path.read_bytes() == "é".encode()
    atomic_write(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    atomic_write(path, lambda file: file.write(b"third"))
    assert path.read_bytes() == b"third" and os.listdir(path.parent) == ["b.txt"]


def test_a_failure_keeps_the_old_file_and_leaves_no_part(tmp_path):
    path = tmp_path / "b.txt"
    atomic_write(path, "old")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"b\.txt could not be written: the disk is full \(.*\)\. Free some"):
        atomic_write(path, fail)
    with pytest.raises(KeyError):  # a bug stays what it is
        atomic_write(path, lambda file: {}["x"])
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["b.txt"]


def test_what_cannot_be_written_is_known_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    check_can_be_written(tmp_path / "file")
    check_can_be_written(tmp_path / "new" / "folder" / "file")
    for path in (tmp_path, tmp_path / "file" / "b", tmp_path / "file" / "b" / "c"):
        with pytest.raises(ConfigError, match=f"{path} cannot be written: it is a folder, or below a file"):
            check_can_be_written(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="a file is where a folder should be.*Check the folder and"):
        atomic_write(tmp_path / "file" / "b.txt", "x")


def test_causes_are_one_short_line():
    try:
        try:
            raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='28']"
                             " [tensorstore_spec='{}']\nmore")
        except ValueError as inner:
            raise RuntimeError("wrapped") from inner
    except RuntimeError as error:
        assert cause(error) == "the disk is full (Failed to write: No space left on device)"
    assert len(cause(ValueError("a" * 1000))) <= 300
    assert cause(ValueError("")) == "ValueError"


def test_the_new_file_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    """Otherwise a power cut leaves the name on an empty file, or, where the old one is written over, on half of one."""
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(("fsync", os.fstat(file).st_ino)), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("replace", os.stat(a).st_ino)), replace(a, b)))
    path = tmp_path / "a.txt"
    path.write_text("old")
    atomic_write(path, "new")
    inode = path.stat().st_ino
    assert done == [("fsync", inode), ("replace", inode), ("fsync", tmp_path.stat().st_ino)]
    assert path.read_text() == "new"


def test_threads_that_write_one_file_do_not_meet(tmp_path):
    both = threading.Barrier(2)

    def content(letter):
        def write(file):
            file.write(letter * 1000)
            both.wait(10)  # each is half done
            file.write(letter * 1000)
        return write

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(atomic_write, tmp_path / "a", content(letter)) for letter in (b"x", b"y")]:
            done.result()
    assert (tmp_path / "a").read_bytes() in (b"x" * 2000, b"y" * 2000) and os.listdir(tmp_path) == ["a"]
