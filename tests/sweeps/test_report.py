"""Reports: the paper's cells beside ours, verdicts and ranks, what is missing, and pages that hold what they need."""
import html.parser
import json
import math
import re

import numpy as np
import pytest
from sweeps import fake

from experiments import findings, report
from experiments.figures import series
from experiments.gather import gather
from experiments.results import Values
from experiments.table import Cell, Row


@pytest.fixture(scope="module")
def gathered(tmp_path_factory):
    runner = fake.runner(tmp_path_factory.mktemp("sweep"), seeds=3)
    assert runner.run()
    return gather(runner.sweep)


@pytest.mark.parametrize("better, worse, lower, word", [
    ((1.0, 1.1, 0.9), (2.0, 2.1, 1.9), True, "reproduced"),
    ((1.0, 1.1, 0.9), (2.0, 2.1, 1.9), False, "reversed"),
    ((1.0, 2.0, 0.0), (1.1, 2.2, 0.1), True, "not resolved"),
    ((1.0,), (2.0,), True, "in this direction"),
    ((1.0,), (2.0,), False, "in the other direction"),
    ((), (2.0,), True, "not measured"),
    ((1.0, 1.0), (1.0, 1.0), True, "not resolved"),
])
def test_a_finding_is_judged_by_its_noise(better, worse, lower, word):
    assert findings.judge(Values(values=better), Values(values=worse), lower)[0] == word


def test_rows_of_the_same_models_are_compared_seed_by_seed():
    """By hand: the differences 0.1, 0.12, 0.11 have the mean 0.11 and the standard error 0.01 / sqrt(3)."""
    a, b = (Values(values=v, seeds=(0, 1, 2)) for v in ((1.0, 2.0, 0.0), (1.1, 2.12, 0.11)))
    assert findings.judge(a, b, True)[0] == "not resolved"
    assert findings.judge(a, b, True, paired=True)[0] == "reproduced"
    t = 0.11 / (0.01 / 3**0.5)
    assert findings.p_value(a, b, True) == pytest.approx(1 - t / (2 + t * t)**0.5)  # Student's law of 2 degrees
    other = Values(values=b.values, seeds=(0, 1, 3))  # another seed is missing: no pairs
    assert findings.p_value(a, other, True) == findings.p_value(a, b, False)


def test_the_standard_error_is_that_over_the_seeds():
    values = Values(values=(1.0, 2.0, 4.0))
    assert values.mean == pytest.approx(7 / 3) and values.error == pytest.approx(np.std([1, 2, 4], ddof=1) / 3**0.5)
    assert Values(values=(1.0,)).error is None and Values().mean is None


def test_the_noise_is_measured():
    """By hand: two rows vary by 10 % and 20 %; t of 4 degrees at 97.5 % is 2.776."""
    rows = [Values(values=(9.0, 10.0, 11.0)), Values(values=(0.8, 1.0, 1.2)), Values(values=(1.0,)), Values()]
    text = findings.noise(rows)
    assert "15 % of a row's number (median; 10 to 20 %)" in text
    assert f"about {15 * 2.776 * (2 / 3)**0.5:.2g} % on" in text and findings.noise(rows[2:]) == ""


def test_ranks_are_kendalls():
    rows = [*(Row(str(i), {}, {"FID": float(i)}) for i in range(6)), Row("none", {}, {"FID": Cell(None)})]
    table, ours = fake.table([Row("five", {}), Row("ten", {}), Row("no cell", {}), *rows]), [0, 2, 1, 3, 4, 5]
    of = lambda name: Values(values=(float(ours[int(name)]),)) if name.isdigit() else Values(values=(9.0,))  # noqa: E731
    found = findings.ranks(table, table.columns[0], of, [row.name for row in rows])
    assert found.rows == 6 and found.tau == pytest.approx(1 - 2 * 1 / 15)  # one of 15 pairs is the other way round
    assert found.p == pytest.approx(2 * (1 + 5) / math.factorial(6))       # orders with at most one such, on both sides
    assert "is reproduced" in findings.in_words(found)
    assert findings.ranks(table, table.columns[0], of, ["0", "1"]) is None


def test_the_table_has_the_papers_cells_and_ours(gathered):
    head, body = report.head(gathered), report.body(gathered)
    assert head == ["row", "paper: FID", "ours: fd_small", "device hours", "training FLOP"]
    cells = {row[0]: row for row in body}
    assert cells["ten"][1] == "4 ± 0.1" and cells["ten, linear"][1] == "9 (recalled)" and cells["no cell"][1] == ""
    row = next(row for row in gathered.rows if row.name == "five")
    values = row.ours[gathered.columns[0]]
    assert len(values.values) == 3 and values.seeds == (0, 1, 2)
    assert cells["five"][2] == f"{values.mean:.4g} ± {values.error:.2g}"
    assert cells["five"][4] == "15 G" and row.train_flops == 1e9 * 5 * 3  # flops of a step, 5 steps, 3 seeds


def test_the_verdicts_are_plain(gathered):
    said = {text: verdict for text, verdict, _ in report.conclusions(gathered)}
    assert said["fewer steps are better"] == "reproduced (all 2 pairs)"
    assert said["the wrong way round"] == "reversed"
    assert any("Kendall's tau" in verdict for verdict in said.values())


def test_markdown_and_page_hold_all_and_nothing_from_outside(gathered):
    text, files = report.markdown(gathered, "out")
    assert set(re.findall(r"\]\((.*?)\)", text)) == set(files) and len(files) == 2
    assert all(content.startswith(b"\x89PNG") for content in files.values())
    assert "\"recalled\": from memory" in text and "Noise of fd_small: standard deviation" in text
    assert "experiments.run  --scale=mini" not in text

    class Parser(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.sources = [], []

        def handle_starttag(self, tag, attributes):
            self.sources += [value for name, value in attributes if name in ("src", "href")]
            if tag not in ("meta", "img"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Parser()
    parser.feed(report.page(gathered))
    assert not parser.open and len(parser.sources) == 2 + len(gathered.rows)  # quality, loss, and each row's samples
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)


def test_rows_along_an_axis_are_curves(tmp_path):
    rows = [Row(f"{name}, {n} steps", {"sample.solver": name, "sample.steps": n, "sample.between_times": True},
                {"FID": 100.0 / n})
            for name in ("ddim", "heun") for n in (40, 10, 20)]
    runner = fake.runner(tmp_path, seeds=2, of=fake.table(
        [*fake.ROWS[:2], fake.ROWS[3], *rows], x="evaluations"))
    assert runner.run()
    found = gather(runner.sweep)
    assert {row.name: row.evaluations for row in found.rows}["heun, 40 steps"] == 40
    curves = series(found)
    assert [x for x, _ in curves["ddim"]] == [10, 20, 40] and "heun" in curves
    assert report.pictures(found)[0][2].startswith(b"\x89PNG")


def test_what_is_not_done_is_said(tmp_path):
    runner = fake.runner(tmp_path, retries=0)
    (tmp_path / "trouble").write_text("process.name=linear")
    assert not runner.run()
    found = gather(runner.sweep)
    facts = " ".join(report.facts(found))
    assert f"{found.done} of {len(runner.sweep.jobs)} jobs are done" in facts
    assert "Failed: ten, linear: exit code 1: there is trouble" in facts
    assert {row[0]: row[2] for row in report.body(found)}["ten, linear"] == "failed"


def test_a_log_that_is_being_written_is_read_up_to_there(tmp_path):
    from experiments.gather import log
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n{\"step\": 2, \"lo")
    assert log(tmp_path) == [{"step": 1}]


def test_the_best_row_is_best_in_the_columns_direction(tmp_path, monkeypatch):
    from experiments import results, sweep
    from experiments.table import Column
    found = {"five": 5.0, "ten": 3.0, "ten, linear": 9.0}
    monkeypatch.setattr(results, "values", lambda of, row, column: Values(
        called="fd", values=(found[row],) if row in found else ()))
    for lower, best in ((True, "ten: fd 3"), (False, "ten, linear: fd 9")):
        table = fake.table(columns=(Column("FID", "fd", lower_is_better=lower),))
        assert results.best_row(sweep.expand(table, "mini", 1, tmp_path)) == best


def test_hours_of_a_shared_training_are_shared_out(tmp_path):
    """Three of the rows share one: the hours of all rows add up to those of all jobs."""
    from experiments import sweep
    from experiments.ledger import Ledger
    of, ledger = sweep.expand(fake.table(), "mini", 2, tmp_path), Ledger(tmp_path / "ledger.jsonl")
    for job in of.jobs:
        ledger.add(job.key, "done", seconds=36.0 if job.mode == "train" else 3.6, commit="abc")
    hours = {row.name: row.hours for row in gather(of).rows}
    assert sum(hours.values()) == pytest.approx((4 * 36.0 + 8 * 3.6 + 2 * 3.6) / 3600)  # trainings, evaluations, plans
    assert hours["ten, linear"] == pytest.approx((2 * 36.0 + 2 * 3.6 + 3.6) / 3600)
