"""Files of EDM: networks pickled by its code are read, with their arguments, and nothing in them is run."""
import os
import pathlib
import pickle
import sys

import numpy as np
import pytest

from diffusion import build, pretrained
from diffusion.errors import CheckpointError
from diffusion.interop import edm_pickle
from diffusion.interop.tensor_files import write_safetensors

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import others  # noqa: E402

FILE = others.TESTS / "golden" / "edm_pickle.pkl"


def test_a_network_and_its_arguments_are_read():
    assert edm_pickle.read_settings(FILE) == {"class_name": "EDMPrecond", **others.PICKLED}
    found = edm_pickle.read_state(FILE)
    expected = others.random_state({name: x.shape for name, x in found.items()})
    assert len(found) > 100 and "model.map_noise.freqs" in found
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, name)


def test_a_model_is_made_of_the_file_alone_or_of_tensors_and_settings(tmp_path):
    loaded = pretrained.load(FILE, layout="edm")
    c = loaded.config
    assert (c.network.name, c.network.encoder, c.network.num_classes) == ("song_unet", "residual", 3)
    assert (c.process.name, c.prediction, c.sample.solver) == ("edm", "edm", "heun")
    abstract = build.model(c).abstract_params
    params = loaded.params(abstract)["params"]
    state = edm_pickle.read_state(FILE)
    np.testing.assert_array_equal(params["labels"]["kernel"], state["model.map_label.weight"].T)
    write_safetensors(tmp_path / "network.safetensors", state, {})
    settings = {"class_name": "EDMPrecond", **others.PICKLED}
    other = pretrained.load(tmp_path / "network.safetensors", layout="edm", settings=" ".join(
        f"{key}={str(tuple(value) if isinstance(value, list) else value).replace(' ', '')}"
        for key, value in settings.items()))
    assert other.config == c
    np.testing.assert_array_equal(other.params(abstract)["params"]["conv_in"]["kernel"], params["conv_in"]["kernel"])
    with pytest.raises(CheckpointError, match="in_channels, out_channels of the network is missing"):
        pretrained.load(tmp_path / "network.safetensors", layout="edm")


class Runs:
    """What a pickle could run."""

    def __reduce__(self):
        return os.mkdir, ("/nowhere/at/all",)


@pytest.mark.parametrize("content, words", [
    (pickle.dumps(dict(ema=Runs())), "names posix.mkdir, which is not a tensor.*nothing was executed"),
    (pickle.dumps(dict(ema=np.zeros(3))), "names numpy.*_reconstruct, which is not a tensor"),
    (pickle.dumps(dict(ema={"a": 1}, step=3)), "has no network 'ema'; it has none"),
    (pickle.dumps([1]), "has no network 'ema'; it has none"),
    (FILE.read_bytes()[:5000], "is damaged"), (b"\x80\x04junk", "is damaged"),
    (FILE.read_bytes().replace(b"torch_utils.persistence", b"torch_utils.persistenze"), "names torch_utils.per")])
def test_other_pickles_are_refused(tmp_path, content, words):
    (tmp_path / "network.pkl").write_bytes(content)
    for read in (edm_pickle.read_state, edm_pickle.read_settings):
        with pytest.raises(CheckpointError, match=words):
            read(tmp_path / "network.pkl")


def test_a_network_of_another_name_is_asked_for():
    with pytest.raises(CheckpointError, match="has no network 'net'; it has ema"):
        edm_pickle.read_state(FILE, "net")
    with pytest.raises(CheckpointError, match="cannot be read"):
        edm_pickle.read_state(FILE.parent / "nothing.pkl")
