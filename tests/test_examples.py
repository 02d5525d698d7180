"""The examples run as they stand, and show what they say. examples/own_parts: test_own_parts.py."""
import json
import sys

import numpy as np
import program
import pytest
from PIL import Image

FOLDER = program.ROOT / "examples"
pytestmark = pytest.mark.slow


def run(code: str, out, **kwargs) -> dict:
    """Runs `code` in `out`, with the example's names made by run(NAME), and returns the dict `found` that it makes."""
    script = f"""
import json, os, runpy, sys
import jax
jax.config.update("jax_numpy_rank_promotion", "allow")  # as for users
os.environ["MPLBACKEND"] = "agg"
os.chdir({str(out)!r})
sys.path.insert(0, {str(program.ROOT)!r})
run = lambda name, as_program=False: runpy.run_path({str(FOLDER)!r} + "/" + name, run_name="__main__" if as_program
                                                    else name)
{code}
with open("found.json", "w") as file:
    json.dump(found, file)
"""
    (out / "script.py").write_text(script)
    program.execute([sys.executable, out / "script.py"], optimize=True, **kwargs)
    return json.loads((out / "found.json").read_text())


def test_points_in_the_plane_in_at_most_25_lines(tmp_path):
    assert len((FOLDER / "toy_2d.py").read_text().splitlines()) <= 25
    found = run("""
names = run("toy_2d.py", True)
found = names["x"].tolist()""", tmp_path)
    x = np.array(found)
    centers = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], 1)
    distance = np.sqrt(((x[:, None] - centers) ** 2).sum(-1))
    assert (distance.min(1) < 0.25).mean() > 0.9
    assert np.bincount(distance.argmin(1), minlength=8).min() > 0.06 * len(x)
    assert np.asarray(Image.open(tmp_path / "toy_2d.png")).std() > 10


@pytest.mark.slow
def test_an_own_network(tmp_path):
    found = run("""found = run("own_network.py")["main"](1500).tolist()""", tmp_path)
    assert np.median(found) < 0.03


@pytest.mark.slow
def test_edm_in_60_lines_has_the_losses_and_samples_of_its_config_to_the_last_bit(tmp_path):
    assert len((FOLDER / "edm_in_60_lines.py").read_text().splitlines()) <= 60
    found = run("""
losses, x = run("edm_in_60_lines.py")["main"](20)
found = {"losses": losses, "x": x.tolist()}""", tmp_path)
    workdir = tmp_path / "run"
    flags = [f"--config.{key}={value}" for key, value in {
        "train.duration": "20 steps", "optimizer.warmup": "10 steps", "train.log_every": "1 steps",
        "train.sample_every": "20 steps", "train.checkpoint_every": "20 steps"}.items()]
    main = [sys.executable, "-m", "diffusion.main", f"--config={program.ROOT}/configs/digits_edm.py"]
    program.execute([*main, f"--workdir={workdir}", *flags], optimize=True)
    assert [row["loss"] for row in program.rows(workdir)] == found["losses"]
    program.execute([*main, f"--workdir={workdir}", *flags, "--mode=sample", "--num_samples=64",
                     f"--out={tmp_path}/drawn"], optimize=True)
    x = np.rint(127.5 * (np.clip(np.array(found["x"], np.float32), -1, 1) + 1)).astype(np.uint8)
    np.testing.assert_array_equal(np.load(tmp_path / "drawn" / "samples.npz")["arr_0"], x)


@pytest.mark.slow
def test_two_networks_reach_their_fixed_point(tmp_path):
    shares, spread = run("""
x, shares, spread = run("two_networks.py")["main"](8000)
found = [shares.tolist(), float(spread)]""", tmp_path)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.05)
    assert spread == pytest.approx(0.35, rel=0.2)
