"""Settings of others: whatever their files and command lines hold is read or refused by name, and nothing else."""
import json

import pytest

from diffusion import config as config_lib
from diffusion import pretrained
from diffusion.errors import CheckpointError, ConfigError
from diffusion.interop import edm, openai, scheduler, score_sde, unet2d

DEEP = json.loads("[" * 400 + "]" * 400)
ANYTHING = [None, True, False, 0, -1, 1, 2, 10**7, 10**30, 10**400, 0.5, -0.0, 1e300, float("inf"), float("nan"), "",
            "x", "1", "x" * 10**5, "1," * 10**5, [], [1], [0], [None], ["x"], [[1]], [1] * 10**5, {}, {"a": 1}, DEEP]
# The others are made of the same fields.
NEEDED = {"DDPMScheduler": {}, "UniPCMultistepScheduler": {}, "EulerDiscreteScheduler": {"timestep_spacing": "leading"},
          "EDMEulerScheduler": {}, "FlowMatchEulerDiscreteScheduler": {}}
READERS = {  # the settings that are all right, the table of all, and the reader
    "unet": (dict(sample_size=32, block_out_channels=[32] * 4), unet2d.FIELDS, unet2d.read_settings),
    **{name: ({"_class_name": name} | given, scheduler.SCHEDULERS[name].fields, scheduler.read_settings)
       for name, given in NEEDED.items()},
    **{name: ({}, table, lambda s, where, name=name: openai.read_settings(s, where, codebase=name))
       for name, table in openai.FIELDS.items()},
    "score_sde": ({}, score_sde.FIELDS | dict.fromkeys(score_sde.FIXED), score_sde.read_settings),
    "edm": (dict(img_resolution=64, img_channels=3), edm.FIELDS | {"class_name": None, "model_type": None},
            edm.read_settings),
}


@pytest.mark.filterwarnings("ignore:.*ignored, as in diffusers, since a")
@pytest.mark.parametrize("name", READERS)
def test_any_value_is_read_or_refused_by_name(name):
    given, table, read = READERS[name]
    config_lib.adopted(read(given, "file.json"), "file.json")
    refused = 0
    for key in (*table, "_class_name", "no_such_setting"):
        for value in ANYTHING:
            try:
                config_lib.adopted(read(given | {key: value}, "file.json"), "file.json")
            except (CheckpointError, ConfigError) as error:
                refused += 1
                assert "file.json" in str(error) and len(str(error)) < 1200 and "\n" not in str(error), (key, value)
    assert refused > len(table)


@pytest.mark.parametrize("change, message", [
    (dict(sample_size=10**9), "sample_size = 1000000000 is not supported. It can be .* 1 .. 4096 pixels"),
    (dict(layers_per_block=10**7), "layers_per_block = 10000000 is not supported. It can be a whole number in 1 .. 32"),
    (dict(num_class_embeds=10**12), "num_class_embeds = 1000000000000 is not .* in 0 .. 1000000, or null"),
    (dict(block_out_channels=[8] * 99), "a list of 1 to 10, each a whole number in 1 .. 65536"),
    (dict(dropout=True), "dropout = True is not supported"), (dict(norm_eps="1e-5"), "norm_eps = '1e-5' is not"),
])
def test_sizes_have_a_limit_that_is_said(change, message):
    with pytest.raises(CheckpointError, match=message):
        unet2d.read_settings(dict(sample_size=32) | change, "config.json")


def test_settings_that_a_class_has_not_are_ignored_with_a_note():
    left_over = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "clip_sample": True,
                 "skip_prk_steps": 3, "_diffusers_version": "0.42.1"}
    with pytest.warns(UserWarning, match="EulerDiscreteScheduler has no such settings.*: clip_sample, skip_prk_steps."):
        assert not scheduler.read_settings(left_over, "s")["sample"]["clip"]


@pytest.mark.parametrize("text, error", [
    ('"', "No closing quotation"), ("x", "are not pairs"), ("--a", "are not pairs"),
    ("x=" + "-" * 10**5, None), ("x=" + "(" * 10**5, None), ("x=" + "[" * 500 + "]" * 500, None),
    ("x=" + "9" * 10**5, None), ("x=\0 y=\ud800", None), ("x==", None)])
def test_settings_as_text(text, error):
    if error is None:
        assert "x" in pretrained.parse_settings(text)
    else:
        with pytest.raises(ConfigError, match=error):
            pretrained.parse_settings(text)
