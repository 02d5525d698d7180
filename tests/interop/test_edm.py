"""EDM's networks: their arguments and state dicts give their outputs; what does not fit is refused."""
import pathlib
import re
import sys

import numpy as np
import pytest

from diffusion import build
from diffusion import config as config_lib
from diffusion.errors import CheckpointError
from diffusion.interop import edm

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import others  # noqa: E402
from others import EDM, SONG  # noqa: E402

LABELS, PRECOND, AUGMENT = EDM


@pytest.fixture(scope="module")
def golden():
    return others.load("edm.npz")


@pytest.fixture(scope="module")
def golden_song():
    return others.load("song_unet.npz")


def read(case: str) -> tuple[dict, dict]:
    sections = edm.read_settings(EDM[case], "arguments")
    return sections, others.abstract_of(sections)


def settings_of(case: str) -> dict:
    return SONG[case] | dict(model_type="SongUNet")


@pytest.mark.parametrize("case", EDM)
def test_output_is_that_of_the_original(golden, case):
    shapes, arrays = golden
    sections, abstract = read(case)
    params = edm.read_params(abstract, others.random_state(shapes[case]), "state dict", settings=EDM[case])
    out = others.output_of(sections, params, others.C_NOISE)
    np.testing.assert_allclose(others.kept(out), arrays[case], rtol=0, atol=1e-5 * np.abs(arrays[case]).max())
    assert np.abs(out[0] - out[3]).max() > 1e-2  # the noise levels matter


@pytest.mark.parametrize("case", SONG)
def test_output_of_song_unet_is_that_of_the_original(golden_song, case):
    """With its augmentation label, if it has one; without it, the weights of that label are left out."""
    shapes, arrays = golden_song
    settings, state = settings_of(case), others.random_state(shapes[case])
    sections, augment = edm.read_settings(settings, "arguments"), settings.get("augment_dim", 0)
    params = edm.read_params(others.abstract_of(sections, augment=augment), state, "state dict", settings=settings)
    out = others.output_of(sections, params, others.C_NOISE, augment=augment)
    np.testing.assert_allclose(others.kept(out), arrays[case], rtol=0, atol=1e-5 * np.abs(arrays[case]).max())
    if augment:
        plain = edm.read_params(others.abstract_of(sections), state, "state dict", settings=settings)
        assert "augment" not in plain and set(params) == {*plain, "augment"}


@pytest.mark.parametrize("settings", [*EDM.values(), *map(settings_of, SONG)], ids=[*EDM, *SONG])
def test_the_sections_can_be_built(settings):
    sections = edm.read_settings(settings, "arguments")
    config = config_lib.adopted(sections, "arguments")
    network = build.network(config.network, config.data.size, config.data.channels * (1 + config.learned_range))
    assert network == others.network_of(sections).clone(dtype=network.dtype)


def test_the_cases_have_what_they_are_for(golden):
    shapes = golden[0]
    assert all(name.startswith("model.") for name in shapes[PRECOND])
    assert "map_augment.weight" in shapes[AUGMENT] and "map_label.weight" in shapes[LABELS]
    assert all(any(name.endswith("resample_filter") for name in shapes[case]) for case in EDM)


def test_the_arguments_of_both_classes_are_the_same_network():
    both = dict(img_resolution=64, label_dim=1000, augment_dim=9, dropout=0.2)
    plain = edm.read_settings(both | dict(in_channels=3, out_channels=3), "")
    wrapped = edm.read_settings(both | dict(img_channels=3, class_name="training.networks.EDMPrecond", use_fp16=True,
                                            model_type="DhariwalUNet", sigma_data=0.5), "")
    assert plain == wrapped
    assert plain["network"]["norm_epsilon"] == 1e-5  # outputs do not tell it from 1e-6
    assert plain["network"] | dict(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention_resolutions=(32, 16, 8),
                                   embedding_channels=768, num_classes=1000) == plain["network"]


def test_each_channel_has_its_q_k_and_v_in_turn(golden):
    _, abstract = read(LABELS)
    state = others.random_state(golden[0][LABELS])
    params = edm.read_params(abstract, state, "", settings=EDM[LABELS])
    weight = state["dec.4x4_in0.qkv.weight"][:, :, 0, 0]
    for place, name in enumerate("qkv"):
        np.testing.assert_array_equal(params["middle_attention"][name]["kernel"].T, weight[place::3])


@pytest.mark.parametrize("change, message", [
    (dict(model_type="SongNet"), "model_type = SongNet is not supported. It can be one of: DhariwalUNet, SongUNet"),
    (dict(class_name="training.networks.iDDPMPrecond"), "class_name = iDDPMPrecond is not supported. It can be one of"),
    (dict(model_type="SongUNet", encoder_type="cat"), "encoder_type = 'cat' is not supported. It can be one of: stand"),
    (dict(class_name="VPPrecond", num_block=2), "SongUNet has no argument num_block. Did you mean num_blocks?"),
    (dict(num_block=2), "DhariwalUNet has no argument num_block. Did you mean num_blocks?"),
    (dict(embedding_type="fourier"), "has no argument embedding_type. It is one of SongUNet: give model_type = SongUN"),
    (dict(model_channels=64), r"levels of \[64, 128\] channels .* are not supported: below 128"),
    (dict(model_channels=136), r"levels of \[136, 272\] channels"),
    (dict(model_channels=160), r"levels with attention have \[160, 320\] channels; heads of 64"),
    (dict(channel_mult=[2, 2]), "channel_mult begins with 2"),
    (dict(channel_mult=[]), r"channel_mult = \[\] is not supported"),
    (dict(out_channels=4), "out_channels = 4 is not supported"),
    (dict(dropout=1.5), "dropout = 1.5 is not supported. It can be a number in 0 .. 1"),
    (dict(num_blocks="3"), "num_blocks = '3' is not supported"),
])
def test_an_argument_that_is_wrong_is_named(change, message):
    with pytest.raises(CheckpointError, match="^arguments: .*" + message):
        edm.read_settings(EDM[LABELS] | change, "arguments")


def test_an_argument_that_is_missing_is_named():
    with pytest.raises(CheckpointError, match="in_channels, out_channels of the network is missing .img_channels"):
        edm.read_settings(dict(img_resolution=64), "arguments")


@pytest.mark.parametrize("change, message", [
    ({"enc.8x8_aux_conv.weight": np.zeros(3)}, "x has the weights of a SongUNet, but the settings describe a Dhariwal"),
    ({"map_augment.weight": np.zeros((128, 9))}, "1 of .* have no place in the network: map_augment.weight"),
    ({"enc.4x4_down.conv0.resample_filter": np.full((1, 1, 4, 4), 1 / 16)},
     r"1 filters of resampling are not \[1, 1\], as .*: enc.4x4_down.conv0.resample_filter"),
    ({"dec.4x4_in0.qkv.weight": np.zeros((5, 2))}, r"3 of \d+ .* another shape: dec.4x4_in0.qkv.weight \[5, 2\]"),
])
def test_weights_that_do_not_fit_are_named(golden, change, message):
    _, abstract = read(LABELS)
    with pytest.raises(CheckpointError, match=message):
        edm.read_params(abstract, others.random_state(golden[0][LABELS]) | change, "x", settings=EDM[LABELS])


def test_augmentation_weights_that_are_missing_are_named(golden):
    _, abstract = read(AUGMENT)
    state = others.random_state(golden[0][AUGMENT])
    with pytest.raises(CheckpointError, match=r"augment_dim = 7 needs map_augment.weight \[128, 7\]; it is \[128, 9\]"):
        edm.read_params(abstract, state, "x", settings=EDM[AUGMENT] | dict(augment_dim=7))
    del state["map_augment.weight"]
    with pytest.raises(CheckpointError, match=r"augment_dim = 9 needs map_augment.weight \[128, 9\]; it is missing"):
        edm.read_params(abstract, state, "x", settings=EDM[AUGMENT])


def test_weights_of_other_arguments_are_counted_and_named(golden):
    settings = EDM[LABELS] | dict(num_blocks=2)
    abstract = others.abstract_of(edm.read_settings(settings, ""))
    with pytest.raises(CheckpointError) as caught:
        edm.read_params(abstract, others.random_state(golden[0][LABELS]), "network.pt", settings=settings)
    assert re.search(r"network.pt.*\d+ of \d+ tensors are missing: dec.4x4_block2.affine.bias, .*, \.\.\.",
                     str(caught.value)), caught.value


def test_a_pickled_training_state_without_tensors_is_refused():
    _, abstract = read(LABELS)
    with pytest.raises(CheckpointError, match=r"(\d+) of \1 tensors are missing"):
        edm.read_params(abstract, {}, "x", settings=EDM[LABELS])


@pytest.mark.parametrize("around, key, prediction", [("EDMPrecond", "edm", "edm"), ("VPPrecond", "vp", "eps"),
                                                     ("VEPrecond", "ve", "edm_ve")])
def test_a_class_around_the_network_is_a_process_and_a_prediction(around, key, prediction):
    settings = dict(img_resolution=8, img_channels=3, class_name=around, model_type="SongUNet", model_channels=8,
                    channel_mult=[1], num_blocks=1, attn_resolutions=[])
    config = config_lib.adopted(edm.read_settings(settings, ""), "arguments")
    build.model(config)
    assert (config.process.name, config.prediction, config.sample.solver, config.sample.steps) == (
        key, prediction, "heun", 18)


def test_the_network_by_default_is_that_of_the_class_around_it():
    shared = dict(img_resolution=64, img_channels=3)
    assert [edm.read_settings(shared | dict(class_name=name), "")["network"]["name"] for name in
            ("EDMPrecond", "VPPrecond", "SongUNet")] == ["unet", "song_unet", "song_unet"]
