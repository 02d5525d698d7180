"""score_sde's DDPM: its settings and Flax checkpoints give its outputs; damaged and other files are refused."""
import pathlib
import re
import sys

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import pytest

from diffusion import build
from diffusion import config as config_lib
from diffusion.errors import CheckpointError
from diffusion.interop import score_sde

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import others  # noqa: E402
from others import NCSNPP, SCORE_SDE  # noqa: E402


@pytest.fixture(scope="module")
def golden():
    return others.load("score_sde.npz")


def read(case: str) -> tuple[dict, dict]:
    sections = score_sde.read_settings(SCORE_SDE[case], "settings")
    return sections, others.abstract_of(sections)


def write(path: pathlib.Path, params: dict[str, np.ndarray]) -> pathlib.Path:
    """A training state as flax writes it."""
    nested = flax.traverse_util.unflatten_dict(params, sep="/")
    path.write_bytes(flax.serialization.to_bytes(dict(
        step=7, optimizer={"target": nested, "state": {}}, lr=2e-4, model_state={}, ema_rate=0.9999, params_ema=nested,
        rng=np.zeros(2, np.uint32))))
    return path


# ---- what is theirs ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] if case == "as cifar10" else [])
                                  for case in SCORE_SDE])
def test_output_is_that_of_the_original(golden, case, tmp_path):
    shapes, arrays = golden
    sections, abstract = read(case)
    state = score_sde.read_checkpoint(write(tmp_path / "checkpoint_1", others.random_state(shapes[case])))
    params = score_sde.read_params(abstract, state, "checkpoint_1", settings=SCORE_SDE[case])
    out = others.output_of(sections, params, others.TIMES)
    np.testing.assert_allclose(others.kept(out), arrays[case], rtol=0, atol=1e-5 * np.abs(arrays[case]).max())
    assert np.abs(out[0] - out[3]).max() > 1e-2  # the times matter


@pytest.mark.parametrize("case", NCSNPP)
def test_output_of_ncsnpp_is_that_of_the_original(case, tmp_path):
    """Theirs of VE is divided by the noise level, which is half ours."""
    shapes, arrays = others.load("ncsnpp.npz")
    settings = NCSNPP[case] | {"model.name": "ncsnpp"}
    sections = score_sde.read_settings(settings, "settings")
    state = score_sde.read_checkpoint(write(tmp_path / "checkpoint_1", others.random_state(shapes[case])))
    params = score_sde.read_params(others.abstract_of(sections), state, "checkpoint_1", settings=settings)
    is_ve = sections["process"]["name"] == "ve"
    out = others.output_of(sections, params, np.log(others.LEVELS) if is_ve else others.TIMES)
    levels = np.reshape(others.LEVELS if is_ve else np.ones(4), (-1, 1, 1, 1))
    expected = arrays[case] * others.kept(np.broadcast_to(levels, out.shape))
    np.testing.assert_allclose(others.kept(out), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert len(jax.tree.leaves(params)) == len(state)


@pytest.mark.parametrize("settings", [{}, {"training.sde": "subvpsde", "model.num_res_blocks": 8}])
def test_defaults_of_ncsnpp_are_those_of_its_configs(settings):
    """As configs/score_sde.py has them, for VE and sub-VP."""
    from configs import score_sde as configs
    expected = configs.get_config("sub_vp_deep" if settings else "ve")
    found = config_lib.adopted(score_sde.read_settings(settings | {"model.name": "ncsnpp"}, ""), "")
    for section in ("network", "process", "sample"):
        assert found[section].to_dict() == expected[section].to_dict() | (
            dict(embedding_channels=found.network.embedding_channels) if section == "network" else {})
    assert found.prediction == expected.prediction


@pytest.mark.parametrize("case", SCORE_SDE)
def test_the_sections_can_be_built(case):
    sections, _ = read(case)
    config = config_lib.adopted(sections, "settings")
    network = build.network(config.network, config.data.size, config.data.channels)
    assert network == others.network_of(sections).clone(dtype=network.dtype)
    build.grid(config.sample, build.process(config.process))


def test_norms_as_flax_0_3_wrote_them_are_read(golden):
    """[1, 1, 1, C], as in the published files."""
    _, abstract = read("two levels")
    state = others.random_state(golden[0]["two levels"])
    old = {name: value.reshape(1, 1, 1, -1) if "GroupNorm" in name else value for name, value in state.items()}
    new = score_sde.read_params(abstract, state, "", settings=SCORE_SDE["two levels"])
    jax.tree.map(np.testing.assert_array_equal, new,
                 score_sde.read_params(abstract, old, "", settings=SCORE_SDE["two levels"]))


def test_attention_that_they_have_not_passes_on_what_it_gets(golden):
    sections, abstract = read("two levels")
    params = score_sde.read_params(abstract, others.random_state(golden[0]["two levels"]), "",
                                   settings=SCORE_SDE["two levels"])
    assert all(not leaf.any() for leaf in jax.tree.leaves(params["up1_attention0"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(params["up1_attention1"]))


def test_defaults_are_those_of_cifar10():
    sections = score_sde.read_settings({}, "settings")
    assert others.network_of(sections).clone(dropout=0.0) == type(others.network_of(sections))()  # the paper's network
    process = build.process(config_lib.adopted(sections, "").process)
    np.testing.assert_allclose(process.betas, np.linspace(1e-4, 0.02, 1000), rtol=1e-12)
    sample = sections["sample"]
    assert (sections["prediction"], sample["variance"], sample["clip"]) == ("eps", "large", False)


def test_settings_may_be_nested_and_have_those_of_training():
    nested = {"model": {"nf": 64, "ch_mult": [1, 2], "ema_rate": 0.9999},
              "data": {"image_size": 16, "dataset": "CIFAR10"},
              "training": {"sde": "vpsde", "batch_size": 128}, "optim": {"lr": 2e-4}, "seed": 42}
    dotted = {"model.nf": 64, "model.ch_mult": (1, 2), "data.image_size": 16}
    assert score_sde.read_settings(nested, "") == score_sde.read_settings(dotted, "")


# ---- what is refused ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings, message", [
    ({"model.name": "ncsnv2"}, "model.name = 'ncsnv2' is not supported, only 'ddpm': besides ncsnpp"),
    ({"model.name": "ncsnpp", "training.continuous": False}, "training.continuous = False is not supported, only True"),
    ({"model.name": "ncsnpp", "training.sde": "vpsde", "model.embedding_type": "fourier"}, "only 'positional' for tr"),
    ({"model.name": "ncsnpp", "training.sde": "vpsd"}, "training.sde = 'vpsd' is not supported. It can be one of: ve"),
    ({"model.name": "ncsnpp", "model.fir": False}, "'residual' without model.fir is not supported"),
    ({"model.name": "ncsnpp", "model.num_resblocks": 2}, "model.num_resblocks is not known. Did you mean model.num_re"),
    ({"model.name": "ncsnpp", "model.progressive": "residual"}, "progressive = 'residual' is not supported. It can b"),
    ({"model.conditional": False}, "model.conditional = False is not supported, only True"),
    ({"model.nonlinearity": "elu"}, "model.nonlinearity = 'elu'"),
    ({"model.resamp_with_conv": False}, "model.resamp_with_conv = False"),
    ({"model.scale_by_sigma": True}, "model.scale_by_sigma = True"),
    ({"model.normalization": "InstanceNorm"}, "model.normalization = 'InstanceNorm'"),
    ({"data.centered": False}, "data.centered = False is not supported, only True: our processes noise data in"),
    ({"training": {"sde": "vesde"}}, "training.sde = 'vesde'"),
    ({"training.continuous": True}, "training.continuous = True is not supported"),
    ({"sampling.predictor": "euler_maruyama"}, "sampling.predictor = 'euler_maruyama'"),
    ({"model.num_resblocks": 2}, "the setting model.num_resblocks is not known. Did you mean model.num_res_blocks?"),
    ({"model.nf": "wide"}, "model.nf = 'wide' is not supported. It can be a whole number in 1 .. 65536"),
    ({"model.nf": 0}, "model.nf = 0 is not supported"),
    ({"model.ch_mult": 2}, "model.ch_mult = 2 is not supported. It can be a list of 1 to 10, each a whole number"),
    ({"model.ch_mult": ()}, r"model.ch_mult = \(\) is not supported"),
    ({"model.beta_max": None}, "model.beta_max = None is not supported. It can be a number of at least 0"),
])
def test_a_setting_that_is_wrong_is_named(settings, message):
    with pytest.raises(CheckpointError, match="^settings: .*" + message):
        score_sde.read_settings(settings, "settings")


def test_a_file_that_is_missing():
    with pytest.raises(CheckpointError, match="nowhere/checkpoint_9 cannot be read .*No such file"):
        score_sde.read_checkpoint("nowhere/checkpoint_9")


@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], lambda data: data[:3], lambda data: b"",
                                    lambda data: data + b"\x00", lambda data: b"\xc1" + data[1:],
                                    lambda data: data.replace(b"float32", b"floatXX")])
def test_damaged_files_are_refused(golden, tmp_path, damage):
    path = write(tmp_path / "checkpoint_1", others.random_state(golden[0]["two levels"]))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))} is not a whole msgpack file.*\d+ bytes"):
        score_sde.read_checkpoint(path)


@pytest.mark.parametrize("content, has", [
    ({"weights": np.zeros(3), "step": 1}, "it has no params_ema, but step, weights"), ([1, 2], "but list"),
    (7, "but int"), ({"params_ema": {}}, "but params_ema"),
    ({"params_ema": {"Conv_0": {"kernel": "text", "bias": np.zeros(3)}}}, "1 of 2 entries of .* are not arrays: "
                                                                          "Conv_0/kernel"),
    ({"params_ema": {"Conv_0": {1: np.zeros(3)}}}, "has names that are not strings"),
])
def test_a_file_that_is_no_training_state_is_refused(tmp_path, content, has):
    path = tmp_path / "other.msgpack"
    path.write_bytes(flax.serialization.msgpack_serialize(content))
    with pytest.raises(CheckpointError, match=f"other.msgpack.*{has}"):
        score_sde.read_checkpoint(path)


def test_weights_of_other_settings_are_counted_and_named(golden):
    settings = SCORE_SDE["two levels"] | {"model.num_res_blocks": 2}
    abstract = others.abstract_of(score_sde.read_settings(settings, ""))
    with pytest.raises(CheckpointError) as caught:
        score_sde.read_params(abstract, others.random_state(golden[0]["two levels"]), "checkpoint_1", settings=settings)
    assert re.search(r"checkpoint_1.*\d+ of \d+ tensors are missing: AttnBlock_3/.*, \.\.\.; .*\d+ of \d+ tensors have "
                     r"another shape: ", str(caught.value)), caught.value


def test_another_architecture_is_refused():
    _, abstract = read("two levels")
    with pytest.raises(CheckpointError, match="are missing: .*; 1 of 1 .* no place in the network: Combine_0/kernel"):
        score_sde.read_params(abstract, {"Combine_0/kernel": np.zeros(3)}, "", settings=SCORE_SDE["two levels"])
