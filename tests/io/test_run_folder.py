import importlib.util
import json
import os
import subprocess
import sys

import pytest

from diffusion.errors import CheckpointError, ConfigError
from diffusion.io import run_folder
from diffusion.io.run_folder import open_run

CONFIG = {"seed": 0, "train": {"batch_size": 128, "duration": "100 steps", "log_every": "10 steps"},
          "network": {"multipliers": (1, 2), "extra": {}}}
RESUMABLE = ("train.duration", "train.*_every", "sample.*")


def changed(**train):
    return {**CONFIG, "train": {**CONFIG["train"], **train}}


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_new_folder_explains_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", importlib.util.find_spec("diffusion.main"))
    monkeypatch.setattr(sys, "argv", ["main.py", "--config=my config.py"])
    run = open_run(tmp_path / "runs" / "a", CONFIG)
    assert not run.resumed and run.path == tmp_path / "runs" / "a"
    assert json.loads((run.path / "config.json").read_text())["network"] == {"multipliers": [1, 2], "extra": {}}
    (start,) = json.loads((run.path / "environment.json").read_text())
    assert start["packages"]["jax"] and start["devices"]["count"] == 1
    assert start["command"] == "python -m diffusion.main '--config=my config.py'"
    assert {"git", "python", "platform", "time", "host"} <= start.keys()
    readme = (run.path / "README.md").read_text()
    assert "# Run `a`" in readme and start["command"] in readme and "--mode=sample" in readme
    assert [p.name for p in (run.checkpoints, run.samples, run.metrics, run.tensorboard)] == [
        "checkpoints", "samples", "metrics.jsonl", "tensorboard"]


def test_the_same_config_resumes_and_nothing_is_lost(tmp_path):
    open_run(tmp_path, CONFIG)
    (tmp_path / "README.md").write_text("my notes")
    run = open_run(tmp_path, CONFIG)
    assert run.resumed and len(json.loads((tmp_path / "environment.json").read_text())) == 2
    assert (tmp_path / "README.md").read_text() == "my notes"


def test_another_config_is_refused_with_its_keys(tmp_path):
    open_run(tmp_path, CONFIG)
    before = files(tmp_path)
    other = {**changed(batch_size=64, duration="200 steps"), "network": {"multipliers": (1, 2, 2), "new": 1}}
    with pytest.raises(ConfigError) as caught:
        open_run(tmp_path, other, resumable_keys=RESUMABLE)
    text = str(caught.value)
    for words in ("train.batch_size: 128 -> 64", "network.multipliers: [1, 2] -> [1, 2, 2]", "--workdir",
                  "network.extra: {} -> (no such key)", "network.new: (no such key) -> 1", "train.*_every"):
        assert words in text
    assert "duration:" not in text
    assert files(tmp_path) == before
    with pytest.raises(ConfigError, match="and 12 more"):
        open_run(tmp_path, {**CONFIG, "many": {f"k{i:02d}": i for i in range(20)}})


def test_resumable_keys_may_change_and_are_written_down(tmp_path):
    open_run(tmp_path, CONFIG)
    run = open_run(tmp_path, changed(duration="200 steps", log_every="1 step"), resumable_keys=RESUMABLE)
    assert run.resumed
    assert json.loads((tmp_path / "config.json").read_text())["train"] == {
        "batch_size": 128, "duration": "200 steps", "log_every": "1 step"}
    with pytest.raises(ConfigError, match="duration"):
        open_run(tmp_path, CONFIG)


def test_reading_only(tmp_path):
    with pytest.raises(ConfigError, match="no run in .*Train first"):
        open_run(tmp_path / "none", CONFIG, read_only=True)
    assert not (tmp_path / "none").exists()
    open_run(tmp_path, CONFIG)
    before = files(tmp_path)
    assert open_run(tmp_path, CONFIG, read_only=True).resumed
    with pytest.raises(ConfigError, match="batch_size"):
        open_run(tmp_path, changed(batch_size=1), read_only=True)
    assert files(tmp_path) == before


def test_folders_that_are_no_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")  # such as a downloaded model's
    (tmp_path / "weights.bin").write_text("precious")
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=r"holds other files \(config.json, weights.bin\).*Nothing was changed"):
        open_run(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match="is a file"):
        open_run(tmp_path / "weights.bin", CONFIG)
    assert files(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert not open_run(tmp_path / "empty", CONFIG).resumed


def test_a_start_that_was_interrupted_begins_again(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "_readme", killed)
        with pytest.raises(KeyboardInterrupt):
            open_run(tmp_path, CONFIG)
    (tmp_path / ".README.md.123.tmp").write_text("half")
    assert not (tmp_path / "config.json").exists()
    assert not open_run(tmp_path, CONFIG).resumed
    assert open_run(tmp_path, CONFIG).resumed


@pytest.mark.parametrize("content", ['{"seed": ', "null", "3", "[1]", '"x"', "[" * 10**6, '{"a":' * 60 + "1" + "}" * 60,
                                     "\xff", ""])
def test_files_of_a_run_that_cannot_be_read(tmp_path, content):
    open_run(tmp_path, CONFIG).release()
    for name in ("config.json", "environment.json"):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(CheckpointError, match=f"{name} cannot be read: .*Put the right file back") as error:
            open_run(tmp_path, CONFIG)
        assert len(str(error.value)) < 400 and "\n" not in str(error.value)
        (tmp_path / name).write_bytes(before)
    open_run(tmp_path, CONFIG).release()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written: a file is where a folder should be"):
        open_run(tmp_path / "file" / "run", CONFIG)


def git(folder, *arguments):
    identity = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True,
                          env={**os.environ, **identity, "GIT_CONFIG_GLOBAL": "/dev/null"}).stdout


def test_the_state_of_the_code(tmp_path, monkeypatch):
    code = tmp_path / "code"
    code.mkdir()
    git(code, "init", "-q")
    (code / "a.py").write_text("one\n")
    assert run_folder._git_state(code / "a.py") == (None, ""), "not tracked"
    git(code, "add", "a.py")
    git(code, "commit", "-qm", "first")
    commit = git(code, "rev-parse", "HEAD").strip()
    assert run_folder._git_state(code / "a.py") == ({"commit": commit, "dirty": False, "changed": []}, "")
    (code / "a.py").write_text("two\n")
    (code / "new.py").write_text("")
    monkeypatch.setattr(run_folder, "__file__", str(code / "a.py"))
    for name in ("code.diff", "code.2.diff"):
        open_run(tmp_path / "run", CONFIG)
        start = json.loads((tmp_path / "run" / "environment.json").read_text())[-1]
        assert start["git"] == {"commit": commit, "dirty": True, "changed": [" M a.py", "?? new.py"], "diff": name}
        assert "+two" in (tmp_path / "run" / name).read_text()
    monkeypatch.setenv("PATH", "")
    assert run_folder._git_state(code / "a.py") == (None, ""), "no git"


def test_a_second_program_is_refused(tmp_path):
    run = open_run(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match=f"Another program trains in .*: process {os.getpid()} on "):
        open_run(tmp_path, CONFIG)
    run.release()
    assert open_run(tmp_path, CONFIG).resumed
