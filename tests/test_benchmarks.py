"""The programs of benchmarks/: what they say of their measurements and, marked slow, whether each runs."""
import copy
import json

import pytest

from benchmarks import compare, measure


def row(low: float, middle: float, high: float) -> dict:
    return {"ms": middle, "lowest_ms": low, "highest_ms": high}


def report(**rows) -> dict:
    return {"program": "train_step", "busy": None, "settings": {"quick": False, "batch": 16}, "rows": rows, "machine": {
        "devices": {"kind": "cpu", "count": 1}, "processor": "x86_64", "cores": 2, "load": 0.1, "time": "today"}}


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
    assert text[0] == "train_step (batch 16) on cpu (x86_64, 2 cores), load 0.1, today"
    assert text[1].split() == "ours 10.00 ms (9.90 to 10.20), flops per second 2.5 T, peak gb 1.25".split()
    assert text[2].endswith("20.00 ms (19.00 to 21.00), images 12,345; ours is 2.00 times as fast")
