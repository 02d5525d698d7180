"""Several processes: how they meet, and what they say when they cannot or should not."""
import signal

import numpy as np
import program
import pytest

from diffusion.errors import ConfigError
from diffusion.parallel import hosts

pytestmark = pytest.mark.multidevice


@pytest.mark.parametrize("environment, found", [
    ({}, None),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),  # in a batch script, before srun
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a[1-2]"}, "the Slurm job 7"),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a1"}, None),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun"),
    ({"TPU_WORKER_HOSTNAMES": "h0,h1"}, "the TPU slice"),
    ({"TPU_WORKER_HOSTNAMES": "h0", "MEGASCALE_NUM_SLICES": "2"}, "the TPU slice"),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ({"TPU_WORKER_HOSTNAMES": "h0,h1", "JAX_PLATFORMS": "cpu"}, None),
])
def test_the_environment_says_whether_there_are_others(environment, found):
    assert hosts.cluster(environment) == found


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES"])
def test_numbers_of_the_environment(name):
    beside = {"SLURM_STEP_NODELIST": "n1"}
    assert hosts.cluster({name: "", **beside}) is None
    for text in ("x", "-1", "2.0", "1e3", "9" * 30, "\u0665x"):
        with pytest.raises(ConfigError, match=f"{name} is .*not a whole number.*unset it"):
            hosts.cluster({name: text, **beside})


@pytest.mark.parametrize("nodes, first", [("n1", "n1"), ("n1,n2", "n1"), ("n[1-2]", "n1"), ("a-b[07,09-12]", "a-b07"),
                                          ("n[3]", "n3"), ("n[1-2],m3", "n1")])
def test_where_the_first_task_of_a_slurm_step_is(nodes, first):
    slurm = {"SLURM_JOB_ID": "5000", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": nodes}
    assert hosts.slurm_address(slurm) == f"{first}:{61440 + 904}"
    assert hosts.slurm_address({}) is None and hosts.slurm_address({**slurm, "SLURM_NTASKS": "1"}) is None
    with pytest.raises(ConfigError, match="SLURM_JOB_ID"):
        hosts.slurm_address({**slurm, "SLURM_JOB_ID": "x"})


def test_a_slurm_step_whose_other_task_is_not_there(monkeypatch):
    for name, value in {"SLURM_JOB_ID": "5001", "SLURM_NTASKS": "2", "SLURM_PROCID": "0",
                        "SLURM_STEP_NODELIST": "localhost", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="Process 1 did not reach --coordinator=localhost:62345 within 1 s"):
        hosts.join(None, None, None, seconds=1, heartbeat=10)


@pytest.mark.parametrize("arguments, words", [
    ((None, 2, 0), "need --coordinator"),
    (("127.0.0.1:1234", 2, 2), "--process_id below it; got 2 and 2"),
    (("127.0.0.1:1234", None, None), "--num_processes"),
    (("localhost", 2, 0), "HOST:PORT"),
    (("127.0.0.1:99999", 2, 1), "HOST:PORT"),
    *((((f"{host}:1234", 2, index)), "HOST:PORT") for host in ("a..b", "a" * 70, "\udcff") for index in (0, 1)),
])
def test_wrong_flags(arguments, words):
    with pytest.raises(ConfigError, match=words):
        hosts.join(*arguments, seconds=1, heartbeat=10)


@pytest.mark.parametrize("killed, left, words", [(0, 1, "Process 1 found no process 0 at --coordinator=127.0.0.1:"),
                                                 (1, 0, "Process 1 did not reach --coordinator=127.0.0.1:")])
def test_who_is_missing_is_said_within_seconds(tmp_path, killed, left, words):
    processes = program.start_processes(2, 1, f"--workdir={tmp_path}/run", "--connect_seconds=2")
    processes[killed].kill()
    code, _, err = program.finish(processes)[left]
    assert code == 1 and words in err and "within 2 s" in err and "Traceback" not in err


def test_other_configs_are_refused(tmp_path):
    processes = program.start_processes(2, 1, f"--workdir={tmp_path}/run", of=lambda i: [f"--config.seed={i}"])
    for code, _, err in program.finish(processes):
        assert code == 1 and "Process 1 of 2 has another config" in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_the_code_that_is_compared_is_that_of_the_whole_package(monkeypatch):
    assert {"main.py", "core/losses.py", "parallel/hosts.py"} <= {name for name, _ in hosts.package_code()}
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    mine = hosts.package_code()
    theirs = [(name, text + "# changed" * (name == "core/losses.py")) for name, text in mine]
    seen = []
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", lambda x: seen.append(x) or np.stack([x, seen[0]]))
    hosts.check_same("settings")
    monkeypatch.setattr(hosts, "package_code", lambda: theirs)
    with pytest.raises(ConfigError, match="another code of diffusion/"):
        hosts.check_same("settings")


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_the_same_step(tmp_path):
    flags = [f"--workdir={tmp_path}/run", "--config.train.duration=100k steps",
             "--config.train.checkpoint_every=100k steps", "--config.train.sample_every=100k steps"]
    processes = program.start_processes(2, 2, *flags)
    program.until("first step after", processes[0].stderr)
    processes[1].send_signal(signal.SIGTERM)
    ends = program.finish(processes)
    steps = {err.split("stopped at step ")[1].split(" of")[0] for _, _, err in ends}
    assert [code for code, _, _ in ends] == [75, 75] and len(steps) == 1
    (step,) = steps
    assert (tmp_path / "run" / "checkpoints" / step.replace(",", "") / "SHA256SUMS").exists()
