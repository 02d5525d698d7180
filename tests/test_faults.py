"""A short fault campaign of benchmarks/faults.py; docs/results.md has the figures of the long one."""
import json
import subprocess
import sys

import program
import pytest

pytestmark = pytest.mark.rare


def test_every_fault_ends_bit_equal(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--kills=2", "--kills_of_a_run=2", "--sigterms=1",
         "--damaged_checkpoints=1", "--damaged_shards=1", "--full_disks=1", "--lost_hosts=1",
         f"--out={tmp_path}/report.json"], cwd=program.ROOT, env=program.environment(), text=True, capture_output=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 0 and not report["failures"], report
    assert {name: row["runs"] for name, row in report["cases"].items()} == {
        "kills": 1, "sigterms": 1, "damaged checkpoints": 1, "damaged shards": 1, "full disks": 1, "lost hosts": 1}
