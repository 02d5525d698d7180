"""The same run on 1 device, on 8, sharded, with accumulation, and on 2 processes: one loss curve, to float32
rounding."""

import numpy as np
import program
import pytest

pytestmark = pytest.mark.multidevice
# Dropout and flips are on: their draws must not depend on the layout either. The network is as wide as needed for
# arrays large enough to be sharded.
FLAGS = ["--config.train.duration=20 steps", "--config.train.log_every=1 step", "--config.network.dropout=0.1",
         "--config.data.flip=True", "--config.data.on_device=False", "--config.train.sample_every=20 steps",
         "--config.network.channels=16", "--config.train.checkpoint_every=20 steps", "--config.train.batch_size=32"]
# Sums over the batch are taken in another order on each layout, and 20 steps of Adam let the difference grow. Noise or
# examples that were not the same would differ in the first digits.
RTOL = 2e-4


def curve(workdir):
    return np.array([[r["loss"], r["grad_norm"]] for r in program.rows(workdir)])


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "one"
    program.run(f"--workdir={workdir}", *FLAGS)
    return workdir


def close(workdir, one_device):
    ours, reference = curve(workdir), curve(one_device)
    assert ours.shape == reference.shape == (20, 2)
    np.testing.assert_allclose(ours[0], reference[0], rtol=2e-6)  # before anything could grow
    np.testing.assert_allclose(ours, reference, rtol=RTOL)


@pytest.mark.slow
@pytest.mark.parametrize("name, devices, flags", [
    ("fsdp", 8, ["--config.mesh.fsdp=4"]),
    ("accumulate, data on the device", 8, ["--config.train.accumulate=4", "--config.data.on_device=True"]),
    ("dispatch", 1, ["--config.train.steps_per_dispatch=2", "--config.train.log_every=2 steps"]),
])
def test_devices(tmp_path, one_device, name, devices, flags):
    program.run(f"--workdir={tmp_path}", *FLAGS, *flags, devices=devices)
    if name == "dispatch":  # its rows are means of two steps
        paired = curve(one_device).reshape(10, 2, 2).mean(1)
        np.testing.assert_allclose(curve(tmp_path), paired, rtol=RTOL)
    else:
        close(tmp_path, one_device)


def run_processes(workdir, count, devices, *flags):
    outputs = program.finish(program.start_processes(count, devices, f"--workdir={workdir}", *FLAGS, *flags))
    for code, out, err in outputs:
        assert code == 0, out + err
    return [(out, err) for _, out, err in outputs]


@pytest.mark.slow
def test_two_processes(tmp_path, one_device):
    outputs = run_processes(tmp_path, 2, 2, "--config.mesh.fsdp=2")
    close(tmp_path, one_device)  # each step has one row: only one process writes the log
    assert "first step after" in "".join(outputs[0]) and "first step after" not in "".join(outputs[1])
    # Its checkpoint is restored by one process, which goes on.
    program.run(f"--workdir={tmp_path}", *FLAGS, "--config.train.duration=22 steps")
    assert [r["step"] for r in program.rows(tmp_path)] == list(range(1, 23))


@pytest.mark.rare
def test_four_processes_of_which_one_is_killed_go_on_as_two(tmp_path, one_device):
    flags = [f"--workdir={tmp_path}/run", *FLAGS, "--config.mesh.fsdp=2", "--config.train.checkpoint_every=5 steps"]
    processes = program.start_processes(4, 2, *flags, "--heartbeat_seconds=10")
    program.until("first step after", processes[0].stderr)
    while not (tmp_path / "run" / "checkpoints" / "5").exists():
        assert processes[0].poll() is None, processes[0].stderr.read()
    processes[2].kill()  # the others wait for it in a sum that never ends, until its heartbeats are missed
    for code, out, err in program.finish(processes):
        assert code != 0
    assert len(curve(tmp_path / "run")) < 20, "it ended before one was killed"
    run_processes(tmp_path / "run", 2, 2, "--config.mesh.fsdp=4", "--config.train.checkpoint_every=5 steps")
    close(tmp_path / "run", one_device)


@pytest.mark.slow
def test_sample_i_is_the_same_picture_on_any_mesh(tmp_path, one_device):
    pictures = {}
    for name, devices, flags in (("one", 1, []), ("cut", 8, ["--config.mesh.fsdp=2", "--config.mesh.tensor=2"])):
        program.run(f"--workdir={one_device}", *FLAGS, "--mode=sample", "--num_samples=11", "--seed=3",
                    f"--out={tmp_path / name}", *flags, devices=devices)
        pictures[name] = np.load(tmp_path / name / "samples.npz")["arr_0"].astype(int)
    # Sums in another order may round a pixel to the next grey level.
    assert np.abs(pictures["cut"] - pictures["one"]).max() <= 1
