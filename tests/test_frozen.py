"""Frozen parameter sets of a run: a teacher, stored once, read on resume and never trained."""
import json
import shutil

import numpy as np
import program
import pytest

from diffusion import build, pretrained
from diffusion import config as config_lib
from diffusion.errors import CheckpointError, ConfigError
from diffusion.io import frozen


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher's run, and a student's with a smaller network that follows it."""
    folder = tmp_path_factory.mktemp("runs")
    program.run(f"--workdir={folder}/teacher", "--config.network.channels=16")
    source = folder / "moved"
    (folder / "teacher").rename(source)
    said = program.run(f"--workdir={folder}/student", *flags(source)).stdout
    return folder, source, said


def flags(source):
    return ["--config.loss.name=distillation", f"--config.teacher.source={source}@20#raw"]


@pytest.mark.slow
def test_a_student_learns_and_resumes_without_its_teachers_run_bit_for_bit(runs, tmp_path):
    folder, source, _ = runs
    rows = program.rows(folder / "student")
    assert rows[-1]["loss"] < rows[0]["loss"]
    stored = folder / "student" / "frozen" / "teacher"
    assert json.loads((stored / "source.json").read_text())["source"] == f"{source}@20#raw"
    assert json.loads((stored / "config.json").read_text())["network"]["channels"] == 16
    arrays = (folder / "student" / "checkpoints" / "30" / "state" / "_METADATA").read_text()
    assert "averages" in arrays and "teacher" not in arrays

    shutil.copytree(folder / "student", tmp_path / "student")
    for step in ("20", "30"):
        shutil.rmtree(tmp_path / "student" / "checkpoints" / step)
    hidden = source.rename(folder / "hidden")
    try:
        again = program.run(f"--workdir={tmp_path}/student", *flags(source))
        assert "resuming" in again.stdout and program.rows(tmp_path / "student") == rows
        program.run(f"--workdir={tmp_path}/student", "--mode=sample", "--num_samples=2", f"--out={tmp_path}/out",
                    *flags(source))
        assert np.load(tmp_path / "out" / "samples.npz")["arr_0"].std() > 0
        program.run(f"--workdir={tmp_path}/student", "--mode=verify_resume", *flags(source))
    finally:
        hidden.rename(source)


@pytest.mark.slow
def test_frozen_parameters_that_are_missing_or_changed_stop_the_run(runs, tmp_path):
    folder, source, _ = runs
    more = [*flags(source), "--config.train.duration=40 steps"]
    for name, damage, words in (
            ("missing", lambda path: shutil.rmtree(path), "frozen/teacher of this run are missing"),
            ("config", lambda path: (path / "config.json").write_text("{}"), "have changed since the run began"),
            ("bit", lambda path: flip(max((path / "0").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)),
             "have changed since the run began")):
        shutil.copytree(folder / "student", tmp_path / name)
        damage(tmp_path / name / "frozen" / "teacher")
        done = program.run(f"--workdir={tmp_path}/{name}", *more, check=False)
        assert done.returncode == 1 and words in done.stderr and "Restore that folder" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_source_without_that_checkpoint_leaves_no_run_folder(runs, tmp_path):
    _, source, _ = runs
    wrong = ["--config.loss.name=distillation", f"--config.teacher.source={source}@7"]
    done = program.run(f"--workdir={tmp_path}/run", *wrong, check=False)
    assert done.returncode == 1 and "no checkpoint of step 7" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_a_source_that_does_not_exist_is_named_with_its_form():
    with pytest.raises(CheckpointError, match=r"'/nowhere@x', PATH\[@STEP\]\[#WEIGHTS\]: There is no folder"):
        pretrained.load_source("/nowhere@x")


def test_an_average_may_not_have_the_name_of_a_frozen_set():
    config = config_lib.override(config_lib.base(data="digits"), {"averages": ("teacher: copy, every=9 steps",)})
    build.check(config)
    config = config_lib.choose(config, loss="distillation")
    with pytest.raises(ConfigError, match="name 'teacher' is taken: ema, raw, online, teacher are"):
        build.check(config_lib.override(config, {"teacher.source": "somewhere"}))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_parameters_of_another_network_do_not_fit(tmp_path):
    import jax
    import jax.numpy as jnp
    abstract = lambda *shape: {"w": jax.ShapeDtypeStruct(  # noqa: E731
        shape, jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))}
    frozen.save(tmp_path / "teacher", {"w": jnp.arange(3.0)}, {"network": {}}, "there")
    np.testing.assert_array_equal(frozen.restore(tmp_path / "teacher", abstract(3))["w"], np.arange(3.0))
    with pytest.raises(CheckpointError, match=r"not fit this model: w is float32\[3\] there, but float32\[4\] here"):
        frozen.restore(tmp_path / "teacher", abstract(4))
    frozen.save(tmp_path / "teacher", {"w": jnp.arange(4.0)}, {}, "again")  # after a kill before the first checkpoint
    with pytest.raises(CheckpointError, match="missing"):
        frozen.restore(tmp_path / "other", abstract(3))


def taught(**changes):
    chosen = config_lib.base(loss="distillation", data="digits")
    return config_lib.override(chosen, {"data.size": 8, "data.channels": 1, "teacher.source": "there",
                                        "network.attention_resolutions": ()} | changes)


@pytest.mark.parametrize(("changes", "words"), [
    ({"data.size": 16}, r"data of the shape \[16, 16, 1\] \(image\), but this one's is \[8, 8, 1\]"),
    ({"process.beta_end": 0.01}, "has another process"),
    ({"network.num_classes": 10}, "takes the conditions label, and this model none")])
def test_a_teacher_of_other_data_process_or_conditions_is_refused(changes, words):
    with pytest.raises(ConfigError, match=f"teacher.source = 'there'.*{words}"):
        build.model(taught(), frozen={"teacher": taught(**changes)})


@pytest.mark.parametrize(("theirs", "words"), [
    ({"network.num_classes": 5, "network.label_dropout": 0.1}, "knows 5 classes, and this model 10"),
    ({"network.num_classes": 10}, "without a label for no class.*label_dropout = 0.2")])
def test_a_teacher_that_does_not_know_the_models_labels_is_refused(theirs, words):
    """Its embedding has no row for such a label, so that its prediction and the loss would be NaN."""
    ours = taught(**{"network.num_classes": 10, "network.label_dropout": 0.2})
    with pytest.raises(ConfigError, match=f"teacher.source = 'there'.*{words}"):
        build.model(ours, frozen={"teacher": taught(**theirs)})
    for fitting in (taught(), taught(**{"network.num_classes": 10, "network.label_dropout": 0.1})):
        build.model(ours, frozen={"teacher": fitting})


def test_a_loss_and_its_teacher_come_together(tmp_path):
    for config, words in ((config_lib.override(config_lib.base(), {"teacher.source": "there"}), "is not read by"),
                          (config_lib.base(loss="distillation"), "names no teacher")):
        with pytest.raises(ConfigError, match=f"teacher.source.*{words}"):
            build.check(config)
    build.check(taught())
    with pytest.raises(CheckpointError, match="nowhere"):
        pretrained.load_source(f"{tmp_path}/nowhere@3#raw")
