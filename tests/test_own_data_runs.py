"""One's own pictures through the programs, as docs/data.md describes."""
import json

import numpy as np
import program
import pytest
from PIL import Image

SMALL = ["--config.data.size=8,12", "--config.data.labels=folders", "--config.network.multipliers=(1,)",
         "--config.sample.steps=2"]


@pytest.mark.slow
def test_a_look_a_training_and_samples(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(20):
        folder = tmp_path / "PHOTOS" / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (20 + i, 40, 3), np.uint8))
        picture.save(folder / f"{i}.{('png', 'jpg')[i % 3 > 0]}")
    config = [f"--workdir={tmp_path}/run", f"--config.data.dir={tmp_path}/PHOTOS", *SMALL]
    seen = program.run(*config, "--mode=data", config="folder").stdout
    assert "20 images in train, which training sees as 8x12x3" in seen and "2 classes: cat 10, dog 10" in seen
    assert json.loads((tmp_path / "run_data" / "data.json").read_text())["sizes"]["20x40 PNG RGB"] == 1
    program.run(*config, config="folder")  # into an empty folder: the look is beside it
    assert json.loads((tmp_path / "run" / "config.json").read_text())["network"]["num_classes"] == 2
    program.run(*config, "--mode=sample", "--classes=1", "--num_samples=3", f"--out={tmp_path}/out", config="folder")
    assert np.load(tmp_path / "out" / "samples.npz")["arr_0"].shape == (3, 8, 12, 3)
