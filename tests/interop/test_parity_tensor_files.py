"""Files that PyTorch itself has written, read without it.

Needs PyTorch: `pip install -r requirements-parity.txt`, then `pytest -m parity`.
"""
import os
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from diffusion.errors import CheckpointError
from diffusion.interop.tensor_files import read_tensors, write_safetensors

REASON = "the parity tests need PyTorch: pip install -r requirements-parity.txt"
torch = pytest.importorskip("torch", reason=REASON)
safetensors_torch = pytest.importorskip("safetensors.torch", reason=REASON)

pytestmark = pytest.mark.parity

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
FORMS = ["zip", "legacy"]


def numpy(x) -> np.ndarray:
    x = x.detach()
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def saved(path, value, form: str):
    torch.save(value, path, _use_new_zipfile_serialization=form == "zip")
    return path


def equal(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, x in expected.items():
        x = numpy(x)
        assert found[name].dtype == x.dtype and found[name].shape == x.shape, name
        np.testing.assert_array_equal(found[name], x, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_types(tmp_path, dtype, form):
    x = (torch.randn(3, 4, generator=torch.manual_seed(0)) * 50).abs().to(getattr(torch, dtype))
    value = {"x": x, "0d": x[1, 2].clone(), "empty": x[:0], "empty axis": x.new_zeros(2, 0, 3)}
    equal(read_tensors(saved(tmp_path / "x.bin", value, form)), value)


@pytest.mark.parametrize("form", FORMS)
def test_views(tmp_path, form):
    x = torch.arange(120.0).reshape(2, 3, 4, 5)
    value = {"x": x, "again": x, "transposed": x.permute(3, 1, 0, 2), "part": x[1, 1:, ::2, 3],
             "last": x[-1, -1, -1, -1], "channels last": x.to(memory_format=torch.channels_last),
             "expanded": x[0, 0, 0].expand(7, 5),
             "diagonal": x[0].diagonal(dim1=1, dim2=2)}
    equal(read_tensors(saved(tmp_path / "x.bin", value, form)), value)


@pytest.mark.parametrize("form", FORMS)
def test_a_state_dict_with_its_metadata(tmp_path, form):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Embedding(5, 6))
    state = network.half().state_dict()
    assert isinstance(state, OrderedDict) and state._metadata
    equal(read_tensors(saved(tmp_path / "x.bin", state, form)), state)
    parameters = dict(network.named_parameters())
    equal(read_tensors(saved(tmp_path / "x.bin", parameters, form)), parameters)


@pytest.mark.parametrize("form", FORMS)
def test_a_training_checkpoint(tmp_path, form):
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    ema = OrderedDict((name, x * 2) for name, x in network.state_dict().items())
    value = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "loss": 0.5, "note": "x",
             "best": None, "shape": torch.Size([2, 3]), "dtype": torch.float16}
    equal(read_tensors(saved(tmp_path / "x.ckpt", value, form)), network.state_dict())
    saved(tmp_path / "x.ckpt", value | {"ema": ema}, form)
    with pytest.raises(CheckpointError, match="several sets of weights: model, ema"):
        read_tensors(tmp_path / "x.ckpt")
    equal(read_tensors(tmp_path / "x.ckpt", key="ema"), ema)


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", FORMS)
def test_code_in_a_file_of_pytorch(tmp_path, form):
    saved(tmp_path / "x.bin", {"a": torch.ones(2), "b": Harm(tmp_path / "harm")}, form)
    with pytest.raises(CheckpointError, match=f"names {os.mkdir.__module__}.mkdir.*nothing was executed"):
        read_tensors(tmp_path / "x.bin")
    assert not (tmp_path / "harm").exists()
    torch.load(tmp_path / "x.bin", weights_only=False)  # the code was there to be run
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value, message", [
    (lambda: torch.nn.Linear(2, 2), "names torch.nn.modules.linear.Linear"),
    (lambda: {"x": torch.ones(2, dtype=torch.complex64)}, "names torch.ComplexFloatStorage"),
    (lambda: {"x": torch.ones(2, dtype=torch.uint16)}, "names torch._utils._rebuild_tensor_v3"),
    (lambda: {"x": torch.eye(2).to_sparse()}, "names torch._utils._rebuild_sparse_tensor|names torch.serial"),
    (lambda: {"x": torch._neg_view(torch.ones(2))}, "is a negative or conjugate view"),
    (lambda: torch.ones(2), "holds no dict of tensors, but a ndarray"),
])
def test_what_is_not_read_is_named(tmp_path, value, message, form):
    with pytest.raises(CheckpointError, match=message):
        read_tensors(saved(tmp_path / "x.bin", value(), form))


@pytest.mark.parametrize("form", FORMS)
def test_every_truncation_is_an_error(tmp_path, form):
    data = saved(tmp_path / "x.bin", OrderedDict(a=torch.arange(9.0), b=torch.ones(2, 2)), form).read_bytes()
    for size in range(0, len(data), max(1, len(data) // 150)):
        (tmp_path / "x.bin").write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            read_tensors(tmp_path / "x.bin")


def test_safetensors_both_ways(tmp_path):
    tensors = {dtype: (torch.arange(12) % 5).reshape(3, 4).to(getattr(torch, dtype)) for dtype in sorted(DTYPES)}
    safetensors_torch.save_file(tensors, tmp_path / "x.safetensors")
    found = read_tensors(tmp_path / "x.safetensors")
    equal({name: found[name] for name in tensors}, tensors)
    write_safetensors(tmp_path / "y.safetensors", {name: x.T for name, x in found.items()}, {"format": "pt"})
    back = safetensors_torch.load_file(tmp_path / "y.safetensors")
    for name, x in tensors.items():
        assert back[name].dtype == x.dtype and torch.equal(back[name], x.T), name
