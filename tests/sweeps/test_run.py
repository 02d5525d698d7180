"""Sweeps: jobs and their order, what is done again and what not, kills, failures, and the command."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import program
import pytest
from sweeps import fake

from diffusion.errors import ConfigError, DataError
from experiments import results, sweep, user_sweep
from experiments.gather import gather
from experiments.jobs import Stopped, shares
from experiments.run import parser, sweep_of
from experiments.table import Column, Row


def numbers(of):
    """All values of a sweep."""
    return {name: results.values(of, name, of.table.columns[0]).values for name in results.rows(of)}


def starts(runner) -> list[str]:
    return [row["job"] for row in runner.ledger.rows() if row["event"] == "started"]


def test_rows_that_differ_in_sampling_share_a_training(tmp_path):
    of = sweep.expand(fake.table(), "mini", 3, tmp_path)
    by_mode = [job.mode for job in of.jobs]
    assert by_mode.count("train") == 2 * 3 and by_mode.count("evaluate") == 4 * 3 and by_mode.count("plan") == 2
    assert by_mode[:6] == ["train"] * 6
    assert len({m.training for m in of.members}) == 6 and len({m.measurement for m in of.members}) == 12
    (flags,) = {job.flags for job in of.jobs if job.mode == "train" and "linear, seed 1" in job.what}
    assert "--config.seed=1" in flags and not any("sample" in flag for flag in flags)


def test_everything_runs_once_and_only_once(tmp_path):
    first = fake.runner(tmp_path, workers=2)
    assert first.run() and len(starts(first)) == len(set(starts(first))) == len(first.sweep.jobs)
    again = fake.runner(tmp_path)
    assert again.run() and len(starts(again)) == len(first.sweep.jobs)
    shutil.rmtree(next(job for job in first.sweep.jobs if job.mode == "evaluate").out)  # what is lost is made again
    assert fake.runner(tmp_path).run() and len(starts(again)) == len(first.sweep.jobs) + 1
    assert numbers(first.sweep)["five"] == numbers(fake.runner(tmp_path).sweep)["five"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="programs are not bound to cores here")
def test_each_worker_has_its_share_of_the_cores(tmp_path):
    here = sorted(os.sched_getaffinity(0))
    assert shares(1) == [set()] and shares(len(here) + 1) == [set()] * (len(here) + 1)  # all of them
    alone, beside = fake.runner(tmp_path / "1", seeds=1), fake.runner(tmp_path / "2", workers=2, pause=0.2, seeds=1)
    assert alone.run() and beside.run()
    had = [[json.loads((run.sweep.folder / "runs" / m.training / "cores").read_text()) for m in run.sweep.members]
           for run in (alone, beside)]
    assert all(cores == here for cores in had[0])
    if len(here) > 1:
        assert all(len(cores) == len(here) // 2 for cores in had[1]) and len({tuple(cores) for cores in had[1]}) == 2


def test_more_seeds_and_rows_keep_what_is_there(tmp_path):
    before = fake.runner(tmp_path, seeds=1)
    assert before.run()
    after = fake.runner(tmp_path, seeds=2, of=fake.table([*fake.ROWS, Row("more", {"sample.steps": 50})]))
    assert after.run() and len(starts(after)) == len(after.sweep.jobs)


def test_a_failed_row_is_tried_again_named_and_leaves_the_rest(tmp_path):
    runner = fake.runner(tmp_path, retries=1)
    (tmp_path / "trouble").write_text("process.name=linear")
    said = []
    assert not runner.run(report=said.append)
    failed = [line for line in said if "FAILED" in line]
    assert len(failed) == 2 and all("exit code 1: there is trouble" in line for line in failed)
    assert [key for key in starts(runner)].count(failed and next(
        job.key for job in runner.sweep.jobs if job.mode == "train" and "linear, seed 0" in job.what)) == 2
    assert len(runner.blocked) == 3  # two evaluations and a plan
    assert numbers(runner.sweep)["ten"] and not numbers(runner.sweep)["ten, linear"]
    report = gather(runner.sweep)
    assert {row.name: bool(row.failed) for row in report.rows} == {
        "five": False, "ten": False, "ten, linear": True, "no cell": False}
    (tmp_path / "trouble").unlink()
    assert fake.runner(tmp_path).run()  # and is made up for


def test_asked_to_stop_it_saves_and_the_next_goes_on(tmp_path):
    runner = fake.runner(tmp_path, pause=0.2, seeds=1)
    said = []

    def stop_after_one(line):
        said.append(line)
        runner.stop()

    with pytest.raises(Stopped):
        runner.run(report=stop_after_one)
    assert "failed" not in {row["event"] for row in runner.ledger.rows()}
    assert fake.runner(tmp_path, seeds=1).run()


KILLED = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from sweeps import fake
from pathlib import Path
fake.runner(Path({folder!r}), pause=0.05, workers=2).run()
"""


@pytest.mark.slow
def test_killed_five_times_the_table_is_the_same(tmp_path):
    quiet = fake.runner(tmp_path / "quiet", workers=2)
    assert quiet.run()
    (tmp_path / "killed").mkdir()
    code = KILLED.format(root=str(program.ROOT), tests=str(program.ROOT / "tests"), folder=str(tmp_path / "killed"))
    for seconds in (0.9, 1.0, 1.1, 1.3, 1.5):
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        time.sleep(seconds)
        os.kill(child.pid, signal.SIGKILL)  # its programs live on, as orphans do
        child.wait()
    last = fake.runner(tmp_path / "killed", workers=2)
    assert last.run() and last.ledger.rows()
    assert numbers(last.sweep) == numbers(quiet.sweep)
    for member in last.sweep.members:  # no training was run by two programs at a time
        log = (last.sweep.folder / "runs" / member.training / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4, 5]


def test_two_rows_of_one_config_are_an_error(tmp_path):
    rows = [Row("a", {"sample.steps": 5}), Row("b", {"sample.steps": 5})]
    of = fake.table(rows=rows)
    with pytest.raises(ConfigError, match="'a' and 'b' resolve to one config"):
        sweep.expand(of, "mini", 1, tmp_path)
    with pytest.raises(ConfigError, match="row 'c' at mini: .*Unknown config key 'sample.step'.*sample.steps"):
        sweep.expand(fake.table(rows=[Row("c", {"sample.step": 5})]), "mini", 1, tmp_path)
    with pytest.raises(ConfigError, match="row 'd': config.sample.spacing = 'linspace'"):
        sweep.expand(fake.table(rows=[Row("d", {"process.name": "edm"})]), "mini", 1, tmp_path)
    with pytest.raises(ConfigError, match="no row 'fiv'. Did you mean 'five'"):
        sweep.expand(fake.table(), "mini", 1, tmp_path, only=["fiv"])


def test_an_edited_sweep_says_what_changed_and_keeps_the_old(tmp_path):
    old = fake.runner(tmp_path, seeds=1)
    assert sweep.write_down(old.sweep) == [] and old.run() and sweep.write_down(old.sweep) == []
    rows = [Row("five", {"sample.steps": 6}), *fake.ROWS[1:]]
    new = fake.runner(tmp_path, seeds=1, of=fake.table(rows))
    (change,) = sweep.write_down(new.sweep)
    assert change == "five: sample.steps was 5, is 6"
    assert new.run() and len(starts(new)) == len(old.sweep.jobs) + 1  # the other rows stand
    assert all(job.output_exists() for job in old.sweep.jobs)
    assert numbers(old.sweep)["five"] != numbers(new.sweep)["five"]


def test_a_sweep_knows_its_seeds(tmp_path):
    sweep.write_down(fake.runner(tmp_path, seeds=2).sweep)
    sweep.write_down(fake.runner(tmp_path, seeds=1).sweep)  # fewer are a part of it
    assert [entry["seeds"] for entry in sweep.read_history(tmp_path / "sweep" / "sweep.json")] == [2]
    sweep.write_down(fake.runner(tmp_path, seeds=3).sweep)
    assert sweep.read_history(tmp_path / "sweep" / "sweep.json")[-1]["seeds"] == 3
    p = parser("run", "")
    words = ["ddim_table1", f"--folder={tmp_path}/sweep"]
    assert sweep_of(p.parse_args(words), []).seeds == 3 and sweep_of(p.parse_args([*words, "--seeds=1"]), []).seeds == 1
    assert sweep_of(p.parse_args(["ddim_table1", f"--folder={tmp_path}/none"]), []).seeds == 1
    old = [{"named_by": ["fake"], "scale": "mini", "rows": {}}]  # as the first sweeps wrote it
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(old))
    sweep.write_down(fake.runner(tmp_path, seeds=2).sweep)
    assert sweep.read_history(tmp_path / "sweep" / "sweep.json")[-1]["seeds"] == 2


@pytest.mark.parametrize("content", ["null", "[]", "[1]", "{}", "[" * 10**5, '[{"named_by": "x"}]',
                                     '[{"named_by": ["x"], "scale": 3, "rows": {}}]',
                                     '[{"named_by": ["x"], "scale": "mini", "rows": {"a": 3}}]',
                                     '[{"named_by": ["x"], "scale": "mini", "seeds": "many", "rows": {}}]'])
def test_a_history_that_is_none(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(DataError, match="sweep.json .*[Mm]ove it away") as error:
        sweep.read_history(tmp_path / "sweep.json")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("line", ["null", "3", '{"job": "a"}', '{"job": 3, "event": "started", "pid": 1}',
                                  '{"job": "a", "event": "started"}', '{"job": "a", "event": "failed", "seconds": "x"}',
                                  '{"job": "a", "event": "done", "seconds": 1}', "[" * 10**5])
def test_a_line_of_a_ledger_that_is_none_is_left_out(tmp_path, line):
    from experiments.ledger import Ledger, State
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.file.write_text(line + "\n")
    ledger.add("a", "done", seconds=2.0, commit="x")
    assert ledger.states() == {"a": State(done=True, seconds=2.0, commit="x")}


@pytest.mark.parametrize("name, content", [
    ("evaluate", "null"), ("evaluate", "[1]"), ("evaluate", '{"metrics": 3, "protocol": {}}'),
    ("evaluate", '{"metrics": {"fd_x": {"value": 3.0}}, "protocol": {}, "samples": 3}'), ("plan", '{"train": 3}'),
    ("plan", '{"train": {"flops": "x"}}'),
    ("evaluate", '{"metrics": {"fd_x": 3}, "protocol": {}}'), ("evaluate", '{"metrics": {"fd_x": {"value": "y"}}}'),
    ("likelihood", '{"bits_per_dim": "x"}'), ("likelihood", '{"bits_per_dim": 3.0, "estimator": [], "data": {}}')])
def test_a_result_that_is_none_counts_as_not_there(tmp_path, name, content):
    of = sweep.expand(fake.table(), "mini", 1, tmp_path)
    member = of.members[0]
    file = (tmp_path / name / member.measurement / "a.json" if name == "evaluate" else
            tmp_path / name / f"{member.training if name == 'plan' else member.measurement}.json")
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert results.record(of, member) is None and results.likelihood(of, member) is None
    assert gather(of).rows[0].ours


def test_a_sweep_of_flags():
    of = user_sweep.table_of_flags(["--config=configs/digits.py", "--sweep.optimizer.learning_rate=1e-4,2e-4",
                                    "--sweep.network.multipliers=(1, 2),(2,)", "--config.train.duration=50 steps",
                                    "--metrics=fd,likelihood"])
    assert [row.name for row in of.rows] == [f"learning_rate {a}, multipliers {b}" for a in (0.0001, 0.0002)
                                             for b in ((1, 2), (2,))]
    assert [c.ours for c in of.columns] == ["fd", "bits_per_dim"] and of.modes == ("evaluate", "likelihood")
    assert of.config("own", of.rows[1]).network.multipliers == (2,)
    assert of.config("own", of.rows[0]).train.duration == "50 steps"


@pytest.mark.parametrize("flags, words", [
    (["--sweep.seed=1,2"], "--config=FILE is missing"),
    (["--config=configs/digits.py"], "Nothing is swept"),
    (["--config=configs/digits.py", "--sweep.proces.name=linear"], "Unknown config key 'proces.name'"),
    (["--config=configs/digits.py", "--sweep.seed=1", "--metrics=fid"], "no metric 'fid'"),
    (["--config=configs/digits.py", "--sweep.seed=1", "--metrics="], "no metric '' of a sweep"),
    (["--config=configs/digits.py", "--sweep.seed="], "--sweep.seed is empty"),
    (["--config=configs/digits.py", "--sweep.seed=1,2"], "seeds are not rows. Leave it out, and give --seeds=2"),
    (["--config=configs/digits.py", "--sweep.seed=,"], "--sweep.seed is empty"),
    (["--config=configs/digits.py", "--sweep.seed=1,x"], "--sweep.seed: config.seed = 'x' is not a whole number"),
    (["--config=configs/digits.py", "--sweep.seed=1", "--config.data.flip=3"], "data.flip = .*not True or False"),
    (["--config=configs/digits.py", f"--sweep.seed={','.join(map(str, range(101)))}",
      f"--sweep.sample.steps={','.join(map(str, range(1, 101)))}"], "10,100 rows; at most 10,000"),
    (["--config=configs/none.py", "--sweep.seed=1"], "config file .*configs/none.py' cannot be read"),
])
def test_mistakes_in_a_sweep_of_flags(flags, words):
    with pytest.raises(ConfigError, match=words):
        user_sweep.table_of_flags(flags)


def command(name: str, *words: str) -> subprocess.CompletedProcess:
    return program.execute([sys.executable, "-m", f"experiments.{name}", *words], check=False)


def test_the_command_lists_prints_and_teaches(tmp_path):
    assert "ddim_table1" in command("run").stdout
    printed = command("run", "ddim_table1", "--launcher=print", "--rows=eta 0, 10 steps;eta 1, 10 steps").stdout
    lines = printed.splitlines()
    assert len(lines) == 4 and all(line.startswith("python -m diffusion.main --config=") for line in lines)
    for words, said in ((["ddim_tabl1"], "no table 'ddim_tabl1'. Did you mean 'ddim_table1'"),
                        (["ddim_table1", "--scale=huge"], "no scale 'huge'; it has paper, small, mini"),
                        (["iddpm_table1"], "no scale 'mini'; it has paper"),
                        (["ddim_table1", "--seeds=0"], "must be 1 or more"),
                        (["ddim_table1", "--pack=0"], "must be 1 or more"),
                        (["ddim_table1", "--pack=2", "--launcher=print"], "--pack is for --launcher=local"),
                        (["ddim_table1", "--sweep.seed=1"], "not both")):
        done = command("run", *words, f"--folder={tmp_path}")
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
    done = command("report", "ddim_table1", f"--folder={tmp_path}/none")
    assert done.returncode == 1 and "Run it first" in done.stderr


def test_columns_of_unlike_protocols_are_apart(tmp_path):
    runner = fake.runner(tmp_path, seeds=1)
    assert runner.run()
    file = next(runner.sweep.folder.glob(f"evaluate/{runner.sweep.of('ten')[0].measurement}/*.json"))
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"protocol": {"extractor": "small", "images": 5}}))
    columns = gather(runner.sweep).columns
    assert len(columns) == 2 and {c.column for c in columns} == {Column("FID", "fd")}


def test_a_line_of_the_ledger_is_on_the_disk_and_a_torn_one_is_left_out(tmp_path, monkeypatch):
    from experiments.ledger import Ledger, State
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.add("a", "failed", seconds=1.0, error="x")
    assert synced == [ledger.file.stat().st_size]
    with open(ledger.file, "a") as file:
        file.write('{"job": "a", "eve\n')
    ledger.add("a", "failed", seconds=2.0, error="y")
    assert ledger.states() == {"a": State(attempts=2, error="y", seconds=3.0)}


def test_two_programs_do_not_run_one_sweep(tmp_path):
    from experiments.run import lock
    of = sweep.expand(fake.table(), "mini", 1, tmp_path)
    held = lock(of)
    with pytest.raises(ConfigError, match="Another program runs the sweep in"):
        lock(of)
    held.close()
    lock(of).close()


def test_a_training_that_was_stopped_and_has_saved_has_not_failed(tmp_path, monkeypatch):
    from experiments.sweep import Job
    runner, codes = fake.runner(tmp_path, seeds=1, retries=0), [75, 130, 75, 0]
    monkeypatch.setattr(runner, "once", lambda jobs: codes.pop(0))
    monkeypatch.setattr(Job, "output_exists", lambda job: True)
    assert runner.complete_alone(runner.sweep.jobs[0]) and not codes


def test_each_seed_is_measured_with_noise_of_its_own(tmp_path):
    found = [job for job in sweep.expand(fake.table(), "mini", 3, tmp_path).jobs if job.mode == "evaluate"]
    assert len(found) == 4 * 3
    for job in found:
        seed = job.what.rpartition("seed ")[2]
        assert f"--seed={seed}" in job.flags and f"--config.seed={seed}" in job.flags


def test_a_program_that_a_killed_sweep_left_behind_is_awaited(tmp_path):
    before = fake.runner(tmp_path, seeds=1)
    job = before.sweep.jobs[0]
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)", *job.flags])
    before.ledger.add(job.key, "started", pid=orphan.pid, what=job.what)
    fake.runner(tmp_path, seeds=1).wait_for_another(job)
    assert orphan.poll() is not None
