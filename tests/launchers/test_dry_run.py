"""What the launchers would do, to the letter: --dry_run against golden/*.txt.

After a change that is meant, look at the difference: python tests/launchers/test_dry_run.py && git diff tests/launchers
"""
import pathlib
import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("name", ["My-TPU", "-x", "a;b", "x" * 60])
def test_names_that_the_cloud_would_not_take(name):
    done = launch("tpu", "status", *WHERE, "--", name)
    assert done.returncode == 2 and "name" in done.stderr


if __name__ == "__main__":
    for name in CASES:
        (HERE / "golden" / f"{name}.txt").write_text(dry_run(name))
