"""A sweep as an array of jobs, on the Slurm that tests/slurm/setup.sh starts; and what is said where there is none."""
import json
import shutil
import subprocess
import sys
import time

import pytest
from sweeps import fake

from diffusion.errors import ConfigError
from experiments.slurm_array import options_of, submit

real = [pytest.mark.slurm, pytest.mark.skipif(
    shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode != 0,
    reason="no Slurm answers here: run tests/slurm/setup.sh")]


def test_options_are_submitits():
    assert options_of("partition=gpu gpus=1 time=60 cpus=4 mem=8GB") == {
        "slurm_partition": "gpu", "slurm_gpus_per_task": 1, "timeout_min": 60, "cpus_per_task": 4, "slurm_mem": "8GB"}
    with pytest.raises(ConfigError, match="key=value"):
        options_of("--partition gpu")
    assert options_of("time=\u00b2 mem=" + "9" * 5000) == {"timeout_min": "\u00b2", "slurm_mem": "9" * 5000}


def test_without_submitit_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"diffusion\[slurm\]"):
        submit(fake.runner(tmp_path), "", jobs=1)


class TestReal:
    pytestmark = real

    def test_an_array_does_the_whole_sweep(self, tmp_path):
        pytest.importorskip("submitit", reason="submitit is not installed: pip install -e .[slurm]")
        runner = fake.runner(tmp_path, seeds=2)
        found = submit(runner, "time=5", jobs=2)
        assert len(found) == 4 and len({job.job_id.split("_")[0] for job in found}) == 1  # one array
        assert all(job.result() for job in found)
        again = fake.runner(tmp_path, seeds=2)
        assert all(again.is_done(job) for job in again.sweep.jobs)
        assert submit(again, "", jobs=1) == []

    def test_a_preempted_element_goes_on(self, tmp_path):
        submitit = pytest.importorskip("submitit", reason="submitit is not installed: pip install -e .[slurm]")
        runner = fake.runner(tmp_path, seeds=1, pause=1.0)
        (job, *_) = submit(runner, "time=5", jobs=1)
        log = runner.sweep.folder / "runs" / runner.sweep.members[0].training / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not log.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        job._interrupt(timeout=False)  # the signal that Slurm sends before it preempts
        assert job.result() and isinstance(job, submitit.SlurmJob)
        assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5]
        assert "stopped" in {row["event"] for row in runner.ledger.rows()}
