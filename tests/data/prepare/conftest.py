"""A small data set in CIFAR-10's forms: 5 x 4 training images, 10 test images, all ten classes in each split alike."""
import dataclasses
import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest

from diffusion.data.prepare.cifar10 import CIFAR10


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote str, protocol 2: so are the official files."""
    dispatch = dict(pickle._Pickler.dispatch)

    def _save_str(self, obj):
        data = obj if isinstance(obj, bytes) else obj.encode()
        self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(obj)

    dispatch[bytes] = dispatch[str] = _save_str


def python_batch(images, labels):
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump({
        b"batch_label": b"a batch", b"labels": [int(i) for i in labels], b"data": rows,
        b"filenames": [b"%d.png" % i for i in range(len(rows))]})
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def binary_batch(images, labels):
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels[:, None].astype(np.uint8), rows], axis=1).tobytes()


class Tiny:
    """The images, and files of them."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.train = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), (np.arange(20) * 3 % 10).astype(np.int32)
        self.test = rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8), np.arange(10, dtype=np.int32)[::-1].copy()

    @property
    def data_set(self):
        """CIFAR-10's description with this set's counts and digest."""
        return dataclasses.replace(CIFAR10, counts={"train": 20, "test": 10},
                                   sha256={"train": hashlib.sha256(self.train[0].tobytes()).hexdigest()})

    def files(self, kind="python"):
        encode, suffix = {"python": (python_batch, ""), "binary": (binary_batch, ".bin")}[kind]
        images, labels = self.train
        files = {f"data_batch_{i + 1}{suffix}": encode(images[4 * i:4 * i + 4], labels[4 * i:4 * i + 4])
                 for i in range(5)}
        return files | {f"test_batch{suffix}": encode(*self.test), "batches.meta": b"not read"}

    def archive(self, path, kind="python", files=None, folder=None):
        folder = folder or {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}[kind]
        with tarfile.open(path, "w:gz") as archive:
            for name, data in (self.files(kind) if files is None else files).items():
                member = tarfile.TarInfo(f"{folder}/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return path

    def npz(self, path, **changes):
        arrays = {"train_images": self.train[0], "train_labels": self.train[1],
                  "test_images": self.test[0], "test_labels": self.test[1]} | changes
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return path


@pytest.fixture
def tiny():
    return Tiny()
