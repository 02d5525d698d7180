import gzip
import json
import os
import pathlib
import struct
import sys

import numpy as np
import pytest

from diffusion.data import array_records, sources
from diffusion.data.pipeline import to_arrays
from diffusion.data.prepare import writer
from diffusion.errors import DataError


def random_images(n, shape=(6, 6, 3), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), rng.integers(0, 3, n).astype(np.int32)


def test_array_source():
    images, labels = random_images(4)
    source = sources.ArraySource(images, labels)
    assert len(source) == 4
    np.testing.assert_array_equal(source[2]["image"], images[2])
    assert source[2]["label"] == labels[2] and source[2]["label"].dtype == np.int32
    with pytest.raises(DataError, match=r"uint8 .* float32 .*np.rint\(127.5"):
        sources.ArraySource(images.astype(np.float32), labels)
    with pytest.raises(DataError, match="Labels must be int32 \\[4\\]"):
        sources.ArraySource(images, labels[:3])


class Listed:
    """A source that is read element by element."""
    num_classes = 3

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return self.examples[i]


def test_take_gathers_from_any_source_alike():
    images, labels = random_images(5)
    listed = Listed([{"image": im, "label": la} for im, la in zip(images, labels, strict=True)])
    for source in (sources.ArraySource(images, labels), listed):
        got = sources.gather_examples(source, np.array([3, 0, 3]))
        np.testing.assert_array_equal(got["image"], images[[3, 0, 3]])
        np.testing.assert_array_equal(got["label"], labels[[3, 0, 3]])
        assert got["label"].dtype == np.int32


def test_take_names_images_of_different_sizes():
    listed = Listed([{"image": np.zeros(s, np.uint8), "label": np.int32(0)} for s in ((2, 2, 1), (2, 2, 1), (3, 2, 1))])
    with pytest.raises(DataError, match="image 1 is 2x2x1, image 2 is 3x2x1"):
        sources.gather_examples(listed, [0, 1, 2])


def test_labels_and_types_of_every_example_are_checked():
    image = np.zeros((2, 2, 1), np.uint8)
    for label in (-1, 3, 2**32, np.int64(2**40), np.uint8(3)):
        with pytest.raises(DataError, match=f"label of example 1 is {label}, but the data set's classes are 0 .. 2"):
            sources.gather_examples(Listed([{"image": image, "label": 2}, {"image": image, "label": label}]), [0, 1])
    with pytest.raises(DataError, match="image 1 is float32.*np.rint"):
        sources.gather_examples(Listed([{"image": image, "label": 0},
                                        {"image": image.astype(np.float32), "label": 0}]), [0, 1])
    with pytest.raises(DataError, match="the label of example 1 is -1"):
        sources.ArraySource(np.zeros((2, 2, 2, 1), np.uint8), np.array([0, -1], np.int32))


def test_a_model_without_classes_needs_no_labels(tmp_path, monkeypatch):
    """Such as those of a test split that are not published, -1."""
    tfds = pytest.importorskip("tensorflow_datasets")
    with monkeypatch.context() as patch:
        patch.setattr(tfds.features.ClassLabel, "encode_example", lambda self, label: -1)
        write_tfds(tmp_path)
    source = array_records.tfds_source("tiny", str(tmp_path), "train")
    with pytest.raises(DataError, match="label of example 2 is -1.*unconditional"):
        sources.gather_examples(source, [2])
    assert sources.gather_examples(sources.without_labels(source), [2, 3])["label"].tolist() == [0, 0]
    assert sources.without_labels(sources.ArraySource(*random_images(4))).num_classes == 1


def test_check_images():
    square = sources.ArraySource(*random_images(2, (8, 8, 1)))
    sources.check_images(square, 8, 8, 1)
    with pytest.raises(DataError, match="8x8x1 .*32x32x3.*--config.data.size=8 --config.data.channels=1"):
        sources.check_images(square, 32, 32, 3)
    with pytest.raises(DataError, match="8x6x3.*--config.data.size=8,6 --config.data.channels=3"):
        sources.check_images(sources.ArraySource(*random_images(2, (8, 6, 3))), 8, 8, 3)
    with pytest.raises(DataError, match="must be uint8.*float32"):
        sources.check_images(Listed([{"image": np.zeros((8, 8, 1), np.float32), "label": 0}]), 8, 8, 1)
    with pytest.raises(DataError, match="no images"):
        sources.check_images(Listed([]), 8, 8, 1)


def test_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    levels, labels = datasets.load_digits(return_X_y=True)
    train, test, everything = (sources.digits(split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1437, 360, 1797)
    assert everything.images.shape == (1797, 8, 8, 1) and everything.images.max() == 255
    np.testing.assert_array_equal(np.round(everything.images.reshape(1797, 64) * (16 / 255)), levels)
    np.testing.assert_array_equal(test.images, everything.images[::5])
    np.testing.assert_array_equal(test.labels, labels[::5])
    np.testing.assert_array_equal(train.images[:4], everything.images[1:5])
    with pytest.raises(DataError, match="no split 'valid'.*train, test, all"):
        sources.digits("valid")


def test_digits_without_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'diffusion\[digits\]'"):
        sources.digits("train")


def idx_bytes(array):
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, images, labels, prefix="train", compress=False):
    folder.mkdir(exist_ok=True)
    for kind, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        data = idx_bytes(array)
        (folder / (kind + ".gz" * compress)).write_bytes(gzip.compress(data) if compress else data)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_idx(tmp_path, compress, split, prefix):
    images, labels = random_images(7, (5, 4))
    write_idx(tmp_path / "set", images, labels.astype(np.uint8), prefix, compress)
    source = sources.idx(str(tmp_path / "set"), split)
    np.testing.assert_array_equal(source.images, images[..., None])
    np.testing.assert_array_equal(source.labels, labels)


def test_idx_bad_input(tmp_path):
    images, labels = random_images(7, (5, 4))
    labels = labels.astype(np.uint8)
    with pytest.raises(DataError, match="no folder.*dataset-fashion-mnist"):
        sources.idx(str(tmp_path / "absent"), "train")
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="neither train-images-idx3-ubyte nor .*gz.*dataset-fashion-mnist"):
        sources.idx(str(tmp_path / "set"), "train")
    with pytest.raises(DataError, match="no split 'valid'.*train, test"):
        sources.idx(str(tmp_path / "set"), "valid")

    def broken(name, data, message):
        folder = tmp_path / "set"
        for file in folder.iterdir():
            file.unlink()
        write_idx(folder, images, labels)
        (folder / name.removesuffix(".gz")).unlink()
        (folder / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            sources.idx(str(folder), "train")

    whole = idx_bytes(images)
    broken("train-images-idx3-ubyte.gz", gzip.compress(whole)[:-20], "gz is truncated or damaged")
    broken("train-images-idx3-ubyte.gz", b"<html>not found</html>", "gz is truncated or damaged")
    broken("train-images-idx3-ubyte", whole[:-1], "7x5x4 = 140 bytes, but has 139")
    broken("train-images-idx3-ubyte", idx_bytes(labels), "magic number is 0x00000801, not 0x00000803")
    broken("train-images-idx3-ubyte", b"", "magic number is 0x00000000")
    zeros = gzip.compress(struct.pack(">4I", 0x803, 2**30, 2**10, 2**10) + bytes(2**20))  # claims an exbibyte
    broken("train-images-idx3-ubyte.gz", zeros, "gz would take .* GiB of memory")
    broken("train-images-idx3-ubyte.gz", gzip.compress(whole + b"x"), "7x5x4 = 140 bytes, but has more")
    broken("train-images-idx3-ubyte", struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1), "GiB of memory")
    broken("train-labels-idx1-ubyte", idx_bytes(labels[:6]), "7 images, but there are 6 labels")


@pytest.mark.parametrize("variable", ["DIFFUSION_MNIST", "DIFFUSION_FASHION_MNIST"])
def test_idx_reads_the_real_files(variable):
    folder = os.environ.get(variable, "/usr/share/datasets/fashion-mnist" if "FASHION" in variable else "")
    if not pathlib.Path(folder or "absent").is_dir():
        pytest.skip(f"no real data: set {variable} to a folder with MNIST's four idx files")
    train, test = sources.idx(folder, "train"), sources.idx(folder, "test")
    assert train.images.shape == (60_000, 28, 28, 1) and test.images.shape == (10_000, 28, 28, 1)
    assert set(train.labels) == set(test.labels) == set(range(10))


def write_tfds(data_dir, n=11, shape=(6, 6, 3), version="1.0.0", images_per_shard=4):
    images, labels = random_images(n, shape)
    writer.write(pathlib.Path(data_dir, "tiny", version), {"train": (images, labels)}, writer.Layout(
        name="tiny", version=version, description="", class_names=("a", "b", "c"), shape=shape),
        images_per_shard=images_per_shard)
    return images, labels


@pytest.mark.parametrize("shape", [(6, 6, 3), (6, 6, 1), (5, 4, 4)])
def test_tfds_source_reads_what_was_written(tmp_path, shape):
    images, labels = write_tfds(tmp_path, shape=shape)
    source = array_records.tfds_source("tiny", str(tmp_path), "train")
    assert len(source) == 11
    arrays = to_arrays(source)
    np.testing.assert_array_equal(arrays["image"], images)
    np.testing.assert_array_equal(arrays["label"], labels)
    assert arrays["image"].dtype == np.uint8 and arrays["label"].dtype == np.int32
    part = to_arrays(array_records.tfds_source("tiny", str(tmp_path), "train[3:9]"))
    np.testing.assert_array_equal(part["image"], images[3:9])


def test_tfds_reads_it_too_and_tensorflow_stays_out(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    images, labels = write_tfds(tmp_path)
    records = tfds.builder_from_directory(tmp_path / "tiny" / "1.0.0").as_data_source("train")
    assert len(records) == 11 and records[5]["id"] == b"train_00005"
    np.testing.assert_array_equal(records[5]["image"], images[5])
    assert records[5]["label"] == labels[5]
    assert records.dataset_info.features["label"].names == ["a", "b", "c"]
    assert "tensorflow" not in sys.modules


def test_tfds_source_takes_the_newest_version(tmp_path):
    write_tfds(tmp_path, n=3, version="9.0.0")
    write_tfds(tmp_path, n=5, version="10.0.0")
    assert len(array_records.tfds_source("tiny", str(tmp_path), "train")) == 5


def test_tfds_source_of_an_empty_split(tmp_path):
    write_tfds(tmp_path)
    for split in ("train[:0]", "train[5:5]", "train[50%:50%]"):
        with pytest.raises(DataError, match=r"is empty. Its splits: train \(11 examples\)"):
            array_records.tfds_source("tiny", str(tmp_path), split)
    for split in ("", "train[", "train[::2]", "train[99:]", "train\0"):
        with pytest.raises(DataError, match="has no split .*Its splits: train"):
            array_records.tfds_source("tiny", str(tmp_path), split)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "tiny-train.array_record-00001-of-00003"])
def test_tfds_source_does_not_wait_for_a_named_pipe(tmp_path, name):
    write_tfds(tmp_path)
    path = tmp_path / "tiny" / "1.0.0" / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=f"{name} is a named pipe"):
        array_records.tfds_source("tiny", str(tmp_path), "train")


def test_tfds_source_missing(tmp_path):
    command = f"python -m diffusion.data.prepare tiny --source=PATH_OR_URL --data_dir={tmp_path}"
    with pytest.raises(DataError, match=f"no prepared data set 'tiny'.*{command}"):
        array_records.tfds_source("tiny", str(tmp_path), "train")
    write_tfds(tmp_path)
    with pytest.raises(DataError, match="no split 'test'. Its splits: train"):
        array_records.tfds_source("tiny", str(tmp_path), "test")


def shard(tmp_path, i):
    return tmp_path / "tiny" / "1.0.0" / f"tiny-train.array_record-0000{i}-of-00003"


def test_tfds_source_finds_damage_when_opened(tmp_path):
    write_tfds(tmp_path)
    whole = shard(tmp_path, 1).read_bytes()
    shard(tmp_path, 1).write_bytes(whole[:len(whole) // 2])
    with pytest.raises(DataError, match="00001-of-00003 holds 0 readable .*, but dataset_info.json lists 4.*prepare"):
        array_records.tfds_source("tiny", str(tmp_path), "train")
    shard(tmp_path, 1).unlink()
    with pytest.raises(DataError, match="00001-of-00003 is missing.*Delete the folder"):
        array_records.tfds_source("tiny", str(tmp_path), "train")
    shard(tmp_path, 1).write_bytes(whole)
    path = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = ["4", "4", "2"]
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match="dataset_info.json lists 2"):
        array_records.tfds_source("tiny", str(tmp_path), "train")
    path.write_text(path.read_text()[:50])
    with pytest.raises(DataError, match="description of the data set .* cannot be read"):
        array_records.tfds_source("tiny", str(tmp_path), "train")


def test_tfds_source_names_the_record_that_is_corrupted(tmp_path):
    write_tfds(tmp_path)
    data = bytearray(shard(tmp_path, 1).read_bytes())
    at = data.index(b"IDAT", data.index(b"IDAT") + 4)  # the second image of the second shard: record 5
    data[at + 10] ^= 0xff
    shard(tmp_path, 1).write_bytes(data)
    source = array_records.tfds_source("tiny", str(tmp_path), "train")
    assert source[4]["image"].shape == (6, 6, 3)
    with pytest.raises(DataError, match="Record 5 of .*1.0.0 cannot be read .*damaged.*prepare it again"):
        source[5]


def test_tfds_source_names_the_record_that_is_no_image(tmp_path, monkeypatch):
    png = writer._png
    calls = []

    def third_is_none(image):
        calls.append(0)
        return b"not a png" if len(calls) == 3 else png(image)

    monkeypatch.setattr(writer, "_png", third_is_none)
    write_tfds(tmp_path)
    source = array_records.tfds_source("tiny", str(tmp_path), "train")
    with pytest.raises(DataError, match="Record 2 of .* cannot be read .*none of the formats PNG"):
        source[2]


def test_tfds_source_wants_images(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    write_tfds(tmp_path)
    tfds.features.FeaturesDict({"audio": tfds.features.Text()}).save_config(tmp_path / "tiny" / "1.0.0")
    with pytest.raises(DataError, match="must have a feature 'image'.*audio"):
        array_records.tfds_source("tiny", str(tmp_path), "train")
