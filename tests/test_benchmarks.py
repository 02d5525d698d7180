"""The programs of benchmarks/: what they say of their measurements and, marked slow, whether each runs."""
import copy
import importlib
import json
import pathlib
import re

import pytest

from benchmarks import compare, convolutions, measure, startup

ROOT = pathlib.Path(__file__).parent.parent


def row(low: float, middle: float, high: float) -> dict:
    return {"ms": middle, "lowest_ms": low, "highest_ms": high}


def report(**rows) -> dict:
    return {"program": "train_step", "busy": None, "settings": {"quick": False, "batch": 16}, "rows": rows, "machine": {
        "devices": {"kind": "cpu", "count": 1}, "processor": "x86_64", "cores": 2, "used_cores": 0.1, "time": "today"}}


BEFORE = row(9.9, 10.0, 10.2)


@pytest.mark.parametrize("now, said", [
    (BEFORE, "same"), (row(10.1, 10.6, 11.0), "same"), (row(10.25, 10.28, 10.4), "same"),
    (row(10.3, 10.5, 10.7), "slower"), (row(9.0, 9.5, 9.8), "faster"), (row(9.6, 9.8, 9.85), "same"),
    (row(9.0, 9.5, 9.95), "same")], ids=str)
def test_a_change_is_beyond_the_spread_and_three_percent(now, said):
    """Ranges that overlap, or medians that are near, are the same."""
    assert compare.change(BEFORE, now) == said
    assert compare.change(now, BEFORE) == {"slower": "faster", "faster": "slower"}.get(said, said)


def compared(tmp_path, old: dict, new: dict, *flags: str) -> int:
    for name, one in (("old", old), ("new", new)):
        (tmp_path / name).write_text(json.dumps(one))
    return compare.main([str(tmp_path / "old"), str(tmp_path / "new"), *flags])


def test_what_became_slower_is_named_and_is_the_exit_code(tmp_path, capsys):
    old = report(ours=BEFORE, eager=BEFORE, gone=BEFORE, calm=BEFORE)
    new = report(ours=row(19, 20, 21), eager=row(4, 5, 6), calm=BEFORE, fresh=BEFORE)
    assert compared(tmp_path, old, new) == 1
    assert capsys.readouterr().out.splitlines() == [
        "slower: ours, 10.00 -> 20.00 ms (0.50 times as fast)", "faster: eager, 10.00 -> 5.00 ms (2.00 times as fast)",
        "only before: gone", "only now: fresh", "the same within the spread: 1 of 3"]
    assert compared(tmp_path, old, old | {"rows": {"ours": row(4, 5, 6)}}) == 0


@pytest.mark.parametrize("change, said", [
    ({"busy": "the machine is not idle"}, "now, the machine is not idle"), ({"program": "sampling"}, "'train_step'"),
    ({"settings": {"quick": False, "batch": 8}}, "settings"), ({"settings": {"quick": True}}, "--quick, now"),
    ({"machine": report()["machine"] | {"cores": 4}}, "cores before: 2, now: 4")], ids=str)
def test_reports_of_other_things_are_not_compared(change, said, tmp_path, capsys):
    old = report(ours=BEFORE)
    new = copy.deepcopy(old) | {"rows": {"ours": row(19, 20, 21)}} | change
    assert compared(tmp_path, old, new) == 2
    found = capsys.readouterr().out
    assert said in found and "slower" not in found
    assert compared(tmp_path, old, new, "--anyway") == 1


def test_a_busy_machine_gets_no_ratio():
    ours, theirs = [1.0, 2.0, 4.0], [3.0, 4.0, 6.0]
    assert measure.ratio({"busy": None}, ours, theirs) == {"ours_over_this": 2.0}
    assert measure.ratio({"busy": "the machine is not idle"}, ours, theirs) == {}


def test_a_report_as_text():
    text = measure.table(report(ours=BEFORE | {"flops_per_second": 2.5e12, "peak_gb": 1.25},
                                eager=row(19, 20, 21) | {"ours_over_this": 2.0, "images": 12345})).splitlines()
    assert text[0] == "train_step (batch 16) on cpu (x86_64, 2 cores, 0.1 in use before), today"
    assert text[1].split() == "ours 10.00 ms (9.90 to 10.20), flops per second 2.5 T, peak gb 1.25".split()
    assert text[2].endswith("20.00 ms (19.00 to 21.00), images 12,345; ours is 2.00 times as fast")


def test_each_moment_of_a_start_counts_once_for_the_first_phase_that_it_lies_in():
    intervals = [("imports", 1.0, 4.0), ("build", 3.0, 8.0), ("trace", 4.5, 5.0), ("trace", 4.5, 6.0),
                 ("compile", 5.5, 7.0), ("create_state", 8.0, 9.0), ("compile", 8.1, 8.9), ("first_step", 9.0, 9.5)]
    found = startup.shares(intervals, 0.5, 9.5)
    assert found == pytest.approx({"other": 0.5, "imports": 3.0, "build": 0.5 + 1.0, "trace": 1.0, "compile": 1.5,
                                   "create_state": 1.0, "first_step": 0.5, "data": 0.0, "all": 9.0})


def test_the_page_lists_every_program():
    page = (ROOT / "benchmarks" / "README.md").read_text()
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()}
    assert programs == set(re.findall(r"python -m benchmarks\.(\w+)", page)) and "sampling" in programs


CONFIG = """
from configs import digits
def get_config():
    c = digits.get_config()
    c.network.channels, c.network.multipliers, c.network.attention_resolutions, c.network.groups = 8, (1,), (), 4
    return c
"""


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """rows(program, *flags): those of the report of its --quick run on a small network."""
    monkeypatch.setattr(measure.runtime, "keep_memory", lambda: None)  # of the tests' process

    def run(program: str, *flags: str) -> dict:
        config, out = tmp_path / "config.py", tmp_path / "out" / "report.json"
        config.write_text(CONFIG)
        importlib.import_module(f"benchmarks.{program}").main(["--quick", f"--config={config}", f"--out={out}", *flags])
        report = json.loads(out.read_text())
        assert report["program"] == program and report["settings"]["quick"]
        assert report["machine"]["packages"]["jax"] and report["machine"]["devices"]["kind"] == "cpu"
        found = report["rows"]
        assert all(one["lowest_ms"] <= one["ms"] <= one["highest_ms"] for one in found.values())
        assert all(one["ms"] > 0 for name, one in found.items() if "stall" not in name)
        assert compare.changes(found, found) == dict.fromkeys(found, "same")
        return found

    return run


@pytest.mark.slow
def test_the_programs_run(rows):
    assert rows("train_step", "--ways=ours")["ours"]["peak_gb"] > 0
    assert set(rows("loop_overhead")) == {"bare", "loop"}
    assert set(rows("checkpoint", "--ways=ours")) == {"save, ours", "restore, ours", "stall, ours"}
    found = rows("input_pipeline", "--ways=ours", "--step_ms=10")
    assert set(found) == {"index: ours", "memory: ours", *(f"{name}, 0 workers: ours" for name in (
        "png", "jpeg", "photos", "wav"))}
    assert all(one["of_step"] == pytest.approx(one["ms"] / 10) for one in found.values())


@pytest.mark.slow
def test_the_filtered_convolutions_are_timed_beside_the_direct_ones(tmp_path):
    convolutions.main(["--quick", f"--out={tmp_path}/report.json"])
    found = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert len(found) == 4 and found["4x8x8x32 -> 32, value: filtered"]["error"] < 2e-6
    assert found["4x8x8x32 -> 32, gradients: filtered"]["error"] < 4e-5


@pytest.mark.slow
def test_a_start_with_a_filled_cache_compiles_less(rows):
    found = rows("startup")
    phases = [key for key in found["cold"] if key.endswith("_s")]
    assert len(phases) == 8 and all(
        sum(one[key] for key in phases) == pytest.approx(one["ms"] / 1000, abs=0.05) for one in found.values())
    assert found["warm"]["compile_s"] < found["cold"]["compile_s"]


@pytest.mark.parity
def test_the_peers_run(rows):
    """PyTorch's side of the programs, which measure it beside ours."""
    pytest.importorskip("diffusers", reason="the parity tests' packages are not installed")
    found = rows("sampling", "--chains=ddim:50,ddpm:1000")
    assert set(found) == {f"{sampler} 2, batch 1: {way}" for sampler in ("ddim", "ddpm") for way in ("ours", "eager")}
    found = rows("input_pipeline", "--sources=memory,jpeg", "--ways=torch")
    assert set(found) == {"memory: torch", "jpeg, 0 workers: torch"}
    found = rows("checkpoint")
    assert found["save, torch"]["bytes"] == found["save, ours"]["bytes"]
    assert set(rows("train_step", "--ways=ours,eager")) == {"ours", "eager"}
