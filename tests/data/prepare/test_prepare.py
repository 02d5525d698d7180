import dataclasses
import fcntl
import hashlib
import http.server
import os
import pathlib
import re
import resource
import signal
import struct
import sys
import textwrap
import threading
import zlib

import numpy as np
import program
import pytest
from PIL import Image

from diffusion.data.array_records import tfds_source
from diffusion.data.pipeline import to_arrays
from diffusion.data.prepare import writer
from diffusion.data.prepare.__main__ import DATA_SETS, main
from diffusion.errors import DataError


def run(tiny, source, data_dir, *flags):
    return main(["cifar10", f"--source={source}", f"--data_dir={data_dir}", *flags], {"cifar10": tiny.data_set})


def check(data_dir, tiny, splits=("train", "test")):
    for split in splits:
        images, labels = getattr(tiny, split)
        arrays = to_arrays(tfds_source("cifar10", str(data_dir), split))
        np.testing.assert_array_equal(arrays["image"], images)
        np.testing.assert_array_equal(arrays["label"], labels)


def everything(data_dir):
    return sorted(str(p.relative_to(data_dir)) for p in pathlib.Path(data_dir).rglob("*") if not p.name == ".lock")


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_official_archives(tmp_path, tiny, kind, capsys):
    assert run(tiny, tiny.archive(tmp_path / f"cifar-10-{kind}.tar.gz", kind), tmp_path / "data") == 0
    assert "3.0.2 is ready: 20 train, 10 test images." in capsys.readouterr().out
    check(tmp_path / "data", tiny)
    assert everything(tmp_path / "data") == ["cifar10", "cifar10/3.0.2"] + [f"cifar10/3.0.2/{name}" for name in (
        "cifar10-test.array_record-00000-of-00001", "cifar10-train.array_record-00000-of-00001", "dataset_info.json",
        "features.json", "label.labels.txt")]


def test_tfds_reads_it(tmp_path, tiny):
    tfds = pytest.importorskip("tensorflow_datasets")
    run(tiny, tiny.npz(tmp_path / "a.npz"), tmp_path)
    builder = tfds.builder_from_directory(tmp_path / "cifar10" / "3.0.2")
    records = builder.as_data_source("train")
    assert (builder.info.name, str(builder.info.version), len(records)) == ("cifar10", "3.0.2", 20)
    np.testing.assert_array_equal(records[7]["image"], tiny.train[0][7])
    assert builder.info.features["label"].int2str(int(tiny.train[1][7])) == "automobile" == \
        tiny.data_set.class_names[records[7]["label"]]


def test_a_finished_set_is_left_alone(tmp_path, tiny, capsys):
    run(tiny, tiny.npz(tmp_path / "a.npz"), tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert run(tiny, "no such source", tmp_path) == 0
    assert "already prepared. To prepare it again, delete that folder" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


def test_url(tmp_path, tiny):
    served = tmp_path / "served"
    served.mkdir()
    archive = tiny.archive(served / "cifar-10-python.tar.gz")
    data_set = dataclasses.replace(
        tiny.data_set, archives={archive.name: hashlib.md5(archive.read_bytes()).hexdigest()})

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(served))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
        code = main(["cifar10", f"--source={url}", f"--data_dir={tmp_path / 'data'}"], {"cifar10": data_set})
        server.shutdown()
    assert code == 0
    check(tmp_path / "data", tiny)


def write_images(folder, images, labels, names=None):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        inner = folder / (names[label] if names else str(label))
        inner.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(inner / f"{i:03d}.png")


@pytest.mark.parametrize("by_name", [True, False])
def test_folder_of_images(tmp_path, tiny, by_name, capsys):
    names = tiny.data_set.class_names if by_name else None
    write_images(tmp_path / "images" / "train", *tiny.train, names)
    write_images(tmp_path / "images" / "test", *tiny.test, names)
    assert run(tiny, tmp_path / "images", tmp_path) == 1  # sorted by class: not in the official order
    assert "in another order" in capsys.readouterr().err
    assert run(tiny, tmp_path / "images", tmp_path, "--allow_other") == 0
    for split in ("train", "test"):
        images, labels = getattr(tiny, split)
        arrays = to_arrays(tfds_source("cifar10", str(tmp_path), split))
        order = np.argsort(labels, kind="stable")
        np.testing.assert_array_equal(arrays["image"], images[order])
        np.testing.assert_array_equal(arrays["label"], labels[order])


def test_other_data_needs_a_flag_and_says_so(tmp_path, tiny, capsys):
    images = tiny.train[0].copy()
    images[3, 0, 0, 0] ^= 1
    source = tiny.npz(tmp_path / "a.npz", train_images=images, test_images=None, test_labels=None)
    assert run(tiny, source, tmp_path) == 1
    error = capsys.readouterr().err
    assert "is not the official cifar10: the train images differ" in error and "there is no test split" in error
    assert "add --allow_other" in error
    assert not (tmp_path / "cifar10" / "3.0.2").exists()
    assert run(tiny, source, tmp_path, "--allow_other") == 0
    assert "Not the official cifar10: the train images differ" in capsys.readouterr().out
    assert "Not the official cifar10" in (tmp_path / "cifar10" / "3.0.2" / "dataset_info.json").read_text()
    np.testing.assert_array_equal(to_arrays(tfds_source("cifar10", str(tmp_path), "train"))["image"], images)


def test_a_changed_official_archive_is_refused_whatever_the_flags(tmp_path, tiny, capsys):
    expected = tiny.data_set
    tiny.train[0][3, 0, 0, 0] ^= 1
    archive = tiny.archive(tmp_path / "cifar-10-python.tar.gz")
    code = main(["cifar10", f"--source={archive}", f"--data_dir={tmp_path}", "--allow_other"], {"cifar10": expected})
    assert code == 1
    assert "has the form of the official cifar10, but the train images differ" in capsys.readouterr().err
    assert not (tmp_path / "cifar10" / "3.0.2").exists()


def test_the_official_counts_and_digest():
    assert DATA_SETS["cifar10"].counts == {"train": 50_000, "test": 10_000}
    assert DATA_SETS["cifar10"].sha256["train"].startswith("47af8b02")


@pytest.mark.parametrize(("changes", "message"), [
    (dict(train_labels=None), "has no train_labels. It must have train_images, train_labels"),
    (dict(train_images=None, train_labels=None), "has no train_images and no train_labels"),
    (dict(test_labels=None), "has no test_labels"),
    (dict(train_labels=np.zeros(20)), "train_labels in .* must be integers"),
    (dict(train_labels=np.array([{}] * 20)), "train_labels in .* holds Python objects, as a pickle"),
    (dict(train_labels=np.full(20, 2**32 + 1)), "has 4294967297, which is not a label"),
    (dict(train_labels=np.full(20, 2**64 - 1, np.uint64)), "has 18446744073709551615, which is not a label"),
    (dict(train_labels=np.full(20, True)), "train_labels in .* must be integers"),
    (dict(train_labels=np.zeros(19, int)), "20 images and 19 labels"),
    (dict(train_labels=np.full(20, 10)), "labels of .* run from 10 to 10; the labels of cifar10 are 0..9"),
    (dict(train_images=np.zeros((20, 28, 28, 1), np.uint8)), r"uint8 \[28, 28, 1\].*images of cifar10 are uint8 \[32"),
    (dict(train_images=np.zeros((20, 32, 32, 3), np.float32)), r"must be uint8 .*float32 .*np.rint\(127.5"),
    (dict(train_images=np.zeros((0, 32, 32, 3), np.uint8), train_labels=np.zeros(0, int)), "0 images and 0 labels"),
    (dict(train_images=np.zeros((19, 32, 32, 3), np.uint8), train_labels=np.zeros(19, int)), "19 images instead of 20"),
    (dict(train_labels=np.zeros(20, int)), "not every class has 2 train images"),
])
def test_bad_npz(tmp_path, tiny, capsys, changes, message):
    assert run(tiny, tiny.npz(tmp_path / "a.npz", **changes), tmp_path) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(err)
    assert everything(tmp_path) == ["a.npz", "cifar10"]


def test_bad_paths(tmp_path, tiny, capsys):
    def error(source):
        assert run(tiny, source, tmp_path / "data") == 1
        return capsys.readouterr().err

    assert "There is no file or folder" in error(tmp_path / "absent.npz")
    assert "is not one of the forms" in error(tmp_path)
    (tmp_path / "cut.npz").write_bytes(tiny.npz(tmp_path / "a.npz").read_bytes()[:5000])
    assert "cannot be read as an npz" in error(tmp_path / "cut.npz")
    (tmp_path / "cut.tar.gz").write_bytes(tiny.archive(tmp_path / "a.tar.gz").read_bytes()[:5000])
    assert "truncated or damaged" in error(tmp_path / "cut.tar.gz")
    for url in ("http://127.0.0.1:9/%00", "http://[", "http://127.0.0.1:9/..", "https://", "http://a b/c"):
        assert f"Downloading {url} failed" in error(url)
    assert "null byte" in error("a\0b") and "an unknown user" in error("~nobody-of-that-name/x")


def test_home_folders(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny.npz(tmp_path / "a.npz")
    assert run(tiny, "~/a.npz", "~/data") == 0
    assert len(tfds_source("cifar10", "~/data", "train")) == 20 and (tmp_path / "data").is_dir()


@pytest.mark.parametrize("name", ["pipe.npz", "pipe.tar.gz", "images/train/0/pipe.png"])
def test_a_named_pipe_is_not_waited_for(tmp_path, tiny, capsys, name):
    write_images(tmp_path / "images" / "train", *tiny.train)
    os.mkfifo(tmp_path / name)
    source = tmp_path / name.split("/")[0]
    assert run(tiny, source, tmp_path / "data") == 1
    assert f"{tmp_path / name} is a named pipe, which is not read" in capsys.readouterr().err


def test_bad_image_folders(tmp_path, tiny, capsys):
    def error(source):
        assert run(tiny, source, tmp_path / "data") == 1
        return capsys.readouterr().err

    train = tmp_path / "images" / "train"
    write_images(train, *tiny.train)
    broken = train / "0" / "999.png"
    broken.write_bytes(next(broken.parent.iterdir()).read_bytes()[:300])
    assert "999.png is not a picture that can be read, or is damaged" in error(tmp_path / "images")
    Image.new("RGB", (16, 16)).save(broken)
    assert "999.png is 16x16 (height x width), but" in error(tmp_path / "images")
    whole = broken.read_bytes()
    for side, message in ((30_000, "999.png is not a picture that can be read.*900000000"), (9_000, "is 9000x9000")):
        start = b"IHDR" + struct.pack(">2I", side, side) + whole[24:29]  # so many pixels are claimed
        broken.write_bytes(whole[:12] + start + struct.pack(">I", zlib.crc32(start)) + whole[33:])
        assert re.search(message, error(tmp_path / "images"))
    broken.unlink()
    (tmp_path / "empty" / "train" / "0").mkdir(parents=True)
    assert "has no images" in error(tmp_path / "empty")


@pytest.mark.parametrize(("path", "message"), [
    ("train/zebra/000.png", "zebra, which name no class"),
    ("train/airplane/000.png", "train/0 and .*train/airplane are the same class, 0 .airplane."),
    ("train/0/more/000.png", "more is a folder in a class's folder, whose pictures would be left out"),
    ("train/000.png", "000.png is in no class"),
    ("train/0/000.tif", "000.tif would be left out"),
    ("train/0/GRID.PNG", "GRID.PNG is 5x5"),  # read as any other
])
def test_pictures_that_would_be_left_out(tmp_path, tiny, capsys, path, message):
    write_images(tmp_path / "images" / "train", *tiny.train)
    (tmp_path / "images" / path).parent.mkdir(exist_ok=True)
    Image.new("RGB", (5, 5)).save(tmp_path / "images" / path)
    assert run(tiny, tmp_path / "images", tmp_path, "--allow_other") == 1
    assert re.search(message, capsys.readouterr().err)


def test_what_is_done_to_pictures_is_said(tmp_path, tiny, capsys):
    train = tmp_path / "images" / "train"
    write_images(train, *tiny.train)
    Image.new("RGBA", (32, 32), (9, 9, 9, 100)).save(train / "3" / "a.png")
    Image.fromarray(np.full((32, 32), 257 * 40, np.uint16)).save(train / "3" / "b.png")
    (tmp_path / "images" / "valid").mkdir()
    assert run(tiny, tmp_path / "images", tmp_path, "--allow_other") == 0
    out = capsys.readouterr().out
    assert "of the 22 pictures in" in out and "1 is with transparent parts, which are now white" in out
    assert "1 is of 16 bits, which are now 8" in out and "only train and test are read, not valid" in out


def test_killed_while_writing_leaves_nothing_that_looks_whole(tmp_path, tiny):
    source = tiny.npz(tmp_path / "a.npz")
    code = textwrap.dedent("""\
        import os, signal, sys
        from diffusion.data.prepare import writer
        from diffusion.data.prepare.__main__ import main
        png, calls = writer._png, []
        def kill_at_25(image):
            calls.append(0)
            if len(calls) == 25:  # in the second split
                os.kill(os.getpid(), signal.SIGKILL)
            return png(image)
        writer._png = kill_at_25
        main(["cifar10", f"--source={sys.argv[1]}", f"--data_dir={sys.argv[2]}", "--allow_other"])
        """)
    killed = program.execute([sys.executable, "-c", code, source, tmp_path], check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "cifar10" / ".unfinished").exists()
    assert not (tmp_path / "cifar10" / "3.0.2").exists()
    with pytest.raises(DataError, match="no prepared data set"):
        tfds_source("cifar10", str(tmp_path), "train")
    assert run(tiny, source, tmp_path) == 0
    check(tmp_path, tiny)
    assert not (tmp_path / "cifar10" / ".unfinished").exists()


def test_interrupted_by_the_user(tmp_path, tiny, monkeypatch, capsys):
    def interrupt(image):
        raise KeyboardInterrupt

    source = tiny.npz(tmp_path / "a.npz")
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_png", interrupt)
        assert run(tiny, source, tmp_path) == 130
    assert "interrupted: run the same command again" in capsys.readouterr().err
    assert everything(tmp_path) == ["a.npz", "cifar10"]
    assert run(tiny, source, tmp_path) == 0
    check(tmp_path, tiny)


def test_a_full_disk(tmp_path, tiny, capsys):
    source = tiny.npz(tmp_path / "a.npz")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # a write beyond it fails, as on a full disk
    try:
        code = run(tiny, source, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert "3.0.2 stopped: " in (err := capsys.readouterr().err) and "a full disk?" in err
    assert everything(tmp_path) == ["a.npz", "cifar10"]
    assert run(tiny, source, tmp_path) == 0


def test_records_that_do_not_read_back_stop_it(tmp_path, tiny, monkeypatch, capsys):
    png = writer._png
    monkeypatch.setattr(writer, "_png", lambda image: png(255 - image))
    assert run(tiny, tiny.npz(tmp_path / "a.npz"), tmp_path) == 1
    assert "the train images read back from" in capsys.readouterr().err
    assert everything(tmp_path) == ["a.npz", "cifar10"]


def test_two_runs_at_once(tmp_path, tiny, capsys):
    (tmp_path / "cifar10").mkdir()
    with open(tmp_path / "cifar10" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(tiny, tiny.npz(tmp_path / "a.npz"), tmp_path) == 1
    assert "Another run is preparing" in capsys.readouterr().err
    assert run(tiny, tmp_path / "a.npz", tmp_path) == 0


def test_help_is_enough(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    for word in ("cifar10", "cifar-10-python.tar.gz", "train_images uint8", "DIR/train/CLASS/*.png", "--allow_other"):
        assert word in out
