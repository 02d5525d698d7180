"""What the launchers would do, to the letter: --dry_run against golden/*.txt.

After a change that is meant, look at the difference: python tests/launchers/test_dry_run.py && git diff tests/launchers
"""
import importlib
import pathlib
import subprocess
import sys

import pytest

from experiments import launchers

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WHERE = ["--zone=us-central1-a"]
CASES = {
    "slurm_gpus": ["slurm", "configs/cifar10.py", "--nodes=2", "--tasks_per_node=8", "--gpus_per_task=1",
                   "--cpus_per_task=8", "--time=2-00:00:00", "--sbatch=--partition=gpu --account='my project'",
                   "--config.train.duration=10M images"],
    "slurm_seeds": ["slurm", "configs/digits.py", "--array=0-4", "--workdir=/shared/my runs/digits"],
    "tpu_create": ["tpu", "create", "my-tpu", *WHERE, "--type=v6e-8", "--spot"],
    "tpu_queue": ["tpu", "create", "my-tpu", *WHERE, "--type=v5litepod-256", "--queue", "--project=p"],
    "tpu_copy": ["tpu", "copy", "my-tpu", *WHERE],
    "tpu_install": ["tpu", "install", "my-tpu", *WHERE],
    "tpu_run": ["tpu", "run", "my-tpu", "configs/cifar10.py", *WHERE, "--bucket=my-bucket",
                "--config.train.duration=10M images"],
    "tpu_logs": ["tpu", "logs", "my-tpu", *WHERE],
    "tpu_status": ["tpu", "status", "my-tpu", *WHERE],
    "tpu_delete": ["tpu", "delete", "my-tpu", *WHERE],
    "tpu_delete_queued": ["tpu", "delete", "my-tpu", *WHERE, "--queue"],
    "gke_run": ["gke", "run", "my-run", "configs/cifar10.py", "--cluster=c", *WHERE, "--slices=2",
                "--config.train.duration=10M images", "--workdir=/data/cifar10"],
    "gke_list": ["gke", "list", "--cluster=c", *WHERE],
    "gke_delete": ["gke", "delete", "my-run", "--cluster=c", *WHERE],
}


def launch(engine: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", f"experiments.launchers.{engine}", *flags], cwd=ROOT, text=True,
                          capture_output=True, env={"PATH": ""})  # no sbatch, gcloud or xpk is found


def dry_run(name: str) -> str:
    done = launch(*CASES[name], "--dry_run")
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(sys.executable, "PYTHON").replace(str(ROOT), "ROOT")  # it may lie in the root's .venv


@pytest.mark.parametrize("name", CASES)
def test_the_commands(name):
    assert dry_run(name) == (HERE / "golden" / f"{name}.txt").read_text()


def test_every_golden_file_is_a_case():
    assert {path.stem for path in (HERE / "golden").iterdir()} == set(CASES)


@pytest.mark.parametrize("flags, words", [
    (["slurm"], "There is no sbatch here"),
    (["tpu", "status", "t", *WHERE], "There is no gcloud here. Install the Google Cloud CLI"),
    (["gke", "list", "--cluster=c", *WHERE], "pip install xpk"),
    (["gke", "run", "--cluster=c", *WHERE], "needs the name of a workload"),
])
def test_what_cannot_be_done_is_said(flags, words):
    done = launch(*flags)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("break_", ["\n", "\r", "\x0b", "\x1b", "\x85", "\u2028"])
def test_what_would_be_a_line_of_its_own_is_refused(break_, monkeypatch, capsys):
    for flags in (["slurm", f"a{break_}touch x.py"], ["slurm", f"--workdir=x{break_}touch x"],
                  ["slurm", "--array=1-2", f"--workdir=x{break_}y"], ["slurm", f"--sbatch=--mem=1{break_}touch x"],
                  ["slurm", f"--time=1{break_}touch x"], ["slurm", f"--config.data.dir=x{break_}touch x"],
                  ["tpu", "run", "t", f"a{break_}.py", *WHERE],
                  ["tpu", "run", "t", *WHERE, f"--bucket=b{break_}touch x"],
                  ["gke", "run", "g", "--cluster=c", *WHERE, f"--workdir=x{break_}touch x"]):
        assert "control character" in refused(monkeypatch, *flags), flags
    assert capsys.readouterr().out == ""


def test_options_of_slurm_that_cannot_be(monkeypatch):
    for flag, words in (('--sbatch="unclosed', "No closing quotation"), ("--array=1;touch x", "must be seeds"),
                        ('--workdir=a"b', "cannot read"), ("--workdir=a\\b", "cannot read")):
        assert words in refused(monkeypatch, "slurm", flag, "--dry_run")


def test_configs_and_folders_that_would_be_others(monkeypatch):
    """A value after a space was taken for the config; a --config or a --workdir was one of two."""
    for flags, words in ((["slurm", "--config.seed", "3"], "'3' is no config file"),
                         (["slurm", "--config=configs/mnist.py"], "named without --config"),
                         (["tpu", "run", "t", "a.py", *WHERE, "--config", "b.py"], "named without --config"),
                         (["gke", "run", "g", "--cluster=c", *WHERE, "--config=b.py"], "named without --config"),
                         (["tpu", "run", "t", *WHERE, "--bucket=b", "--workdir=x"], "leave --workdir out")):
        assert words in refused(monkeypatch, *flags, "--dry_run"), flags
    for flag in ("--gpus_per_task=-1", "--cpus_per_task=x", "--nodes=0"):
        monkeypatch.setattr(sys, "argv", ["slurm", flag])
        with pytest.raises(SystemExit, match="2"):
            launchers.main(importlib.import_module("experiments.launchers.slurm").launch)


def test_logs_are_left_without_a_traceback():
    def interrupted(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        launchers.main(interrupted)


def refused(monkeypatch, engine: str, *flags: str) -> str:
    """The message, from this process."""
    monkeypatch.setattr(sys, "argv", [engine, *flags])
    with pytest.raises(SystemExit) as ended:
        launchers.main(importlib.import_module(f"experiments.launchers.{engine}").launch)
    assert isinstance(ended.value.code, str) and "\n" not in ended.value.code, ended.value.code
    return ended.value.code


@pytest.mark.parametrize("word", ["it's", "$HOME", "$(touch made)", "`touch made`", "a b;touch made", "100%j #x", "~"])
def test_a_shell_that_runs_the_script_sees_the_same_words(tmp_path, monkeypatch, capsys, word):
    """A shell runs it with an srun that shows its arguments."""
    monkeypatch.setattr(sys, "argv", ["slurm", f"{word}/c.py", f"--workdir=runs/{word}", f"--config.data.dir={word}",
                                      "--dry_run"])
    launchers.main(importlib.import_module("experiments.launchers.slurm").launch)
    script = capsys.readouterr().out.rpartition("sbatch FILE")[0]
    (tmp_path / "srun").write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    done = subprocess.run(["/bin/bash", "-c", script], cwd=tmp_path, capture_output=True, text=True,
                          env={"PATH": str(tmp_path)})
    assert done.stdout.split("\0")[-4:-1] == [f"--config={word}/c.py", f"--config.data.dir={word}",
                                              f"--workdir=runs/{word}"]
    assert not (ROOT / "made").exists() and not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["My-TPU", "-x", "a;b", "x" * 60])
def test_names_that_the_cloud_would_not_take(name):
    done = launch("tpu", "status", *WHERE, "--", name)
    assert done.returncode == 2 and "name" in done.stderr


if __name__ == "__main__":
    for name in CASES:
        (HERE / "golden" / f"{name}.txt").write_text(dry_run(name))
