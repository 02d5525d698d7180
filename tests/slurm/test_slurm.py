"""Real jobs on the Slurm that setup.sh starts: one run of two tasks, and one that is preempted and requeued.

    sudo bash tests/slurm/setup.sh && pytest -m slurm
"""
import shlex
import shutil
import subprocess
import sys
import time

import program
import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(
    shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode != 0,
    reason="no Slurm answers here: run tests/slurm/setup.sh")]


def submit(workdir, *flags: str, tasks: int = 1) -> str:
    """The number of the job that ./launch.sh slurm starts."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.launchers.slurm", "configs/digits.py", f"--tasks_per_node={tasks}",
         f"--workdir={workdir}", "--time=10", *program.TINY, *flags], cwd=program.ROOT, env=program.environment(2),
        text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("Submitted batch job ")[1].split()[0]


def told(job: str) -> dict[str, str]:
    """What Slurm says of the job."""
    out = subprocess.run(["scontrol", "show", "job", job], text=True, capture_output=True, check=True).stdout
    return dict(word.split("=", 1) for word in shlex.split(out.replace("'", "")) if "=" in word)


def wait(condition, log, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.5)


def test_two_tasks_are_one_run(tmp_path):
    workdir, log = tmp_path / "my run", tmp_path / "my run.slurm.log"
    job = submit(workdir, tasks=2)
    wait(lambda: told(job)["JobState"] in ("COMPLETED", "FAILED"), log)
    assert told(job)["JobState"] == "COMPLETED", log.read_text()
    assert [row["step"] for row in program.rows(workdir)] == [10, 20, 30]
    environment = (workdir / "environment.json").read_text()
    assert '"processes": 2' in environment and '"count": 4' in environment
    assert log.read_text().count("first step after") == 1


def test_a_job_that_is_signalled_saves_and_goes_on_in_the_queue(tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "run.slurm.log"
    job = submit(workdir, "--config.train.duration=3000 steps", "--config.train.checkpoint_every=3000 steps",
                 "--config.train.sample_every=3000 steps")
    wait(lambda: log.exists() and "first step after" in log.read_text(), log)
    subprocess.run(["scancel", "--signal=TERM", job], check=True)  # what comes before the time limit
    wait(lambda: told(job)["JobState"] in ("COMPLETED", "FAILED"), log)
    text = log.read_text()
    assert told(job)["JobState"] == "COMPLETED" and told(job)["Restarts"] == "1", text
    stopped = text.split("stopped at step ")[1].split(" of")[0]
    assert f"at step {stopped}" in text.split("resuming ")[1]
    assert [row["step"] for row in program.rows(workdir)] == list(range(10, 3001, 10))
