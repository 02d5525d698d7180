"""One training step of every network on every kind of mesh equals that of one device."""
import json
import pathlib
import subprocess
import sys

import program
import pytest
from multidevice import meshes

pytestmark = [pytest.mark.multidevice, pytest.mark.slow]
HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module", params=meshes.NETWORKS)
def report(request, tmp_path_factory):
    file = tmp_path_factory.mktemp("meshes") / "report.json"
    environment = program.environment(8)
    environment["XLA_FLAGS"] += " --xla_backend_optimization_level=0"  # half the time; the partitions are the same
    subprocess.run([sys.executable, HERE / "meshes.py", file, request.param], check=True, cwd=program.ROOT,
                   env=environment)
    return {name.split(", ")[1]: row for name, row in json.loads(file.read_text()).items()}


@pytest.mark.parametrize("mesh", meshes.MESHES)
def test_loss_gradient_and_update(report, mesh):
    """Only the order of sums differs. The gradient is relative to the largest number of each parameter."""
    assert report[mesh]["loss"] < 1e-6
    assert report[mesh]["gradient"] < 1e-5
    assert report[mesh]["update"] < 1e-5


def test_what_a_device_holds(report):
    """Parameters, average and optimizer state are cut alike: an eighth, and what is too small to be cut."""
    for share in report["fsdp"]["held"]:
        assert 1 / 8 <= share < 1 / 8 + 0.03
    for name, share in (("data", 1), ("data x fsdp", 1 / 4)):
        assert all(share <= held < share + 0.03 for held in report[name]["held"])
    for share in report["all"]["held"]:  # tensor cuts what has a rule, fsdp the rest too
        assert 1 / 4 <= share < 0.3
