import os
import pickle
import tarfile

import numpy as np
import pytest

from diffusion.data.prepare import cifar10
from diffusion.errors import DataError


def check(splits, tiny):
    assert splits.keys() == {"train", "test"}
    for split, (images, labels) in (("train", tiny.train), ("test", tiny.test)):
        np.testing.assert_array_equal(splits[split][0], images)
        np.testing.assert_array_equal(splits[split][1], labels)
        assert splits[split][0].dtype == np.uint8 and splits[split][1].dtype == np.int32


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_reads_both_archives_and_their_folders(tmp_path, tiny, kind):
    check(cifar10.read_official(tiny.archive(tmp_path / f"cifar-10-{kind}.tar.gz", kind)), tiny)
    folder = tmp_path / "unpacked" / {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}[kind]
    folder.mkdir(parents=True)
    for name, data in tiny.files(kind).items():
        (folder / name).write_bytes(data)
    check(cifar10.read_official(folder), tiny)
    check(cifar10.read_official(folder.parent), tiny)


def test_the_pickle_is_as_python_2_wrote_it(tiny):
    batch = pickle.loads(tiny.files()["data_batch_1"], encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"][0].reshape(3, 32, 32).transpose(1, 2, 0), tiny.train[0][0])
    assert b"numpy.core.multiarray\n_reconstruct" in tiny.files()["data_batch_1"]


def test_reads_column_major_arrays(tiny):
    rows = np.asfortranarray(tiny.train[0].transpose(0, 3, 1, 2).reshape(20, -1))
    data = pickle.dumps({b"data": rows, b"labels": tiny.train[1].tolist()}, protocol=3)
    np.testing.assert_array_equal(cifar10._decode_python(data, "here")[0], tiny.train[0])


def test_other_paths_are_not_official(tmp_path):
    assert cifar10.read_official(tmp_path) is None
    assert cifar10.read_official(tmp_path / "images.npz") is None


class Calls:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("function", [os.system, eval, pickle.loads, np.load, getattr])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, tiny, function):
    marker = tmp_path / "was_run"
    argument = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w')"
    evil = pickle.dumps({b"data": Calls(function, argument), b"labels": [0]}, protocol=2)
    archive = tiny.archive(tmp_path / "cifar-10-python.tar.gz", files=tiny.files() | {"data_batch_3": evil})
    with pytest.raises(DataError, match=r"data_batch_3 in .*cifar-10-python.tar.gz.*it names .*; refused"):
        cifar10.read_official(archive)
    assert not marker.exists()


@pytest.mark.parametrize("data", [b"", b"\x80\x02}q\x00.", pickle.dumps([1, 2]), b"<html>", pickle.dumps({b"data": 3}),
                                  pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
                                  pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [1, 2]}),
                                  pickle.dumps({b"data": np.zeros((2, 300), np.uint8), b"labels": [1, 2]})])
def test_a_damaged_pickle_is_named(data):
    with pytest.raises(DataError, match="data_batch_1 (is not a batch|has 2 images and labels)"):
        cifar10._decode_python(data, "data_batch_1")


def test_a_truncated_pickle_is_named(tiny):
    data = tiny.files()["data_batch_1"]
    for length in (len(data) // 2, len(data) - 1):
        with pytest.raises(DataError, match="data_batch_1 is not a batch of CIFAR-10"):
            cifar10._decode_python(data[:length], "data_batch_1")


def test_a_binary_batch_of_another_length_is_named(tiny):
    with pytest.raises(DataError, match="has 12291 bytes, which is not a multiple of 3073"):
        cifar10._decode_binary(tiny.files("binary")["data_batch_1.bin"][:-1], "here")


def test_a_broken_archive_is_named(tmp_path, tiny):
    whole = tiny.archive(tmp_path / "cifar-10-python.tar.gz").read_bytes()
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(DataError, match="cut.tar.gz cannot be read as an archive.*truncated"):
        cifar10.read_official(path)
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(DataError, match="cut.tar.gz cannot be read as an archive"):
        cifar10.read_official(path)
    files = tiny.files()
    del files["data_batch_4"]
    with pytest.raises(DataError, match="lacks data_batch_4: it is incomplete"):
        cifar10.read_official(tiny.archive(path, files=files))
    with pytest.raises(DataError, match="holds neither .* it is not an archive of CIFAR-10"):
        cifar10.read_official(tiny.archive(path, files={"other": b""}))


@pytest.mark.parametrize("folder", ["../cifar-10-batches-py", "/cifar-10-batches-py", "x/cifar-10-batches-py",
                                    "cifar-10-batches-py/../../x"])
def test_members_elsewhere_are_not_read_and_nothing_is_unpacked(tmp_path, monkeypatch, tiny, folder):
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    archive = tiny.archive(tmp_path / "cifar-10-python.tar.gz", folder=folder)
    with pytest.raises(DataError, match="not an archive of CIFAR-10"):
        cifar10.read_official(archive)
    check(cifar10.read_official(tiny.archive(archive)), tiny)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "cifar-10-python.tar.gz"]


def test_links_in_an_archive_are_not_followed(tmp_path, tiny):
    secret = tmp_path / "secret"
    secret.write_bytes(tiny.files()["data_batch_1"])
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
            member.type, member.linkname = kind, str(secret)
            archive.addfile(member)
    with pytest.raises(DataError, match="not an archive of CIFAR-10"):
        cifar10.read_official(path)


def test_a_member_that_is_too_large_is_not_read(tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(cifar10, "_MAX_BYTES", 100)
    with pytest.raises(DataError, match="not an archive of CIFAR-10"):
        cifar10.read_official(tiny.archive(tmp_path / "cifar-10-python.tar.gz"))


@pytest.mark.parametrize("size", [10**30, 2**62, 2**31, -1, -1024])
def test_a_member_of_an_absurd_size_is_an_error(tmp_path, size):
    path = tmp_path / "cifar-10-python.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.pax_headers = {"size": str(size)}
        archive.addfile(member)
    with pytest.raises(DataError, match="cannot be read as an archive|unpacks to more than|is damaged"):
        cifar10.read_official(path)


@pytest.mark.parametrize("labels", [[0, 1.5, 2, 3], ["0", "1", "2", "3"], [0, True, 2, 3], [0, 2**40, 2, 3], "0123",
                                    None])
def test_labels_of_another_type_are_no_labels(labels):
    """Numbers with a fraction were cut, and text read as numbers."""
    batch = {b"data": np.zeros((4, 3072), np.uint8), b"labels": labels}
    with pytest.raises(DataError, match="here is not a batch of CIFAR-10"):
        cifar10._decode_python(pickle.dumps(batch, protocol=3), "here")


def test_a_pickle_cannot_name_the_memory_it_takes():
    """Pickle's own reader, in C, makes room for so many entries as a forged one names, and fills it."""
    with pytest.raises(DataError, match="here is not a batch"):
        cifar10._decode_python(b"\x80\x02}r\xff\xff\xff\xff.", "here")
