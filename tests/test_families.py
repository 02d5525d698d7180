"""Families and members: their keys, a config's choice, and the requirements on every member."""
import json

import pytest

from diffusion import config as config_lib
from diffusion import config_flags, config_help, families
from diffusion.errors import ConfigError
from diffusion.families import BY_NAME, FAMILIES

MEMBERS = [(family, name) for family in FAMILIES for name in family.members()]


def test_a_config_has_just_the_keys_of_its_members():
    c = config_lib.base(network="dit", process="edm", spacing="karras", solver="heun")
    keys = set(config_lib.keys(c))
    assert {"network.depth", "process.sigma_max", "sample.rho", "sample.churn"} <= keys
    assert not {"network.blocks", "process.beta_start", "sample.variance", "sample.offset"} & keys
    assert set(config_lib.keys_of(c)) == keys and len(keys) < 125 < len(config_lib.known())


def test_choosing_again_keeps_what_was_set_and_is_shared():
    c = config_lib.base(process="vp")
    c.process.beta_max, c.process.t_min = 15.0, 1e-4
    sub_vp, flow = (config_lib.choose(c, process=name) for name in ("sub_vp", "flow"))
    assert (sub_vp.process.beta_max, sub_vp.process.t_min, flow.process.t_min) == (15.0, 1e-4, 1e-4)
    assert config_lib.choose(config_lib.base(process="vp"), process="flow").process.t_min == 1e-3  # its own default
    assert config_lib.choose(config_lib.base(loss="hybrid", weighting="p2"), loss="denoising").loss.weighting == "p2"


@pytest.mark.parametrize("members, words", [
    (dict(proces="edm"), ["no family 'proces'", "'process'", "solver"]),
    (dict(process="edmm"), ["config.process.name = 'edmm'", "'edm'"]),
    (dict(loss="vlb", weighting="p2"), ["config.loss.weighting is a key of loss.name = denoising, hybrid", "is 'vlb'"]),
    (dict(table_of="vp"), ["config.process.table_of is a key of process.name = table_of"])])
def test_what_cannot_be_chosen(members, words):
    with pytest.raises(ConfigError) as error:
        config_lib.base(**members)
    for word in words:
        assert word in str(error.value)


def test_a_member_on_the_command_line_drops_the_files_keys_of_the_old_one_with_a_note(capsys):
    config = config_lib.override(config_lib.base(process="cosine"), {"process.offset": 0.01, "process.steps": 50})
    new = config_flags.with_given(config, {"process.name": "edm", "process.sigma_max": "40", "sample.given": "()",
                                           "sample.spacing": "times"})
    assert new.process.to_dict() == {"name": "edm", "sigma_min": 0.002, "sigma_max": 40.0}
    said = "config.process.offset, config.process.steps of the config are dropped: the command line chooses another"
    assert capsys.readouterr().out == f"note: {said} member.\n"


def test_a_run_of_before_is_read_with_the_keys_of_its_members(tmp_path):
    """Configs once had the keys of all members, and None meant the member's own default."""
    old = {"seed": 3, "process": {"name": "cosine", "steps": 40, "offset": 0.01, "sigma_max": 80.0, "betas": []},
           "network": {"name": "unet", "channels": 64, "depth": 12, "patch": 2},
           "loss": {"name": "vlb", "weighting": "simple", "variance": "small", "gamma": 5.0},
           "sample": {"solver": "unipc", "order": None, "eta": None, "variance": "small", "given": [],
                      "guidance": {"name": "none", "scale": 1.0}}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    c = config_flags.load(str(tmp_path / "config.json"))
    assert c.process.to_dict() == {"name": "cosine", "steps": 40, "offset": 0.01, "max_beta": 0.999,
                                   "rescale_times": False, "zero_terminal_snr": False}
    assert (c.seed, c.network.channels, c.sample.order, c.likelihood.variance) == (3, 64, 2, "small")
    assert config_lib.adopted(json.loads(json.dumps(c.to_dict())), "it") == c  # as of today it stays as it is
    with pytest.raises(ConfigError, match="config.process.sigma_max is a key of process.name = ve, edm"):
        config_lib.adopted({"plugins": (), "process": {"name": "cosine", "sigma_max": 80.0}}, "it")
    with pytest.raises(ConfigError, match="'process.sigmamax'"):
        config_lib.adopted({"process": {"name": "cosine", "sigmamax": 80.0}}, "it")
    for plugins in (3, "abc", [3], None, {"a": 1}):
        with pytest.raises(ConfigError, match="^it: .*plugins"):
            config_lib.adopted({"plugins": plugins}, "it")
    for name in (["cosine"], 3, {"a": 1}):
        with pytest.raises(ConfigError, match="^it: .*process"):
            config_lib.adopted({"process": {"name": name}}, "it")  # as an older run's


def test_one_key_has_one_meaning_in_its_section():
    """All members that have the key give it the same type, and the same comment or none."""
    families.check_keys()
    told: dict[str, set[str]] = {}
    for family, name in MEMBERS:
        for key, text in families.meanings(family.member(name)).items():
            told.setdefault(family.section + key, set()).add(text)
    free = {"network.channels", "network.heads", "process.sigma_min", "process.sigma_max",  # of each network's own
            "data.channels", "data.crop"}  # of a picture, of sound
    assert {key: texts for key, texts in told.items() if len(texts - {""}) > 1 and key not in free} == {}


@pytest.mark.parametrize("family, name", MEMBERS, ids=lambda value: getattr(value, "name", value))
def test_a_member_says_what_it_is_and_what_its_keys_mean(family, name):
    member = family.member(name)
    text = config_help.describe(f"{family.name}.{name}")
    assert all(f"  {spec.name} = " in text for spec in member.keys.values())
    if not member.constant:
        assert len(text.splitlines()[0]) > 40, "it needs a docstring"
    for spec in member.keys.values():
        if not spec.choices:
            assert spec.fitted(spec.default, "its default") == spec.default


def test_the_help_of_keys():
    assert "data.flip = False" in config_help.describe("kind.image")
    assert "sample.clip = None" in config_help.describe("") and "--keys=FAMILY" in config_help.describe("")
    assert "  process.steps = 1000 " in config_help.describe("process.cosine")
    assert " T\n" in config_help.describe("process.cosine")
    with pytest.raises(ConfigError, match="no family 'slver'. Did you mean 'solver'"):
        config_help.describe("slver")
    with pytest.raises(ConfigError, match="'dimm' is not known. Did you mean 'ddim'"):
        config_help.describe("solver.dimm")


def test_a_selector_that_is_assigned_brings_its_keys_or_says_what_would_be_lost():
    c = config_lib.base()
    c.process.name = "edm"
    with pytest.raises(ConfigError, match="no keys in this config .sigma_min, sigma_max.: choose it by config.choose"):
        BY_NAME["process"].make(c.process)
    assert config_flags.checked(c, "mine.py").process.sigma_max == 80.0
    c = config_lib.base()
    c.process.steps, c.process.name = 50, "edm"
    with pytest.raises(ConfigError, match="mine.py: config.process.steps is a key of process.name = .*linear"):
        config_flags.checked(c, "mine.py")
