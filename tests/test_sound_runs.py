"""Sound through the programs: spoken digits' config at a tiny size, on made-up recordings."""
import json
import wave

import numpy as np
import program
import pytest

from diffusion.io import sound

pytest.importorskip("soundfile", reason="needs the extra audio")
pytestmark = pytest.mark.slow
LENGTH = 384
SMALL = [f"--config.data.length={LENGTH}", "--config.data.frequencies=16", "--config.data.hop=24",
         "--config.network.attention_resolutions=()", "--config.sample.steps=3", "--config.likelihood.steps=3",
         "--config.sample.batch_size=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tones whose height is the digit, by two speakers."""
    root = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for take in range(8):
        for digit in range(10):
            time = np.arange(rng.integers(300, 450)) / 8000
            x = 0.5 * np.sin(2 * np.pi * (400 + 300 * digit) * time + rng.uniform(0, 6)) * np.hanning(len(time))
            name = f"{digit}_{('ann', 'bob')[take % 2]}_{take}.wav"
            (root / name).write_bytes(sound.wav(sound.to_pcm(x[:, None]), 8000))
    return root


@pytest.fixture(scope="module")
def again(folder, tmp_path_factory):
    """Runs a program on a trained run."""
    workdir = tmp_path_factory.mktemp("runs") / "tones"

    def again(*words):
        return program.run(f"--workdir={workdir}", f"--config.data.dir={folder}", *SMALL, *words, config="fsdd")
    again.workdir = workdir
    again()
    return again


def test_it_trains_and_samples_playable_files(again, tmp_path):
    losses = [row["loss"] for row in program.rows(again.workdir)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    again("--mode=sample", "--num_samples=5", "--classes=3,7", f"--out={tmp_path}/out")
    with wave.open(str(tmp_path / "out" / "000004.wav")) as file:
        assert (file.getnframes(), file.getframerate(), file.getsampwidth()) == (LENGTH, 8000, 2)
    assert "class 7" in (tmp_path / "out" / "index.html").read_text()
    assert np.load(tmp_path / "out" / "samples.npz")["arr_0"].shape == (5, LENGTH, 1)


def test_a_gap_is_filled_and_the_rest_stays(again, folder, tmp_path):
    recording = folder / "4_ann_6.wav"
    again("--mode=sample", "--task=inpaint", f"--image={recording}", "--label=4", "--gap=0.012,0.018",
          "--num_samples=2", f"--out={tmp_path}/gap")
    with wave.open(str(recording)) as file:
        given = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    spare = max(0, len(given) - LENGTH) // 2
    given = np.pad(given[spare:spare + LENGTH], (0, max(0, LENGTH - len(given))))
    made = np.load(tmp_path / "gap" / "samples.npz")["arr_0"][..., 0].astype(int)
    changed = np.flatnonzero((np.abs(made - given) > 2).any(axis=0)) / 8000
    # All samples that share a frame of 32 with the gap may change.
    assert 0.012 - 0.004 <= changed.min() < 0.014 and 0.016 < changed.max() <= 0.018 + 0.004
    assert (made[0] != made[1]).any() and (tmp_path / "gap" / "task.png").exists()


def test_it_is_varied_compared_evaluated_and_looked_at(again, tmp_path):
    for task in ("vary", "interpolate"):
        again("--mode=sample", f"--task={task}", "--num_samples=3", f"--out={tmp_path}/{task}",
              "--config.sample.guidance.scale=1")
        assert (tmp_path / task / "000002.wav").exists()
    again("--mode=compare", "--solvers=ddim,heun", "--steps=2,3", "--num_samples=8", f"--out={tmp_path}/c")
    assert all(cell["distance"] > 0 for cell in json.loads((tmp_path / "c" / "compare.json").read_text())["cells"])
    found = again("--mode=data", f"--out={tmp_path}/d").stdout
    assert "30 clips in train" in found and "10 classes: 0 3, 1 3" in found


def test_its_likelihood_is_a_density(again, tmp_path):
    again("--mode=likelihood", "--num_examples=4", "--config.data.split=test", f"--out={tmp_path}/nats.json")
    assert np.isfinite(json.loads((tmp_path / "nats.json").read_text())["nats"])


def test_a_resumed_run_is_the_same(again):
    assert "resume is exact" in again("--mode=verify_resume", "--verify_steps=2").stdout
