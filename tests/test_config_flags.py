"""The config of a command line: config files, single keys, and one message for any error in either."""
import json
import pathlib
import sys

import ml_collections
import pytest

from diffusion import config as config_lib
from diffusion import config_flags
from diffusion.errors import CheckpointError, ConfigError

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize("arg, words", [
    ("--config.train.batchsize=3", ["'train.batchsize'", "'train.batch_size'"]),
    ("--config.optimizer.lr=3", ["'optimizer.lr'", "--keys prints all keys"]),
    ("--config.train=3", ["train", "train.duration"]),
    ("--noconfig.seed", ["config.seed needs a value"]), ("--noconfig.data.flip=1", ["is not a flag"]),
    ("--config.seed", ["config.seed needs a value", "--config.seed=VALUE"]),
    ("--config.sample.churn=3", ["config.sample.churn is a key of sample.solver = euler, heun", "is 'ancestral'"]),
    ("--config.process.name=lnear", ["'lnear'", "'linear'"]),
])
def test_wrong_keys(arg, words):
    with pytest.raises(ConfigError) as error:
        config_flags.with_given(config_lib.base(), config_flags.split(["--mode=train", arg])[1])
    for word in words:
        assert word in str(error.value)


def test_flags_of_the_config_are_taken_out_of_a_command_line():
    words = ["--config=a.py", "--config.data.flip", "--workdir=x", "--config.seed", "7",
             "-config.train.duration=5 steps", "--noconfig.data.on_device", "--config.seed=8", "--", "--config.seed=9"]
    assert config_flags.split(words) == ("a.py", {
        "data.flip": "true", "seed": "8", "train.duration": "5 steps", "data.on_device": "false"},
        ["--workdir=x", "--", "--config.seed=9"])
    assert config_flags.split(["--config", "b.py"]) == ("b.py", {}, [])


@pytest.mark.parametrize("key, text, value", [
    ("sample.solver_type", "None", None), ("sample.eta", "0.5", 0.5), ("data.flip", "true", True), ("seed", "0x10", 16),
    ("evaluate.metrics", "fd,kid", ("fd", "kid")), ("evaluate.metrics", "('fd', 'kid')", ("fd", "kid")),
    ("evaluate.metrics", "[fd, kid]", ("fd", "kid")), ("network.multipliers", "1,2", (1, 2)),
    ("network.multipliers", "(1,)", (1,)), ("process.betas", "0.1, 0.2", (0.1, 0.2)), ("process.betas", "()", ()),
    ("mesh.rules", "conv/kernel: fsdp, tensor", ("conv/kernel: fsdp, tensor",)),
    ("mesh.rules", "('a: fsdp, tensor', 'b: -')", ("a: fsdp, tensor", "b: -")),
    ("sample.churn_max", "inf", float("inf")), ("network.up_attention_resolutions", "4,2", (4, 2)),
    ("data.dir", "None", "None"), ("process.beta_max", "50", 50.0)])
def test_values_as_a_command_line_writes_them(key, text, value):
    found = config_lib.known()[key].parsed(text, "the command line")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("key, text, words", [
    ("sample.eta", "high", "config.sample.eta = 'high' is not a number. It takes a number, such as 0.0."),
    ("sample.order", "None", "config.sample.order = None is not a whole number. It can be one of: 1, 2, 3"),
    ("seed", "None", "not a whole number"), ("seed", "1e3", "not a whole number"),
    ("seed", "-1", "from 0 to 4,294,967,295"),
    ("seed", "4294967296", "the largest is 4,294,967,295"), ("seed", "9" * 5000, "not a whole number"),
    ("data.flip", "maybe", "not True or False"),
    ("network.multipliers", "a,b", "the entry 'a'. It takes a list of numbers"),
    ("network.multipliers", "(1,(2,))", "the entry (2,)"), ("network.multipliers", "(" * 5000, "the entry '((((("),
    ("evaluate.metrics", "(1,2)", "It takes a list of words"),
    ("optimizer.learning_rate", "nan", "not a finite number"),
    ("optimizer.learning_rate", "inf", "not a finite number"), ("sample.steps", "1000000000000", "too large"),
    ("network.blocks", "10000000", "too large: the largest is 100"), ("data.name", "a\nb", "control characters"),
    ("train.batch_size", "", "such as 128")])
def test_values_that_a_key_cannot_have(key, text, words):
    with pytest.raises(ConfigError) as error:
        config_lib.known()[key].parsed(text, "the command line")
    assert words in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


START = "from diffusion import config\n\n\ndef get_config():\n    c = config.base()\n    "


@pytest.mark.parametrize("text, words", [
    ("def get_config(:\n", ", line 1: the config file cannot be run: SyntaxError"),
    ("import nonexistent_module_xyz\n", ", line 1: the config file cannot be run: ModuleNotFoundError: No module"),
    ("def get_config():\n    return 1 / 0\n", ", line 2: the config file cannot be run: ZeroDivisionError: division"),
    ("def get_config():\n    return get_config()\n", ", line 2: the config file cannot be run: RecursionError"),
    ("def get_config():\n    raise ValueError('of\\nseveral\\nlines')\n", "ValueError: of several lines."),
    ("def get_config():\n    assert False\n", "AssertionError."), ("raise SystemExit(3)\n", "SystemExit: 3"),
    ("def get_config(x):\n    return x\n", "needs an argument: write --config="),
    ("x = 1\n", "no function get_config()"),
    ("a\0b", "null byte"), ("def get_config():\n    pass\n", "returned None instead of a config"),
    ("def get_config():\n    return {}\n", "returned {}"),
    (START + "c.train.durtion = 3\n    return c\n", ", line 6: the config file cannot be run: AttributeError"),
    (START + "c.network.blocks = 10**7\n    return c\n", "config.network.blocks = 10000000 is too large"),
    (START + "c.network.depth = 10\n    return c\n",
     ", line 6: the config has no key 'depth': it is one of network.name = diffwave, network.name = dit"),
    (START + "c.sample.given = (3, 1)\n    return c\n",
     ", line 6: the config key 'given' is called config.sample.custom_times now"),
    (START + "c.process.steps = 7\n    c.process.name = 'edm'\n    return c\n",
     "config.process.steps is a key of process.name = linear"),
    (START + "with c.unlocked():\n        del c.train\n    return c\n", "does not have the keys of a config: train."),
    (START + "return config.override(c, {'lr': 1})\n", ", line 6: the overrides: Unknown config key 'lr'"),
])
def test_whatever_is_wrong_with_a_config_file_is_one_message_with_its_line(tmp_path, text, words):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        config_flags.load(str(file))
    message = str(error.value)
    assert words in message and str(file) in message and "\n" not in message and len(message) < 800


def test_config_files_that_are_not_there(tmp_path):
    for source, words in (("configs/digits.py:abc", "takes no argument: leave :abc out"),
                          ("nothing.py", "No such file"), ("configs", "Is a directory"), ("x" * 5000, "too long"),
                          ("a\0b", "null byte")):
        with pytest.raises(ConfigError, match=words):
            config_flags.load(source)
    (tmp_path / "config.json").write_text('{"seed": "x"}')
    with pytest.raises(ConfigError, match="config.json: config.seed = 'x' is not a whole number"):
        config_flags.load(str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text("[" * 10**6)
    with pytest.raises(CheckpointError, match="nested"):
        config_flags.load(str(tmp_path / "config.json"))


def test_a_config_finds_its_neighbours_from_any_folder(tmp_path, monkeypatch):
    folder = tmp_path / "my_configs"
    folder.mkdir()
    (folder / "beside_it.py").write_text(START + "return c\n")
    (folder / "a.py").write_text("from beside_it import get_config\n")
    (folder / "b.py").write_text("from my_configs import a\nget_config = a.get_config\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    for source in ("my_configs/a.py", str(folder / "b.py"), str(ROOT / "configs" / "digits_edm.py")):
        assert config_flags.load(source).seed == 0


def test_a_config_of_a_run_is_the_same(tmp_path):
    config = config_lib.override(config_lib.base(), {"seed": 3, "sample.solver": "ddim", "sample.eta": 0.5})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert config_flags.load(str(tmp_path / "config.json")) == config


def test_a_config_file_of_other_keys_is_refused():
    with pytest.raises(ConfigError, match="config.base"):
        config_flags.checked(ml_collections.ConfigDict({"lr": 1}), "mine.py")


def test_a_message_about_a_key_says_which_file_set_it():
    """It once named config.network.groups although the user had written norm_num_groups, or a file of many lines."""
    config = config_lib.override(config_lib.base(), {"network.groups": 3, "network.heads": 5, "data.size": 9}, "x")

    def said(message, *given):
        with pytest.raises(ConfigError) as error, config_flags.naming("my.json", config, given):
            raise ConfigError(message)
        return str(error.value)

    wrong = "config.network.groups = 3 must divide config.network.channels."
    assert said(wrong) == f"{wrong} (config.network.groups is set in my.json.)"
    assert said(wrong, "network.groups") == wrong  # by a flag
    assert said("config.network.groups and config.data.size").endswith(
        "(config.network.groups and config.data.size are set in my.json.)")
    assert said("my.json: config.data.size") == "my.json: config.data.size"
