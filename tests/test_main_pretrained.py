"""The program with existing models: --from_pretrained, --init_from, and the convert program."""
import json
import os
import sys

import jax
import numpy as np
import pytest
from program import TINY, execute, rows, run
from tiny_pipeline import pipeline

from diffusion import DiffusionPipeline

SHORT = ["--config.train.duration=2 steps", "--config.train.log_every=1 steps", "--config.train.sample_every=2 steps",
         "--config.train.checkpoint_every=2 steps", "--config.train.batch_size=16", "--config.sample.preview=8",
         "--config.optimizer.warmup=1 steps", "--config.data.on_device=True"]


def program(*flags: str, **kwargs):
    """Runs the program without the config of `run`."""
    return execute([sys.executable, "-m", "diffusion.main", *flags], **kwargs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(a run folder, the same model in diffusers' layout)"""
    folder = tmp_path_factory.mktemp("pretrained")
    run(f"--workdir={folder}/run")
    done = execute([sys.executable, "-m", "diffusion.interop.convert", f"{folder}/run", f"{folder}/exported"],
                   check=False)
    assert "parameters\nread back: the parameters are equal bit for bit" in done.stdout, done.stderr
    assert done.returncode == 0
    return folder / "run", folder / "exported"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model in diffusers' layout, of random weights."""
    folder = tmp_path_factory.mktemp("pretrained") / "exported"
    pipeline(data__channels=1, prediction="v").save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_all_ways_of_sampling_give_the_same_files(trained, tmp_path):
    run_folder, exported = trained
    run(f"--workdir={run_folder}", "--mode=sample", "--num_samples=8", f"--out={tmp_path}/own")
    for name, source in (("run", run_folder), ("exported", exported)):
        done = program("--mode=sample", f"--from_pretrained={source}", "--num_samples=8", f"--out={tmp_path}/{name}",
                       "--config.sample.steps=5")  # which diffusers' layout has no place for
        assert "8 images" in done.stdout and "step 5 of 5" in done.stderr
    files = sorted(path.name for path in (tmp_path / "own").iterdir())
    assert len(files) == 10
    for name in ("run", "exported"):
        for file in files:
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "own" / file).read_bytes(), (name, file)
    array = DiffusionPipeline.from_pretrained(exported)(8, 5, output_type="np", progress_bar=False).images
    with np.load(tmp_path / "own" / "samples.npz") as file:
        np.testing.assert_array_equal(np.rint(array * 255), file["arr_0"])


@pytest.mark.slow
def test_the_sampler_can_be_chosen(trained, tmp_path):
    done = program("--mode=sample", f"--from_pretrained={trained[1]}", "--num_samples=3", f"--out={tmp_path}/ddim",
                   "--config.sample.solver=ddim", "--config.sample.steps=4")
    assert "step 4 of 4" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("source", [0, 1])
def test_fine_tuning_starts_from_the_weights(trained, tmp_path, source):
    """At a learning rate of 0 the weights do not change; the config is the source's, except for the data."""
    done = program("--mode=train", f"--init_from={trained[source]}", f"--workdir={tmp_path}/tuned",
                   "--config.data.name=digits", "--config.optimizer.learning_rate=1e-12", *SHORT)
    assert f"starting from the weights of {trained[source]}" in done.stdout
    before, after = (DiffusionPipeline.from_pretrained(path) for path in (trained[0], tmp_path / "tuned"))
    assert before.config.network == after.config.network
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), before.params, after.params)
    assert "is finished" in program("--mode=train", f"--init_from={trained[source]}", f"--workdir={tmp_path}/tuned",
                                    "--config.data.name=digits", "--config.optimizer.learning_rate=1e-12",
                                    *SHORT).stdout


@pytest.mark.slow
def test_fine_tuning_with_another_prediction_says_so(trained, tmp_path):
    done = run(f"--init_from={trained[1]}", f"--workdir={tmp_path}/tuned", "--config.prediction=eps",
               "--config.loss.uncertainty=True", "--config.train.duration=10 steps",
               "--config.train.sample_every=10 steps")
    assert f"note: prediction differs from {trained[1]}" in done.stdout
    assert len(rows(tmp_path / "tuned")) == 1


@pytest.mark.parametrize("flags, message", [
    (["--from_pretrained=SOURCE"], "--from_pretrained is not for --mode=train, but for sample"),
    (["--mode=sample", "--init_from=SOURCE"], "--init_from is not for --mode=sample, but for train"),
    (["--mode=sample", "--from_pretrained=no/such/place"],
     "There is no folder no/such/place, and it is no name on the hub"),
    (["--mode=sample", "--from_pretrained", "SOURCE", "--checkpoint", "3"], "it has no checkpoint 3, but one set"),
    (["--mode=sample", "--from_pretrained=SOURCE", "--checkpoint=3"], "it has no checkpoint 3, but one set of weights"),
    (["--mode=sample", "--from_pretrained=SOURCE", "--config.sample.solver=dimm"], "Did you mean 'ddim'"),
    (["--mode=sample", "--from_pretrained=SOURCE", "--config.network.heads=2"], "give: --config.network.heads=1"),
    (["--mode=sample", "--from_pretrained=SOURCE", "--config.prediction=x0"], "give: --config.prediction=v"),
    (["--init_from=SOURCE", *TINY, "--config.network.groups=2"],
     "Leave --config out, or give: --config.network.groups=4"),
])
def test_what_does_not_fit_is_one_message(exported, tmp_path, flags, message):
    flags = [flag.replace("SOURCE", str(exported)) for flag in flags]
    done = program(*flags, f"--workdir={tmp_path}/new", check=False)
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and os.listdir(tmp_path) == []


def test_convert_refuses_in_one_message(exported, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    for source, destination, message in [(exported, tmp_path / "there", "is there already"),
                                         (tmp_path / "none", tmp_path / "new", "There is no folder")]:
        done = execute([sys.executable, "-m", "diffusion.interop.convert", str(source), str(destination)], check=False)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["there"] and os.listdir(tmp_path / "there") == ["file"]


@pytest.mark.slow
def test_a_run_from_before_a_key_was_there_goes_on(trained, tmp_path):
    """The run's config.json lacks the key, which then takes its default."""
    flags = [f"--workdir={tmp_path}/run", "--config.train.duration=10 steps", "--config.train.sample_every=10 steps"]
    run(*flags)
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    del config["network"]["scale_shift"], config["learned_range"]
    file.write_text(json.dumps(config))
    assert "is finished" in run(*flags).stdout
    assert DiffusionPipeline.from_pretrained(tmp_path / "run").config.network.scale_shift is False
    done = run(*flags, "--config.network.scale_shift=True", check=False)
    assert done.returncode == 1 and "network.scale_shift: false -> true" in done.stderr
