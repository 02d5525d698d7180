"""Clips through the programs: moving digits in the configs' networks, and files of one's own."""
import json

import moving_digits
import numpy as np
import program
import pytest
from PIL import Image

from configs import moving_mnist, moving_mnist_vdm
from diffusion import build
from diffusion import config as config_lib
from diffusion.data import pipeline, sources
from diffusion.errors import ConfigError, DataError
from diffusion.io import clips
from diffusion.library import arguments

SMALL = ["--config.data.size=16", "--config.data.frames=4", "--config.data.digit=10", "--config.data.clips=60",
         "--config.sample.steps=3", "--config.likelihood.steps=3"]


def flags(folder, name):
    """The config's network at a tiny size, on made-up digits."""
    size = ["--config.network.heads=1", "--config.network.head_channels=4", "--config.network.dtype=float32",
            "--config.data.workers=0"] * (name == "moving_mnist_vdm")
    return [f"--config.data.dir={folder}", *SMALL, *size]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return moving_digits.write_idx(tmp_path_factory.mktemp("digits") / "idx")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    program.run(f"--workdir={workdir}", *flags(folder, "moving_mnist"), config="moving_mnist")
    return workdir


@pytest.mark.slow
def test_it_trains_and_draws_a_contact_sheet(run):
    losses = [row["loss"] for row in program.rows(run)]
    assert len(losses) == 3 and np.isfinite(losses).all() and losses[-1] < losses[0]
    width, height = Image.open(run / "samples" / "step_00000030.png").size
    assert height > 1.8 * width  # 8 clips of 4 frames


@pytest.mark.slow
def test_it_samples_and_goes_on(run, folder, tmp_path):
    config = [*flags(folder, "moving_mnist"), f"--workdir={run}"]
    program.run(*config, "--mode=sample", "--num_samples=3", f"--out={tmp_path}/out", config="moving_mnist")
    x = np.load(tmp_path / "out" / "samples.npz")["arr_0"]
    assert x.shape == (3, 4, 16, 16, 1) and x.dtype == np.uint8
    with Image.open(tmp_path / "out" / "000002.gif") as animation:
        assert animation.n_frames == 4 and animation.size == (16, 16)
    assert "is finished" in program.run(*config, config="moving_mnist").stdout


@pytest.mark.slow
def test_it_has_a_likelihood_is_compared_and_looked_at(run, folder, tmp_path):
    config = [*flags(folder, "moving_mnist"), f"--workdir={run}"]
    program.run(*config, "--mode=likelihood", "--num_examples=4", f"--out={tmp_path}/bits.json", config="moving_mnist")
    assert np.isfinite(json.loads((tmp_path / "bits.json").read_text())["bits_per_dim"])
    program.run(*config, "--mode=compare", "--solvers=ddim,heun", "--steps=2,3", "--num_samples=8",
                f"--out={tmp_path}/c", config="moving_mnist")
    assert all(cell["distance"] > 0 for cell in json.loads((tmp_path / "c" / "compare.json").read_text())["cells"])
    done = program.run(*config, "--mode=data", f"--out={tmp_path}/d", config="moving_mnist")
    assert "60 clips in train, which training sees as 4x16x16x1" in done.stdout
    assert (tmp_path / "d" / "data.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_factorised_network_trains(folder, tmp_path):
    program.run(f"--workdir={tmp_path}/run", *flags(folder, "moving_mnist_vdm"), config="moving_mnist_vdm")
    losses = [row["loss"] for row in program.rows(tmp_path / "run")]
    assert len(losses) == 3 and np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.slow
def test_the_next_frames_are_predicted_from_the_data(folder, tmp_path):
    """Trained with frames before each clip, some hidden; samples follow the split's clips in order; guided, too."""
    config = [*flags(folder, "moving_mnist"), f"--workdir={tmp_path}/run", "--config.data.past=2",
              "--config.train.condition_dropout=('frames_mask: 0.2',)"]
    program.run(*config, config="moving_mnist")
    losses = [row["loss"] for row in program.rows(tmp_path / "run")]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    own = [f"--workdir={tmp_path}/run", "--mode=sample", "--num_samples=3"]
    for out, more in (("plain", []), ("guided", ["--config.sample.guidance.name=classifier_free"])):
        program.run(*config, *own, *more, f"--out={tmp_path}/{out}", config="moving_mnist")
        assert np.load(tmp_path / out / "samples.npz")["arr_0"].shape == (3, 4, 16, 16, 1)


@pytest.mark.slow
def test_missing_frames_are_filled_by_an_unconditional_model(run, folder, tmp_path):
    config = [*flags(folder, "moving_mnist"), f"--workdir={run}", "--mode=sample", "--task=inpaint", "--num_samples=3",
              "--gap=2,4", "--config.data.split=test"]
    found = []
    for weight in (0, 2):
        program.run(*config, f"--reconstruction={weight}", f"--out={tmp_path}/{weight}", config="moving_mnist")
        found.append(np.load(tmp_path / str(weight) / "samples.npz")["arr_0"])
    given = moving_mnist_source(folder)
    for x in found:
        np.testing.assert_array_equal(x[:, :2], np.stack([given[i]["video"] for i in range(3)])[:, :2])
    assert not np.array_equal(*found)


def moving_mnist_source(folder):
    return build.training_images(config_lib.override(moving_mnist.get_config(), {
        "data.dir": folder, "data.split": "test", "data.size": 16, "data.frames": 4, "data.digit": 10}))


@pytest.mark.parametrize("made", [moving_mnist, moving_mnist_vdm])
def test_configs_are_right(made, folder):
    config = made.get_config()
    build.check(config)
    found = build.training_images(config_lib.override(config, {"data.dir": folder}))
    assert found[0]["video"].shape == build.spec(config).shape and len(found) == 60_000


def test_moving_digits_may_be_held_on_the_device_and_files_may_not(folder, tmp_path):
    config = config_lib.override(moving_mnist.get_config(), {"data.dir": folder, "data.clips": 5})
    source = build.training_images(config)
    assert sources.drawn(source, build.spec(config)) == (source, None)
    assert pipeline.to_arrays(source)["video"].shape == (5, 8, 32, 32, 1)
    write_own(tmp_path / "clips")
    own = config_lib.override(config_lib.choose(config, data="folder"), {"data.dir": str(tmp_path / "clips")})
    with pytest.raises(ConfigError, match="data.crop = 'edm' of data.kind = 'video' draws it anew"):
        build.training(config_lib.override(own, {"data.on_device": True, "train.batch_size": 2}), build.model(own))


def write_own(folder):
    """Four clips of ten frames: two animations and two folders of pictures, in two classes."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / label / "frames").mkdir(parents=True)
        clip = rng.integers(0, 256, (10, 20, 30, 1), np.uint8)
        (folder / label / "clip.gif").write_bytes(clips.gif(clip))
        for i, frame in enumerate(clip):
            Image.fromarray(frame[..., 0]).save(folder / label / "frames" / f"{i}.png")


def test_files_of_ones_own(tmp_path):
    """Both forms, and batches at drawn places that a seed fixes."""
    write_own(tmp_path)
    config = config_lib.override(config_lib.choose(moving_mnist.get_config(), data="folder"), {
        "data.dir": str(tmp_path), "data.labels": "folders", "network.num_classes": 2, "train.batch_size": 4})
    source, kind = build.training_images(config), build.spec(config)
    assert len(source) == 4 and [int(source[i]["label"]) for i in range(4)] == [0, 0, 1, 1]
    np.testing.assert_array_equal(source[0]["video"], source[1]["video"])  # one clip in two forms
    raw, load = sources.drawn(source, kind)
    one, other = (next(pipeline.batches(raw, batch_size=4, seed=3, load=load)) for _ in range(2))
    assert one["video"].shape == (4, 8, 32, 32, 1)
    np.testing.assert_array_equal(one["video"], other["video"])
    later = pipeline.batches(raw, batch_size=4, seed=4, load=load)
    assert any(not np.array_equal(np.sort(one["video"], 0), np.sort(next(later)["video"], 0)) for _ in range(3))


def test_arrays_of_ones_own(tmp_path):
    """Samples that were written, and arrays by name; in the library, too."""
    x = np.random.default_rng(0).integers(0, 256, (5, 8, 32, 32, 1), np.uint8)
    np.savez(tmp_path / "named.npz", video=x, label=np.arange(5))
    np.savez(tmp_path / "samples.npz", x)
    for name in ("named", "samples"):
        config = config_lib.override(config_lib.choose(moving_mnist.get_config(), data="folder"), {
            "data.dir": str(tmp_path / f"{name}.npz")})
        source = build.training_images(config)
        np.testing.assert_array_equal(pipeline.to_arrays(source)["video"], x)
    model = build.model(config_lib.override(config, {"network.channels": 8, "network.groups": 4}))
    assert set(arguments.dataset(x, model)) == {"video"}
    with pytest.raises(DataError, match="have no mask"):
        arguments.dataset({"x0": x, "mask": np.ones((5, 8), bool)}, model)
