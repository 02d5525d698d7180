"""The program as a user runs it: train, resume, sample, and its error messages."""
import json
import shutil
import signal
import sys
import time

import numpy as np
import program
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One finished run: its folder and its output."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    return workdir, program.run(f"--workdir={workdir}", "--profile")


def test_a_run_folder_explains_itself(trained):
    workdir, done = trained
    rows = program.rows(workdir)
    assert [r["step"] for r in rows] == [10, 20, 30] and rows[-1]["images"] == 480
    assert rows[-1]["loss"] < rows[0]["loss"] and len(rows[0]["loss_by_log_snr"]) == 10
    assert json.loads((workdir / "config.json").read_text())["network"]["channels"] == 8
    environment = json.loads((workdir / "environment.json").read_text())
    assert "jax" in json.dumps(environment) and "git" in json.dumps(environment)
    for name in ("README.md", "loss.png", "loss_by_noise.png", "effective_weight.png", "samples/step_00000030.png"):
        assert (workdir / name).stat().st_size > 100, name
    curve = json.loads((workdir / "effective_weight.json").read_text())
    assert len(curve["log_snr"]) == len(curve["effective_weight"]) == 20  # the times of the chain
    assert list((workdir / "tensorboard").glob("events*"))
    assert "first step after" in done.stdout + done.stderr
    row = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["flops_per_second"] > 1e6 and 0 <= row["data_wait"] <= 1
    assert f"at {row['flops_per_second'] / 1e9:,.4g} GFLOP/s" in done.stdout
    assert list((workdir / "profile").rglob("*.xplane.pb")) and "a trace of 10 dispatches is in" in done.stderr
    assert "--mode=sample" in done.stdout and "loss.png" in done.stdout  # where things are, and what to try next


def test_a_finished_run_says_so_and_changes_nothing(trained):
    workdir, _ = trained
    before = program.rows(workdir)
    assert "finished" in program.run(f"--workdir={workdir}").stdout
    assert program.rows(workdir) == before


@pytest.mark.slow
def test_what_a_kill_after_the_last_checkpoint_left_out_is_drawn(trained, tmp_path):
    workdir, picture = tmp_path / "killed", "samples/step_00000030.png"
    shutil.copytree(trained[0], workdir)
    for name in (picture, "effective_weight.json", "loss.png"):
        (workdir / name).unlink()
    assert "finished" in program.run(f"--workdir={workdir}").stdout
    assert (workdir / picture).read_bytes() == (trained[0] / picture).read_bytes()
    assert (workdir / "loss.png").exists() and (workdir / "effective_weight.json").exists()


@pytest.mark.slow
def test_a_longer_duration_goes_on(trained, tmp_path):
    workdir = tmp_path / "longer"
    shutil.copytree(trained[0], workdir)
    program.run(f"--workdir={workdir}", "--config.train.duration=40 steps")
    assert [r["step"] for r in program.rows(workdir)] == [10, 20, 30, 40]


@pytest.mark.slow
def test_a_run_knows_its_config_and_goes_on_at_another_rate(trained, tmp_path):
    workdir = tmp_path / "rate"
    shutil.copytree(trained[0], workdir)
    alone = [sys.executable, "-m", "diffusion.main", f"--workdir={workdir}"]  # as the end of a run suggests
    done = program.execute([*alone, "--config.train.duration=40 steps", "--config.optimizer.decay=constant",
                            "--config.optimizer.learning_rate=1e-4"])
    assert "note: the learning rate after step 30 is 0.0001; it was to be 0 (" in done.stdout
    assert [row["learning_rate"] for row in program.rows(workdir)][-1] == pytest.approx(1e-4)
    program.execute([*alone, "--mode=sample", "--num_samples=2", f"--out={tmp_path}/out"])
    assert np.load(tmp_path / "out" / "samples.npz")["arr_0"].shape == (2, 8, 8, 1)


@pytest.mark.slow
def test_samples_depend_on_seed_and_index_alone(trained, tmp_path):
    workdir, _ = trained
    arrays = {}
    for name, flags in {"a": [], "b": ["--config.sample.batch_size=4"], "c": ["--seed=1"]}.items():
        program.run(f"--workdir={workdir}", "--mode=sample", "--num_samples=10", f"--out={tmp_path / name}", *flags)
        arrays[name] = np.load(tmp_path / name / "samples.npz")["arr_0"]
    assert arrays["a"].shape == (10, 8, 8, 1) and arrays["a"].dtype == np.uint8
    # Another batch size may round differently in the last bit of a float, so by one grey level at most.
    assert np.abs(arrays["a"].astype(int) - arrays["b"]).max() <= 1
    assert np.abs(arrays["a"].astype(int) - arrays["c"]).max() > 10
    assert Image.open(tmp_path / "a" / "grid.png").size[0] > 64
    singles = sorted(p.name for p in (tmp_path / "a").glob("0*.png"))
    assert singles == [f"{i:06d}.png" for i in range(10)]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / singles[3])), arrays["a"][3, ..., 0])


def test_sampling_a_named_checkpoint_and_one_that_is_not_there(trained, tmp_path):
    workdir, _ = trained
    program.run(f"--workdir={workdir}", "--mode=sample", "--num_samples=1", "--checkpoint=10",
                f"--out={tmp_path / 's'}")
    done = program.run(f"--workdir={workdir}", "--mode=sample", "--checkpoint=15", check=False)
    assert done.returncode == 1 and "15" in done.stderr and "10, 20, 30" in done.stderr


@pytest.mark.slow
def test_another_row_of_choices(tmp_path):
    """Each choice has its own test; this program combines them."""
    flags = [f"--workdir={tmp_path}/run", "--config.network.dtype=bfloat16", "--config.network.remat=light",
             "--config.ema.dtype=bfloat16", "--config.optimizer.mu_dtype=bfloat16", "--config.prediction=x0",
             "--config.loss.weighting=min_snr", "--config.loss.uncertainty=True", "--config.process.name=linear",
             "--config.sample.solver=ddim",
             "--config.sample.eta=0.5", "--config.sample.spacing=trailing", "--config.train.accumulate=2",
             "--config.sample.clip=False", "--config.optimizer.decay=constant",
             "--config.averages=[\"long: power, sigma_rel=0.25\", \"before: copy, every=20 steps\"]"]
    program.run(*flags)
    rows = program.rows(tmp_path / "run")
    assert rows[-1]["loss"] < rows[0]["loss"]
    drawn = []
    for weights in ("ema", "long", "before", "raw"):
        program.run(*flags, "--mode=sample", "--num_samples=2", f"--weights={weights}", f"--out={tmp_path}/{weights}")
        drawn.append(np.load(tmp_path / weights / "samples.npz")["arr_0"])
        assert drawn[-1].std() > 0
    assert len({x.tobytes() for x in drawn}) == 4
    done = program.run(*flags, "--mode=sample", "--weights=lon", check=False)
    assert done.returncode == 1 and "It keeps: raw, ema, long, before" in done.stderr


@pytest.mark.slow
def test_kill_9_and_rerun_equals_an_uninterrupted_run_bit_for_bit(tmp_path):
    # Rows, checkpoints and the kill fall on different steps, so that a row's window spans the resume.
    flags = ["--config.train.duration=80 steps", "--config.train.log_every=7 steps", "--config.data.on_device=False",
             "--config.train.checkpoint_every=10 steps", "--config.network.dropout=0.1", "--config.data.flip=True",
             "--config.network.num_classes=10", "--config.averages=long: power, sigma_rel=0.25"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    program.run(f"--workdir={whole}", *flags)
    process = program.start(f"--workdir={killed}", *flags)
    deadline = time.time() + 200
    while not any((killed / "checkpoints").glob("[2-9]0*")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    seen = len(program.rows(killed))
    assert seen < len(program.rows(whole))
    resumed = program.run(f"--workdir={killed}", *flags)
    assert "resuming" in resumed.stdout
    assert program.rows(killed) == program.rows(whole)
    picture = "samples/step_00000080.png"
    assert (killed / picture).read_bytes() == (whole / picture).read_bytes()


def says(flags, *words, **kwargs):
    done = program.run(*flags, check=False, **kwargs)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("error:") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    return done


def test_mistakes_in_flags(tmp_path):
    says(["--config.train.batchsize=8"], "train.batchsize", "train.batch_size")
    says(["--config.train.batch_size=many"], "train.batch_size", "whole number")
    says(["--config=configs/nothing.py"], "configs/nothing.py")
    says(["--confg=x"], "confg", "config")
    says(["train"], "'train'", "--help")
    says(["--mode=dream"], "mode", "train|sample|evaluate")
    says([f"--workdir={tmp_path}/x", "--config.network.name=transformer"], "network.name", "unet", "dit")
    says(["--num_processes=2"], "--coordinator")
    assert not (tmp_path / "x").exists()  # nothing is written before the config is known to be good
    broken = tmp_path / "broken.py"
    broken.write_text("from diffusion import config\ndef get_config():\n    c = config.base()\n"
                      "    c.train.durtion = 3\n")
    says([f"--config={broken}"], "durtion", "duration")


def test_a_work_folder_of_another_config(trained):
    says([f"--workdir={trained[0]}", "--config.network.dropout=0.5"], "network.dropout", "0.5", "--workdir")
    assert (trained[0] / "checkpoints").is_dir()


def test_sampling_without_a_run(tmp_path):
    says([f"--workdir={tmp_path}/none", "--mode=sample"], "none", "rain")
    assert not (tmp_path / "none").exists()


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_goes_on(trained, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(trained[0], workdir)
    newest = workdir / "checkpoints" / "30"
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    says([f"--workdir={workdir}", "--mode=sample"], str(newest), "truncated", "10, 20")
    done = program.run(f"--workdir={workdir}")
    assert "30.damaged" in done.stdout and "at step 20" in done.stdout
    assert program.rows(workdir) == program.rows(trained[0])
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["10", "20", "30", "30.damaged"]


@pytest.mark.slow
def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    done = says([f"--workdir={tmp_path}", "--config.optimizer.learning_rate=1e20", "--config.optimizer.clip_norm=0.0",
                 "--config.train.checkpoint_every=1 step"], "step", "log-SNR", "learning_rate")
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").glob("[0-9]*"))
    stopped = int(done.stderr.split("stopped at step ")[1].split(":")[0])
    assert kept and kept[-1] == stopped - 1 and f"checkpoint: {kept[-1]}" in done.stderr


LONG = ["--config.train.duration=100k steps", "--config.train.checkpoint_every=100k steps",
        "--config.train.sample_every=100k steps"]


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_exit_code_says_which(tmp_path, number, code):
    process = program.start(f"--workdir={tmp_path}/run", *LONG)
    program.until("first step after", process.stderr)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    assert process.returncode == code, err
    stopped = int(err.split("stopped at step ")[1].split(" of")[0].replace(",", ""))
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [str(stopped)]
    resumed = program.run(f"--workdir={tmp_path}/run", *LONG, f"--config.train.duration={stopped + 10} steps")
    assert f"at step {stopped}" in resumed.stdout.replace(",", "") and "trained" in resumed.stdout


def test_a_signal_before_the_first_step_leaves_at_once_and_a_second_program_is_refused(tmp_path):
    process = program.start(f"--workdir={tmp_path}/run", *LONG, "--config.train.accumulate=16")  # long to compile
    while not (tmp_path / "run" / "config.json").exists():
        time.sleep(0.05)
        assert process.poll() is None, process.stderr.read()
    says([f"--workdir={tmp_path}/run", *LONG, "--config.train.accumulate=16"], "Another program trains in",
         f"process {process.pid}")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 75 and ("the last checkpoint is kept" in err or "stopped at step" in err)


@pytest.mark.slow
def test_retention_keeps_the_newest_some_for_good_and_the_best(tmp_path):
    program.run(f"--workdir={tmp_path}", "--config.train.duration=60 steps", "--config.train.keep_checkpoints=1",
                "--config.train.keep_every=320 images", "--config.train.keep_best=1")
    loss = {r["step"]: r["loss"] for r in program.rows(tmp_path)}
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert set(kept) == {20, 40, 60, min(loss, key=loss.get)}


@pytest.mark.slow
def test_resume_is_verified(tmp_path):
    done = program.run(f"--workdir={tmp_path}/run", "--mode=verify_resume", "--verify_steps=5",
                       "--config.network.dropout=0.1", "--config.data.flip=True")
    assert "resume is exact" in done.stdout and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_batch_size_goes_on_where_the_images_are(trained, tmp_path):
    workdir = tmp_path / "batch"
    shutil.copytree(trained[0], workdir)
    program.run(f"--workdir={workdir}", "--config.train.duration=800 images", "--config.train.batch_size=32",
                "--config.train.log_every=5 steps")
    assert [(r["step"], r["images"]) for r in program.rows(workdir)] == [
        (10, 160), (20, 320), (30, 480), (35, 640), (40, 800)]


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_if_asked_until_that_is_hopeless(tmp_path):
    done = says([f"--workdir={tmp_path}", "--config.optimizer.learning_rate=1e20", "--config.optimizer.clip_norm=0.0",
                 "--config.train.nonfinite=skip"], "the 10th in a row", "examples of the data", "log-SNR")
    assert done.stderr.count("is skipped: the loss is") == 9


def test_likelihood_of_held_out_images(trained):
    workdir, _ = trained
    out = workdir / "bits.json"
    flags = (f"--workdir={workdir}", "--mode=likelihood", "--num_examples=20", "--config.data.split=test",
             "--config.likelihood.steps=20", "--config.likelihood.batch_size=8", f"--out={out}")
    done = program.run(*flags)
    assert "bits/dim over 20 images of test" in done.stdout
    found = json.loads(out.read_text())
    assert found["examples"] == 20 and 0 < found["bits_per_dim"] < 60 and found["standard_error"] > 0
    total = found["terms"]["prior"]["mean"] + sum(found["terms"]["vlb"]["mean"])
    assert abs(total - found["bits_per_dim"]) < 1e-3 * total  # a sum in float32, and one of means
    assert len(found["rate"]) == len(found["distortion"]) == 21 and found["distortion"][-1] == 0
    assert found["rate"][-1] == pytest.approx(total) and Image.open(workdir / "bits.png").size[0] > 1000


@pytest.mark.slow
def test_samplers_are_compared_from_the_same_noise(trained, tmp_path):
    out = tmp_path / "compare"
    done = program.run(f"--workdir={trained[0]}", "--mode=compare", "--solvers=ddim,unipc", "--steps=2,20",
                       "--num_samples=8", f"--out={out}")
    cells = json.loads((out / "compare.json").read_text())["cells"]
    assert [(c["solver"], c["steps"], c["evaluations"]) for c in cells] == [
        ("ddim", 2, 2), ("ddim", 20, 20), ("unipc", 2, 2), ("unipc", 20, 20)]
    assert cells[1]["error"] == 0 < cells[3]["error"] < cells[2]["error"]  # the reference is ddim's own 20 steps
    assert all(c["distance"] > 0 for c in cells) and "NFE" in done.stdout
    assert Image.open(out / "quality.png").size[0] > 1000 and (out / "unipc_2_steps.png").exists()


@pytest.mark.slow
def test_a_guide_is_named_by_its_run(trained, tmp_path):
    """The guide is the run's own early checkpoint, a worse model."""
    flags = [f"--workdir={trained[0]}", "--mode=sample", "--num_samples=4", "--config.sample.solver=ddim"]
    guide = ["--config.sample.guidance.name=autoguidance", f"--config.sample.guidance.guide={trained[0]}"]
    guided = [f"{guide[1]}@10#raw", "--config.sample.guidance.scale=3.0"]
    images = {}
    for name, more in {"plain": [], "one": [*guide, "--config.sample.guidance.guide_checkpoint=10",
                                            "--config.sample.guidance.scale=1.0"],
                       "two": [guide[0], *guided]}.items():
        program.run(*flags, *more, f"--out={tmp_path / name}")
        images[name] = np.load(tmp_path / name / "samples.npz")["arr_0"].astype(int)
    assert np.abs(images["plain"] - images["one"]).max() <= 1 < np.abs(images["plain"] - images["two"]).max()


def test_a_resume_that_is_not_exact_is_said(tmp_path, monkeypatch, capsys):
    """With a training whose steps depend on how often they have run before."""
    from types import SimpleNamespace

    import jax
    import jax.numpy as jnp

    from diffusion import build
    from diffusion import config as config_lib
    from diffusion.errors import CheckpointError
    from diffusion.programs import verify
    from diffusion.train import loop
    made = []

    def steps(*, plan, state, clock, save, write_row, **_):
        yield from ()
        while clock.step < plan.total:
            clock.step += 1
            made.append(clock.step)
            state = {"w": state["w"] + (len(made) if broken else 1)}
            write_row({"step": clock.step})
        save(clock.step, state, clock)
        return state

    data = SimpleNamespace(get_state=lambda: {"next_example": 0}, set_state=lambda state: None)
    start = {"w": jnp.zeros(3)}
    parts = SimpleNamespace(
        plan=loop.Durations(total=9, log_every=1, sample_every=1, checkpoint_every=1, batch_size=1), data=data,
        dataset=None,
        abstract_state=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), start),
        create_state=lambda: start, program=None, examples_of=None)
    monkeypatch.setattr(build, "model", lambda config, frozen: SimpleNamespace(mesh=None, frozen=frozen))
    monkeypatch.setattr(build, "training", lambda config, model: parts)
    monkeypatch.setattr(loop, "training_steps", steps)
    for broken in (False, True):
        if broken:
            with pytest.raises(CheckpointError, match="Steps 3 to 4, repeated from the checkpoint of step 2.*: w"):
                verify.verify_resume(config_lib.base(), tmp_path / "run", 2)
        else:
            verify.verify_resume(config_lib.base(), tmp_path / "run", 2)
            assert "resume is exact" in capsys.readouterr().out


def test_the_error_of_a_sampler_is_its_root_mean_square_distance(tmp_path, monkeypatch):
    """For images 1/2 above and below those of the reference, with the same mean; config.sample.batch_size images are
    drawn at a time, whereas once all were drawn together."""
    from types import SimpleNamespace

    from diffusion import config as config_lib
    from diffusion import pretrained
    from diffusion.core.continuous import VP
    from diffusion.generate import Samples
    from diffusion.io import solver_plots
    from diffusion.kinds.image import image
    from diffusion.parallel.sharding import make_mesh
    from diffusion.programs import compare

    def build_cell(config, model, solver, counts):
        images = np.zeros((4, 8, 8, 1))
        images[::2], images[1::2] = (0.0, 0.0) if solver == "ddim" else (0.5, -0.5)
        grids = [lambda params, count=count: np.zeros((count, 2)) for count in counts]

        def draw(params, grid, seed, indices, chain_inputs, **_):
            sizes.append(len(indices))
            seen.add((config.sample.guidance.name, *chain_inputs.values()))
            return Samples(images[indices], 2)
        return draw, grids

    sizes, seen = [], set()

    model = SimpleNamespace(process=VP(), mesh=make_mesh(-1, 1), num_classes=0, null_label=None, conditions={},
                            spec=image(size=8, channels=1))
    monkeypatch.setattr(pretrained, "open_model", lambda *_, **__: (model, dict))
    monkeypatch.setattr(compare, "build_cell", build_cell)
    monkeypatch.setattr(compare, "data_statistics", lambda config, kind: None)
    monkeypatch.setattr(solver_plots, "plot_quality", lambda *_: None)
    config = config_lib.override(config_lib.base(), {"sample.batch_size": 2})
    compare.compare(config, tmp_path / "run", None, solvers=["ddim", "heun"], steps=[2], scales=[1.0], num_samples=3,
                    seed=0, out=tmp_path / "out", checkpoint=None)
    assert set(sizes) == {2} and seen == {("none",)}
    cells = json.loads((tmp_path / "out" / "compare.json").read_text())["cells"]
    assert [(cell["error"], cell["evaluations"]) for cell in cells] == [(0.0, 2), (0.5, 2)]
    seen.clear()  # other scales are drawn as they are, also those below 1
    (tmp_path / "guided").mkdir()  # a folder that is there, and empty
    compare.compare(config, tmp_path / "run", None, solvers=["heun"], steps=[2], scales=[0.5, 1.0], num_samples=3,
                    seed=0, out=tmp_path / "guided", checkpoint=None)
    assert seen == {("classifier_free", 0.5), ("classifier_free", 1.0)}


def test_an_out_that_cannot_be_is_said_before_the_work(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from diffusion import build, pretrained
    from diffusion import config as config_lib
    from diffusion.errors import ConfigError
    from diffusion.programs import compare, evaluate, evaluation, likelihood, plan

    for place, name in ((build, "training_images"), (plan, "measure"), (evaluation, "prepare"),
                        (compare, "build_cell")):
        monkeypatch.setattr(place, name, lambda *_, **__: pytest.fail("worked"))
    monkeypatch.setattr(build, "evaluator", lambda *_: None)
    monkeypatch.setattr(pretrained, "open_model", lambda *_, **__: (SimpleNamespace(), None))
    (tmp_path / "file").write_text("mine")
    config, below = config_lib.base(), tmp_path / "file" / "x"
    drawn = dict(solvers=["ddim"], steps=[2], scales=None, seed=0, checkpoint=None)
    for work in (lambda: likelihood.likelihood(config, tmp_path, "a", num_examples=2, seed=0, out=tmp_path, step=None),
                 lambda: plan.plan(config, "local", tmp_path),
                 lambda: evaluate.evaluate(config, tmp_path, "a", seed=0, seeds=1, step=None, all_checkpoints=False,
                                           out=tmp_path / "file"),
                 lambda: compare.compare(config, tmp_path, "a", **drawn, num_samples=2, out=below)):
        with pytest.raises(ConfigError, match="cannot be written"):
            work()
    with pytest.raises(ConfigError, match="--num_samples=1 is too few to compare"):
        compare.compare(config, tmp_path, "a", **drawn, num_samples=1, out=tmp_path / "new")
