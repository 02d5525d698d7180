"""Several trainings in one program: the same as each alone."""
import json
import sys

import jax
import numpy as np
import program
import pytest
from sweeps import fake

from diffusion import build
from diffusion.io.checkpoint import Checkpoints
from experiments.pack import parsed

FLAGS = ["--config=configs/digits.py", *program.TINY, "--config.train.checkpoint_every=2 steps",
         "--config.train.log_every=2 steps", "--config.train.sample_every=6 steps", "--config.optimizer.warmup=2 steps",
         "--config.optimizer.decay=constant"]


def flags(folder, i: int, steps: int = 6) -> list[str]:
    """Of training i, which is not like another."""
    return [*FLAGS, f"--workdir={folder / str(i)}", f"--config.train.duration={steps} steps", f"--config.seed={i}",
            f"--config.optimizer.learning_rate={(2e-4, 3e-4)[i]}"]


def run(module: str, *groups: list[str]):
    words = [word for group in groups for word in ("--", *group)][1:]
    return program.execute([sys.executable, "-m", module, *words], check=False)


def result(words: list[str]) -> tuple[list[np.ndarray], dict, list[dict]]:
    """Of a training: the arrays of its last checkpoint, its clock, and the log; but for times."""
    config, workdir = parsed(words)
    parts = build.training(config, build.model(config))
    state, clock = Checkpoints(workdir / "checkpoints", keep=None).restore_newest(parts.abstract_state, parts.data)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return ([np.asarray(x) for x in jax.tree.leaves(state)],
            {k: v for k, v in clock.items() if k not in ("seconds", "window")},
            [{k: v for k, v in row.items() if k not in program.TIMES} for row in rows])


@pytest.mark.slow
def test_trainings_together_are_those_of_separate_programs(tmp_path):
    for i in (0, 1):
        assert (done := run("diffusion.main", flags(tmp_path / "alone", i))).returncode == 0, done.stderr
    for steps in (4, 6):  # the second time, both go on
        done = run("experiments.pack", *(flags(tmp_path / "together", i, steps) for i in (0, 1)))
        assert done.returncode == 0, done.stderr
    for i in (0, 1):
        together, alone = (result(flags(tmp_path / kind, i)) for kind in ("together", "alone"))
        assert together[1:] == alone[1:] and [row["step"] for row in alone[2]] == [2, 4, 6]
        assert len(together[0]) == len(alone[0]) > 50
        for x, y in zip(together[0], alone[0]):
            np.testing.assert_array_equal(x, y)
        command = json.loads((tmp_path / "together" / str(i) / "environment.json").read_text())[0]["command"]
        assert command.startswith("python -m diffusion.main --config=configs/digits.py") and f"seed={i}" in command


@pytest.mark.slow
def test_one_that_fails_leaves_the_others(tmp_path):
    done = run("experiments.pack", [*flags(tmp_path, 0), "--config.optimizer.learning_rate=1e30"], flags(tmp_path, 1))
    assert done.returncode == 1 and f"error: {tmp_path / '0'}: Training stopped at step" in done.stderr
    assert [row["step"] for row in result(flags(tmp_path, 1))[2]] == [2, 4, 6]
    done = run("experiments.pack", [*flags(tmp_path, 0), "--config.nonsense=1"])
    assert done.returncode == 1 and "nonsense" in done.stderr and "Traceback" not in done.stderr


def test_a_sweep_with_packs_is_the_same_sweep(tmp_path):
    plain, packed = fake.runner(tmp_path / "plain", workers=2), fake.runner(tmp_path / "packed", workers=2, pack=3)
    assert plain.run() and packed.run()
    assert (tmp_path / "packed" / "packs").read_text().split() == ["3"]  # 4 trainings: 3 together, 1 alone
    for job, other in zip(plain.sweep.jobs, packed.sweep.jobs):
        if job.mode == "evaluate":
            assert [f.read_text() for f in job.out.glob("*.json")] == [f.read_text() for f in other.out.glob("*.json")]

    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "trouble").write_text("--mode=train --config.train.duration=900 steps --config.process.name")
    bad = fake.runner(tmp_path / "bad", pack=4)
    assert not bad.run()
    states = {job.what: bad.state(job) for job in bad.sweep.jobs if job.mode == "train"}
    assert [what for what, state in states.items() if not state.done] == [w for w in states if "linear" in w]
    assert all("there is trouble" in state.error for what, state in states.items() if "linear" in what)
