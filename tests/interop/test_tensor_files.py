"""Weight files of others without PyTorch: what is read, and that nothing in them is executed."""
import argparse
import collections
import copyreg
import io
import json
import os
import pickle
import pickletools
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from diffusion.errors import CheckpointError
from diffusion.interop import tensor_files
from diffusion.interop.tensor_files import read_sharded, read_tensors, write_safetensors

TENSORS = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "a.bias": np.float32([-1.5, 2.0]),
           "count": np.array(7), "empty": np.zeros((0, 3), np.float32)}


class Name:
    """Pickled as the name of something in another module, as PyTorch's pickles have them."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __call__(self, *args):
        return Call(self, args)


class Call:
    def __init__(self, function, args):
        self.function, self.args = function, args


class Storage:
    def __init__(self, kind: str, key: str, count: int):
        self.pid = ("storage", Name("torch", kind), key, "cpu", count)


class Pickler(pickle._Pickler):
    """Writes what torch.save writes, without PyTorch."""

    def persistent_id(self, x):
        return x.pid if isinstance(x, Storage) else None

    def save(self, x, *args, **kwargs):
        if isinstance(x, Name):
            self.write(pickle.GLOBAL + f"{x.module}\n{x.name}\n".encode())
        elif isinstance(x, Call):
            super().save_reduce(x.function, x.args)
        elif isinstance(x, argparse.Namespace):
            self.write(pickletools.optimize(pickle.dumps(x, 2))[2:-1])  # without the start and the stop
        else:
            super().save(x, *args, **kwargs)

    def save_reduce(self, function, args, *rest, **kwargs):
        self.save(function)
        self.save(args)
        self.write(pickle.REDUCE)


REBUILD = Name("torch._utils", "_rebuild_tensor_v2")
KINDS = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "i8": "LongStorage", "u1": "ByteStorage",
         "b1": "BoolStorage"}


def stored(x: np.ndarray, key: str, kind: str | None = None, offset=0, shape=None, stride=None, count=None) -> Call:
    x = np.array(x, order="C")
    stride = tuple(s // x.itemsize for s in x.strides) if stride is None else stride
    storage = Storage(kind or KINDS[x.dtype.str[1:]], key, x.size if count is None else count)
    return REBUILD(storage, offset, x.shape if shape is None else shape, stride, False, None)


def pickled(value) -> bytes:
    out = io.BytesIO()
    Pickler(out, protocol=2).dump(value)
    return out.getvalue()


def torch_file(path, value, storages: dict[str, np.ndarray], prefix="archive/", compression=zipfile.ZIP_STORED):
    """A .bin file of `value`, in which `stored` calls name the storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(prefix + "data.pkl", pickled(value))
        archive.writestr(prefix + "byteorder", "little")
        for key, x in storages.items():
            archive.writestr(f"{prefix}data/{key}", np.ascontiguousarray(x).tobytes())
    return path


def legacy_file(path, value, storages: dict[str, np.ndarray], little_endian=True):
    """The same as PyTorch wrote it before 1.6."""
    heads = (0x1950a86a20f9469cfc6c, 1001, {"little_endian": little_endian}, value, sorted(storages))
    data = (struct.pack("<q", x.size) + x.tobytes() for _, x in sorted(storages.items()))
    path.write_bytes(b"".join(map(pickled, heads)) + b"".join(data))
    return path


def equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape, name
        np.testing.assert_array_equal(found[name], x)


# ---- what is read -------------------------------------------------------------------------------------------------

def test_safetensors_there_and_back(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", TENSORS, {"format": "pt"})
    equal(read_tensors(tmp_path / "x.safetensors"), TENSORS)
    equal(read_tensors((tmp_path / "x.safetensors").rename(tmp_path / "x.bin")), TENSORS)  # by content, not by name


def test_a_state_dict_of_pytorch(tmp_path):
    value = {name: stored(x, str(i)) for i, (name, x) in enumerate(TENSORS.items())}
    equal(read_tensors(torch_file(tmp_path / "x.bin", value, {str(i): x for i, x in enumerate(TENSORS.values())})),
          TENSORS)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint8, np.bool_])
def test_types(tmp_path, dtype):
    x = np.array([[0, 1, 2], [3, 0, 5]]).astype(dtype)
    equal(read_tensors(torch_file(tmp_path / "x.bin", {"x": stored(x, "0")}, {"0": x})), {"x": x})


def test_bfloat16(tmp_path):
    x = np.array([1.0, -2.5, 3e38]).astype(ml_dtypes.bfloat16)
    equal(read_tensors(torch_file(tmp_path / "x.bin", {"x": stored(x, "0", "BFloat16Storage")}, {"0": x})), {"x": x})


def test_strides_offsets_and_shared_storages(tmp_path):
    x = np.arange(20, dtype=np.float32)
    value = {"transposed": stored(x, "0", shape=(4, 3), stride=(1, 4), offset=2),
             "part": stored(x, "0", shape=(2,), stride=(5,)),
             "repeated": stored(x, "0", shape=(3, 2), stride=(0, 1))}
    equal(read_tensors(torch_file(tmp_path / "x.bin", value, {"0": x})), {
        "transposed": x[2:14].reshape(3, 4).T, "part": x[[0, 5]], "repeated": np.tile(x[:2], (3, 1))})


def test_a_file_of_before_pytorch_1_6(tmp_path):
    x, y = np.arange(20, dtype=np.float32), np.array([[1, 2], [3, 4]])
    value = {"x": stored(x, "7", shape=(4, 3), stride=(1, 4), offset=2), "y": stored(y, "12"), "n": 3}
    equal(read_tensors(legacy_file(tmp_path / "x.pt", value, {"7": x, "12": y})),
          {"x": x[2:14].reshape(3, 4).T, "y": y})


def test_an_ordered_dict_with_attributes(tmp_path):
    # Modules write _metadata so; a file that is out to do harm may set items, which must then not be called.
    x = pickled(stored(TENSORS["a.bias"], "0"))[2:-1]
    for name in (b"_metadata", b"items"):
        attributes = b"}U" + bytes([len(name)]) + name + b"}sb."
        with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02ccollections\nOrderedDict\n)R(U\x01x" + x + b"u" + attributes)
            archive.writestr("a/data/0", TENSORS["a.bias"].tobytes())
        equal(read_tensors(tmp_path / "x.bin"), {"x": TENSORS["a.bias"]})


def test_names_of_types_beside_tensors_are_left_out(tmp_path):
    x = TENSORS["a.bias"]
    file = torch_file(tmp_path / "x.bin", {"x": stored(x, "0"), "dtype": Name("torch", "bfloat16")}, {"0": x})
    equal(read_tensors(file), {"x": x})


def test_arrays_that_are_views_are_written_as_they_look(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tensors = {"transposed": x.T, "part": x[:, ::2, 1:], "repeated": np.broadcast_to(x[0], (2, 3, 4)), "0d": x[1, 1, 1]}
    write_safetensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    equal(read_tensors(tmp_path / "x.safetensors"), tensors)


def test_bfloat16_of_safetensors(tmp_path):
    x = np.array([1.0, -2.5, 3e38]).astype(ml_dtypes.bfloat16)
    write_safetensors(tmp_path / "x.safetensors", {"x": x}, {})
    equal(read_tensors(tmp_path / "x.safetensors"), {"x": x})


def test_other_entries_are_left_out_and_one_nested_state_dict_is_found(tmp_path):
    x = TENSORS["a.bias"]
    file = torch_file(tmp_path / "x.pt", {"epoch": 3, "lr": 0.1, "note": "x", "none": None,
                                             "model": {"x": stored(x, "0")}}, {"0": x})
    equal(read_tensors(file), {"x": x})


def test_flags_beside_the_weights_are_not_read(tmp_path):
    """As in a checkpoint of JiT."""
    x, y = TENSORS["a.bias"], TENSORS["a.bias"] + 1
    value = {"model": {"x": stored(x, "0")}, "model_ema1": {"x": stored(y, "1")}, "epoch": 3,
             "args": argparse.Namespace(model="JiT-B/16", cfg=2.9, interval=(0.1, 1.0))}
    equal(read_tensors(torch_file(tmp_path / "x.pth", value, {"0": x, "1": y}), "model_ema1"), {"x": y})


def test_of_several_state_dicts_one_must_be_named(tmp_path):
    x, y = TENSORS["a.bias"], TENSORS["a.weight"]
    file = torch_file(tmp_path / "x.pt", {"model": {"x": stored(x, "0")}, "ema": {"x": stored(y, "1")}},
                      {"0": x, "1": y})
    with pytest.raises(CheckpointError, match="has several sets of weights: model, ema. Choose one"):
        read_tensors(file)
    equal(read_tensors(file, key="ema"), {"x": y})
    with pytest.raises(CheckpointError, match="has no set of weights 'best'; it has model, ema"):
        read_tensors(file, key="best")
    with pytest.raises(CheckpointError, match="has no set of weights 'ema'; it has no named set"):
        read_tensors(torch_file(tmp_path / "y.pt", {"x": stored(x, "0")}, {"0": x}), key="ema")


def test_shards(tmp_path):
    write_safetensors(tmp_path / "1.safetensors", {"a": TENSORS["a.bias"]}, {})
    write_safetensors(tmp_path / "2.safetensors", {"b": TENSORS["a.weight"]}, {})
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    equal(read_sharded(tmp_path, "index.json"), {"a": TENSORS["a.bias"], "b": TENSORS["a.weight"]})


# ---- what is refused ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "..", "", "sub/x.safetensors"])
def test_an_index_does_not_leave_its_folder(tmp_path, name):
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="is not in its folder. Nothing was read of it"):
        read_sharded(tmp_path, "index.json")


def test_an_index_of_tensors_that_are_not_there(tmp_path):
    write_safetensors(tmp_path / "1.safetensors", {"a": TENSORS["a.bias"]}, {})
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "1.safetensors"}}))
    with pytest.raises(CheckpointError, match="names 1 tensors that its files do not have: b"):
        read_sharded(tmp_path, "index.json")
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not an index of weights"):
        read_sharded(tmp_path, "index.json")
    (tmp_path / "index.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="nested more than 50 deep"):
        read_sharded(tmp_path, "index.json")


@pytest.mark.parametrize("module, name", [
    ("os", "mkdir"), ("posix", "mkdir"), ("builtins", "eval"), ("builtins", "exec"), ("builtins", "getattr"),
    ("subprocess", "Popen"), ("torch", "load"), ("torch.storage", "_load_from_bytes"), ("numpy", "load"),
    ("collections", "namedtuple"), ("torch", "FloatStorage.__init__")])
def test_code_is_refused_and_not_executed(tmp_path, module, name):
    harm = Name(module, name)(str(tmp_path / "harm"))
    for value in (harm, {"x": harm}, {"x": REBUILD(harm, 0, (1,), (1,), False, None)}):
        with pytest.raises(CheckpointError, match=f"names {module}.{name}, which is not a tensor.*nothing was "
                                                  "executed"):
            read_tensors(torch_file(tmp_path / "x.bin", value, {}))
        with pytest.raises(CheckpointError, match=f"names {module}.{name}, which is not a tensor.*nothing was "
                                                  "executed"):
            read_tensors(legacy_file(tmp_path / "x.bin", value, {}))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("opcodes", [
    b"(S'HARM'\nios\nmkdir\n.",                                   # INST
    b"(cos\nmkdir\nS'HARM'\no.",                                  # OBJ
    b"cos\nmkdir\n(S'HARM'\nt\x81.",                              # NEWOBJ
    b"\x80\x04\x8c\x02os\x94\x8c\x05mkdir\x94\x93\x94\x8c\x04HARM\x94\x85\x94R\x94.",  # STACK_GLOBAL
])
def test_no_opcode_of_a_pickle_calls_what_it_names(tmp_path, monkeypatch, opcodes):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("x.bin", "w") as archive:
        archive.writestr("archive/data.pkl", opcodes)
    with pytest.raises(CheckpointError, match="names os.mkdir"):
        read_tensors("x.bin")
    assert not os.path.exists("HARM")


def test_a_registered_extension_is_not_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("os", "mkdir", 200)
    try:
        with zipfile.ZipFile("x.bin", "w") as archive:
            archive.writestr("archive/data.pkl", b"\x82\xc8(S'HARM'\ntR.")  # EXT1
        with pytest.raises(CheckpointError, match="names os.mkdir"):
            read_tensors("x.bin")
    finally:
        copyreg.remove_extension("os", "mkdir", 200)
    assert not os.path.exists("HARM")


@pytest.mark.parametrize("name", ["torch._utils\n_rebuild_tensor_v2", "torch._utils\n_rebuild_parameter",
                                  "torch\nFloatStorage", "collections\nOrderedDict", "torch\nSize",
                                  "argparse\nNamespace"])
def test_a_pickle_changes_nothing_of_ours(tmp_path, name):
    x = TENSORS["a.bias"]
    state = b"}U\x05dtypeK\x01s}(U\x0c__defaults__)U\x05dtypeK\x01u\x86b."  # BUILD with attributes to set
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02c" + name.encode() + b"\n" + state)
    with pytest.raises(CheckpointError):
        read_tensors(tmp_path / "x.bin")
    equal(read_tensors(torch_file(tmp_path / "y.bin", {"x": stored(x, "0")}, {"0": x})), {"x": x})
    assert tensor_files.TensorUnpickler.tensor.__defaults__ == (False, None, None)
    for ours in (tensor_files.TensorUnpickler.tensor, tensor_files.Storage, tensor_files.StateDict,
                 tensor_files.Ignored):
        assert "dtype" not in vars(ours)


def test_few_bytes_do_not_ask_for_much_memory(tmp_path):
    zeros = np.zeros(20_000_000, np.float32)
    torch_file(tmp_path / "x.bin", {"x": stored(zeros, "0")}, {"0": zeros}, compression=zipfile.ZIP_DEFLATED)
    file = torch_file(tmp_path / "y.bin", {"x": stored(zeros[:1], "0", shape=(10**9,), stride=(0,))}, {"0": zeros[:1]})
    del zeros
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="would unpack to 8000.*nothing was unpacked"):
        read_tensors(tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="a tensor of 1000000000 numbers made from 1 stored ones"):
        read_tensors(file)
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


def test_a_small_archive_may_be_compressed(tmp_path):
    x = np.zeros(1000, np.float32)
    equal(read_tensors(torch_file(tmp_path / "x.bin", {"x": stored(x, "0")}, {"0": x},
                                  compression=zipfile.ZIP_DEFLATED)), {"x": x})


def test_a_negative_view_is_not_read_as_the_tensor_it_views(tmp_path):
    x = TENSORS["a.bias"]
    value = {"x": REBUILD(Storage("FloatStorage", "0", 2), 0, (2,), (1,), False, None, {"neg": True})}
    with pytest.raises(CheckpointError, match="is a negative or conjugate view.*resolve_neg"):
        read_tensors(torch_file(tmp_path / "x.bin", value, {"0": x}))


@pytest.mark.parametrize("change, message", [
    (lambda data: data[:-4], "storage 0 is cut off"),
    (lambda data: data[:60], "is damaged"),
    (lambda data: data[:-24] + struct.pack("<q", 3) + data[-16:], "storage 0 is cut off or does not have the size"),
    (lambda data: data.replace(pickled(["0"]), pickled([])), "its storages do not match its tensors"),
    (lambda data: data.replace(pickled(["0"]), pickled(["1"])), "its storages do not match its tensors"),
])
def test_damaged_files_of_before_pytorch_1_6(tmp_path, change, message):
    x = np.arange(4, dtype=np.float32)
    file = legacy_file(tmp_path / "x.pt", {"x": stored(x, "0")}, {"0": x})
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        read_tensors(file)


def test_what_a_file_of_before_pytorch_1_6_claims(tmp_path):
    x = np.arange(4, dtype=np.float32)
    with pytest.raises(CheckpointError, match="big-endian"):
        read_tensors(legacy_file(tmp_path / "x.pt", {"x": stored(x, "0")}, {"0": x}, little_endian=False))
    with pytest.raises(CheckpointError, match="too short for storage 0, 1000000000000 of float32"):
        read_tensors(legacy_file(tmp_path / "x.pt", {"x": stored(x, "0", count=10**12)}, {"0": x}))


def test_a_bare_pickle_is_not_even_read(tmp_path):
    (tmp_path / "x.bin").write_bytes(pickle.dumps(collections.OrderedDict(a=1), protocol=2))
    with pytest.raises(CheckpointError, match="is a bare pickle.*nothing was executed"):
        read_tensors(tmp_path / "x.bin")


@pytest.mark.parametrize("arguments, message", [
    (dict(shape=(5,), stride=(1,)), "reaches beyond its storage"),
    (dict(shape=(2,), stride=(1,), offset=3), "reaches beyond its storage"),
    (dict(shape=(2,), stride=(-1,), offset=1), "negative"),
    (dict(shape=(2, 2), stride=(1,)), "without a storage"),
    (dict(count=100), "storage 0 has 16 bytes, but 100 of float32 are needed"),
])
def test_a_tensor_never_reaches_beyond_its_storage(tmp_path, arguments, message):
    x = np.arange(4, dtype=np.float32)
    with pytest.raises(CheckpointError, match="is damaged: .*" + message):
        read_tensors(torch_file(tmp_path / "x.bin", {"x": stored(x, "0", **arguments)}, {"0": x}))


def test_a_tensor_is_no_storage(tmp_path):
    x = np.arange(4, dtype=np.float32)
    repeated = stored(x, "0", shape=(2, 100), stride=(0, 0))  # more elements than there are bytes behind them
    value = {"x": REBUILD(repeated, 0, (200,), (1,), False, None)}
    with pytest.raises(CheckpointError, match="is damaged: a tensor without a storage"):
        read_tensors(torch_file(tmp_path / "x.bin", value, {"0": x}))


def test_a_type_of_safetensors_that_numpy_lacks(tmp_path):
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    with pytest.raises(CheckpointError, match="has tensors of a type that is not supported: .*Save them as float32"):
        read_tensors(tmp_path / "x.safetensors")


def safetensors_file(path) -> bytes:
    write_safetensors(path, TENSORS, {})
    return path.read_bytes()


@pytest.mark.parametrize("content, message", [
    (lambda p: b"", "is empty"),
    (lambda p: safetensors_file(p)[:-4], "is not a whole safetensors file"),
    (lambda p: safetensors_file(p)[:40], "is not a whole safetensors file"),
    (lambda p: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
     "is a pointer of Git LFS.*git lfs pull"),
    (lambda p: b"<!DOCTYPE html><html>",
     "is neither a safetensors nor a PyTorch file; it begins with b'<!DOCTYPE html>"),
    (lambda p: torch_file(p, {"x": stored(np.ones(4), "0")}, {"0": np.ones(4)}).read_bytes()[:200], "is damaged"),
    (lambda p: torch_file(p, {"x": stored(np.ones(4), "1")}, {"0": np.ones(4)}).read_bytes(), "is damaged.*data/1"),
    (lambda p: torch_file(p, [1, 2], {}).read_bytes(), "holds no dict of tensors, but a list"),
])
def test_damaged_files(tmp_path, content, message):
    data = content(tmp_path / "x")
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_tensors(tmp_path / "x")


def test_other_archives_and_missing_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(CheckpointError, match="is a zip archive, but not one of PyTorch"):
        read_tensors(tmp_path / "x.zip")
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_tensors(tmp_path / "none")
    with pytest.raises(CheckpointError, match="cannot be read: embedded null byte"):
        read_tensors(f"{tmp_path}/a\0b")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_tensors(tmp_path)
