"""Comparing two runs, and running one again."""
import json
import subprocess
import sys

import program
import pytest

from diffusion.errors import DiffusionError
from experiments import diff


def command(name: str, *words) -> subprocess.CompletedProcess:
    return program.execute([sys.executable, "-m", f"experiments.{name}", *words], check=False)


def run_folder(folder, losses, config, **row):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(json.dumps([{"packages": {"jax": "1"}, "git": {"commit": "abc"}}]))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(
        {"step": i + 1, "images": i, "loss": loss, "seconds": 7.0 * i, **row}) + "\n" for i, loss in enumerate(losses)))
    return folder


def test_two_runs_that_are_alike(tmp_path):
    config = {"seed": 0, "train": {"batch_size": 4}}
    a = run_folder(tmp_path / "a", [3.0, 2.0], config)
    b = run_folder(tmp_path / "b", [3.0, 2.0, 1.0], config, images_per_second=9.0)  # of the machine: no difference
    done = command("diff", a, b)
    assert done.returncode == 0, done.stderr
    assert "config: equal" in done.stdout and "versions: equal" in done.stdout and "abc in both" in done.stdout
    assert "equal in all 2 rows; only one has 0 and 1 rows more" in done.stdout and "not evaluated" in done.stdout


def test_two_runs_that_are_not(tmp_path):
    a = run_folder(tmp_path / "a", [3.0, 2.0], {"seed": 0, "train": {"batch_size": 4}})
    b = run_folder(tmp_path / "b", [3.0, 2.5], {"seed": 0, "train": {"batch_size": 8}})
    done = command("diff", a, b)
    assert done.returncode == 1
    assert "train.batch_size: 4 | 8" in done.stdout and "differ from step 2 on; loss by at most 0.25" in done.stdout
    done = command("diff", a, tmp_path)
    assert done.returncode == 1 and "is not a run folder" in done.stderr


def test_unlike_keys_are_shown_even_where_one_lacks_them():
    assert diff.unlike({"a": {"b": 1}, "c": 2}, {"a": {"b": 1, "d": 3}, "c": 4}) == ["a.d: not there | 3", "c: 2 | 4"]


@pytest.mark.slow
def test_a_run_is_reproduced(tmp_path):
    program.run(f"--workdir={tmp_path}/run")
    done = command("reproduce", tmp_path / "run", "--any_code")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal in all 3 rows" in done.stdout
    rows = program.rows(tmp_path / "run")
    rows[1]["loss"] += 1e-9
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command("reproduce", tmp_path / "run", "--any_code").returncode == 1  # it is there already: only compared
    done = command("reproduce", tmp_path / "run")
    assert "Check out that commit" in done.stderr or done.returncode == 1


def test_runs_of_one_config_that_went_apart_are_not_alike(tmp_path, capsys):
    a, b = (run_folder(tmp_path / name, losses, {"seed": 0}) for name, losses in (("a", [3.0, 2.0]), ("b", [3.0, 2.5])))
    assert diff.main([str(a), str(b)]) == 1 and "config: equal" in capsys.readouterr().out
    assert diff.main([str(a), str(a)]) == 0


@pytest.mark.parametrize("name, content, words", [
    ("config.json", "null", "config.json cannot be read"),
    ("environment.json", "[1]", "environment.json cannot be read"),
    ("environment.json", "[]", "environment.json has no entries"), ("metrics.jsonl", "[1]\n", "Line 1 of"),
    ("metrics.jsonl", '{"loss": 1}\n', "Line 1 of"),
    ("metrics.jsonl", '{"step": 10, "loss": "x"}\n', "its loss is 'x'"),
    ("evaluations/a.json", "null", ""), ("environment.json", '[{"packages": 3, "git": "x"}]', ""),
    ("metrics.jsonl", '{"step": 1, "loss": null}\n', "")])
def test_a_run_whose_files_were_edited(tmp_path, capsys, name, content, words):
    a, b = (run_folder(tmp_path / run, [3.0], {"seed": 0}) for run in "ab")
    (b / name).parent.mkdir(exist_ok=True)
    (b / name).write_text(content)
    if words:
        with pytest.raises(DiffusionError, match=words):
            diff.main([str(a), str(b)])
    else:
        assert diff.main([str(a), str(b)]) in (0, 1) and "config: equal" in capsys.readouterr().out


def test_no_steps_are_not_all_of_them(tmp_path, monkeypatch):
    """--steps=0 trained the whole run again."""
    from experiments import reproduce
    run, asked = run_folder(tmp_path / "run", [3.0], {"seed": 0}), []

    def fails(words, **_):
        asked.extend(words)
        return subprocess.CompletedProcess(words, 1)

    monkeypatch.setattr(reproduce, "commit", lambda: "abc")
    monkeypatch.setattr(reproduce.subprocess, "run", fails)
    assert reproduce.main([str(run), "--steps=0"]) == 1 and "--config.train.duration=0 steps" in asked
