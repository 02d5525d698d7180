"""One training step of every network on meshes of 8 devices equals that of one device."""
import json
import pathlib
import sys

import program
import pytest
from multidevice import meshes

pytestmark = [pytest.mark.multidevice, pytest.mark.slow]
HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module", params=meshes.NETWORKS)
def report(request, tmp_path_factory):
    file = tmp_path_factory.mktemp("meshes") / "report.json"
    program.execute([sys.executable, HERE / "meshes.py", file, request.param], devices=8)
    return {name.split(", ")[1]: row for name, row in json.loads(file.read_text()).items()}


def test_loss_gradient_and_update(report):
    """Only the order of sums differs. The gradient is relative to the largest number of each parameter. The last bit of
    a scale near 1 is 1.2e-7, which is 1.2e-5 of the smallest updates that count."""
    rows = {mesh: row for mesh, row in report.items() if "loss" in row}
    assert rows
    for mesh, row in rows.items():
        assert row["loss"] < 1e-6 and row["gradient"] < 1e-5 and row["update"] < 3e-5, mesh


def test_what_a_device_holds(report):
    """Parameters, average and optimizer state are cut alike: an eighth, and what is too small to be cut."""
    for share in report["fsdp"]["held"]:
        assert 1 / 8 <= share < 1 / 8 + 0.03
    for name, share in (("data", 1), ("data x fsdp", 1 / 4)):
        assert all(share <= held < share + 0.03 for held in report[name]["held"])
    for share in report["all"]["held"]:  # tensor cuts what has a rule, fsdp the rest too
        assert 1 / 4 <= share < 0.3
