"""`--mode=plan` as a user runs it."""
import importlib.util
import json

import program
import pytest


@pytest.mark.slow
def test_of_the_devices_at_hand(tmp_path):
    done = program.run("--mode=plan", f"--out={tmp_path}/plan.json", "--config.mesh.fsdp=2",
                       "--config.data.name=tfds", "--config.data.dir=nowhere", devices=4)  # no data is read
    assert "mesh data 2 x fsdp 2" in done.stdout and "all-reduce" in done.stdout and "no times" in done.stdout
    report = json.loads((tmp_path / "plan.json").read_text())
    assert report["fits"] and report["devices"] == 4 and report["sizes"]["parameters"] > 0
    for step in ("train", "sample"):
        assert report[step]["flops"] > 0 and report[step]["memory"] > 0
    assert not (tmp_path / "checkpoints").exists()


def test_an_unknown_topology():
    done = program.run("--mode=plan", "--topology=v5e:4x", check=False)
    assert done.returncode == 1 and "v5e:16x16" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_tpu_extra_the_error_names_it():
    done = program.run("--mode=plan", "--topology=v5e:2x2", check=False)
    assert done.returncode == 1 and ".[tpu]" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e .[tpu]")
def test_of_a_tpu_that_is_not_there(tmp_path):
    done = program.run("--mode=plan", "--topology=v5e:2x2", f"--out={tmp_path}/plan.json")
    report = json.loads((tmp_path / "plan.json").read_text())
    assert report["fits"] and report["train"]["seconds"]["step"] > 0 and "images/s" in done.stdout
    assert report["train"]["collectives"]["all-reduce"]["bytes"] >= report["sizes"]["parameters"]


def test_sizes_are_in_bytes_of_one_device():
    import jax
    import numpy as np

    from diffusion.programs import plan
    whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = {"a": jax.ShapeDtypeStruct((3, 5), np.float32, sharding=whole),
            "b": jax.ShapeDtypeStruct((7,), "bfloat16", sharding=whole)}
    assert plan.size_of(tree) == 4 * 15 + 2 * 7
