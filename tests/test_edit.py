"""The tasks as programs: pictures to pictures, with a tiny model of random weights."""
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from diffusion import DiffusionPipeline, build, pretrained
from diffusion import config as config_lib
from diffusion.errors import ConfigError, DataError
from diffusion.programs.edit import TASKS, Settings, edit

sys.path.insert(0, str(pathlib.Path(__file__).parent / "networks"))
from random_params import random_params  # noqa: E402

TINY = {"data.size": 8, "data.channels": 3, "network.channels": 8, "network.multipliers": (1,), "network.blocks": 1,
        "network.attention_resolutions": (), "network.groups": 4, "process.steps": 20}
ARRAY = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


def make_model(folder, **changes):
    config = config_lib.override(config_lib.base(), TINY | {key.replace("__", "."): v for key, v in changes.items()})
    shape = (config.data.size, config.data.size, config.data.channels)
    DiffusionPipeline(config, {"params": random_params(build.network(config.network, shape[0], shape[-1]), shape, 0)}
                      ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "colour")


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "grey", data__channels=1)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    for i, image in enumerate(ARRAY):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def run(source, out, num_samples=5, seed=0, settings=None, **changes):
    """Runs a task, and returns the written images, uint8 [N, H, W, C]."""
    config = config_lib.override(pretrained.load(source).config, {
        "sample.solver": "ddim", "sample.eta": 1.0, "sample.steps": 10, "sample.batch_size": 4,
        "sample.constant_stride": False, **(settings or {})})
    edit(config, pathlib.Path("none"), str(source), Settings(**changes), num_samples=num_samples, seed=seed, out=out,
         checkpoint=None)
    return np.load(out / "samples.npz")["arr_0"]


@pytest.mark.parametrize("task", TASKS)
def test_each_task_draws_and_shows(source, given, tmp_path, task):
    x = run(source, tmp_path / "out", task=task, image=given)
    assert x.shape == (5, 8, 8, 3) and (tmp_path / "out" / "000004.png").exists()
    assert Image.open(tmp_path / "out" / "task.png").size[0] > 6 * 8
    known, close = ARRAY[np.arange(5) % 3].astype(int), dict(rtol=0, atol=1)
    if task == "inpaint":
        np.testing.assert_array_equal(x[:, :2], known[:, :2])
        assert np.abs(x[:, 2:6, 2:6] - known[:, 2:6, 2:6]).mean() > 5
    elif task == "colorise":  # where nothing was cut at black or white
        inside = np.all((x > 0) & (x < 255), axis=-1)
        assert inside.sum() > 20
        np.testing.assert_allclose(x.mean(-1)[inside], known.mean(-1)[inside], **close)
    elif task == "reconstruct":
        assert np.abs(x - known).mean() < 0.5 * np.abs(x - known[[1, 2, 0, 1, 2]]).mean()


def test_upscaling_keeps_the_means(source, tmp_path):
    """For a picture far from black and white, with a network whose random guess stays near it."""
    np.savez(tmp_path / "given.npz", np.full((1, 8, 8, 3), 120, np.uint8))
    x = run(source, tmp_path / "out", task="upscale", image=tmp_path / "given.npz", factor=4, num_samples=2,
            settings={"sample.clip_range": 0.2}).astype(float)
    inside = np.all((x > 0) & (x < 255), axis=(1, 2, 3))
    means = x.reshape(2, 2, 4, 2, 4, 3).mean((2, 4))
    assert inside.any()
    np.testing.assert_allclose(means[inside], 120, atol=1)


@pytest.mark.slow
def test_an_image_is_the_same_in_any_batch_and_of_its_seed(source, given, tmp_path):
    a, b, c, d = (run(source, tmp_path / str(i), task="inpaint", image=given, repeats=2, jump=2, num_samples=n,
                      seed=seed, settings={"sample.batch_size": batch})
                  for i, (n, batch, seed) in enumerate([(5, 4, 0), (3, 3, 0), (5, 4, 1), (5, 4, 0)]))
    np.testing.assert_allclose(a[:3].astype(int), b.astype(int), atol=1)
    np.testing.assert_array_equal(a, d)
    assert np.abs(a.astype(int) - c).max() > 10


def test_the_strength_decides_how_far_it_goes(source, given, tmp_path):
    known = ARRAY[np.arange(5) % 3].astype(int)
    far = [np.abs(run(source, tmp_path / str(s), task="vary", image=given, strength=s) - known).mean()
           for s in (0.1, 1.0)]
    assert far[0] < far[1]


@pytest.mark.slow
def test_the_ends_of_an_interpolation_are_the_images(source, given, tmp_path):
    x = run(source, tmp_path / "out", task="interpolate", image=given, iterations=8,
            settings={"sample.steps": 20}).astype(int)
    both = run(source, tmp_path / "both", task="reconstruct", image=given, iterations=8,
               settings={"sample.steps": 20}).astype(int)
    np.testing.assert_allclose(x[[0, 4]], both[[0, 1]], atol=2)


def test_a_mask_says_what_is_drawn_anew(source, given, tmp_path):
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 5:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    x = run(source, tmp_path / "out", task="inpaint", image=given, mask=tmp_path / "mask.png", num_samples=3)
    np.testing.assert_array_equal(x[:, :, :5], ARRAY[:, :, :5])
    assert np.any(x[:, :, 5:] != ARRAY[:, :, 5:])


def test_without_pictures_those_of_the_data_are_taken(grey, tmp_path):
    x = run(grey, tmp_path / "out", task="inpaint", num_samples=4, settings={"data.name": "digits"})
    found = build.training_images(config_lib.override(config_lib.base(), {
        "data.name": "digits", "data.size": 8, "data.channels": 1}))
    np.testing.assert_array_equal(x[:, :2], np.stack([found[i]["image"] for i in range(4)])[:, :2])


@pytest.mark.parametrize("options, message", [
    (dict(task="paint"), "--task=paint is not known. It can be one of: inpaint"),
    (dict(task="upscale", factor=3), "--factor=3 must be above 1 and divide the model's height and width, 8 and 8"),
    (dict(task="vary", strength=0.0), r"--strength=0.0 is the share of the steps, in \(0, 1\]"),
    (dict(task="vary", strength=0.01), "--strength=0.01 of 10 steps is not one step"),
    (dict(task="vary", repeats=3), "--repeats=3 is for inpaint, colorise, upscale"),
    (dict(task="inpaint", repeats=0), "--repeats=0 and --jump must be 1 or more"),
    (dict(task="inpaint", repeats=2, jump=10), "--jump=10 must be below the number of steps, 10"),
    (dict(task="vary", reconstruction=2.0), "--reconstruction=2.0 is for inpaint, colorise, upscale"),
    (dict(task="vary", mask="mask.png"), "--mask=mask.png is for --task=inpaint"),
    (dict(task="reconstruct", iterations=0), "--iterations=0 must be 1 or more"),
    (dict(task="inpaint", label=1), "--label was given, but the model is unconditional"),
])
def test_wrong_settings(source, given, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        run(source, tmp_path / "out", image=given, **options)
    assert not (tmp_path / "out").exists()


def test_settings_that_the_model_cannot_have(source, grey, given, tmp_path):
    with pytest.raises(ConfigError, match="needs a model of colours, this one has 1"):
        run(grey, tmp_path / "out", task="colorise")
    with pytest.raises(ConfigError, match="constant_stride=False"):
        run(source, tmp_path / "out", task="inpaint", image=given, repeats=2, jump=1,
            settings={"sample.steps": 7, "sample.constant_stride": True})
    with pytest.raises(DataError, match="goes from one image to another"):
        run(source, tmp_path / "out", task="interpolate", image=given / "0.png")


def test_reconstruction_guides_what_is_missing_and_keeps_what_is_known(source, given, tmp_path):
    plain = run(source, tmp_path / "plain", task="inpaint", image=given)
    guided = run(source, tmp_path / "guided", task="inpaint", image=given, reconstruction=2.0)
    missing = np.zeros((8, 8), bool)
    missing[2:6, 2:6] = True
    np.testing.assert_array_equal(guided[:, ~missing], plain[:, ~missing])
    assert np.mean(guided[:, missing] != plain[:, missing]) > 0.3
