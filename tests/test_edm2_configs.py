"""The rows of EDM2's config against the authors' presets, and one trained for two steps."""
import math
import pathlib
import time

import jax
import numpy as np
import pytest

from configs import edm2
from diffusion import build, pretrained
from diffusion import config as config_lib
from diffusion.build import models
from diffusion.errors import ConfigError
from diffusion.programs.train import train
from diffusion.train import durations

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "edm2.npz")
PRESETS = {name.removeprefix("edm2-").replace("-", "_"): dict(zip(GOLDEN["preset_keys"], row.tolist())) for name, row in
           zip(GOLDEN["presets"].tolist(), GOLDEN["preset_values"])}


def test_every_row_has_the_authors_preset():
    assert set(PRESETS) == set(edm2.STEPS)
    for name, preset in PRESETS.items():
        c = edm2.get_config(name)
        steps, after = (durations.to_steps(text, key="", batch_size=c.train.batch_size, epoch_size=None)
                        for text in (c.train.duration, c.optimizer.decay_from))
        ours = {"duration": steps * c.train.batch_size, "batch": c.train.batch_size, "channels": c.network.channels,
                "lr": c.optimizer.learning_rate, "decay": after, "dropout": c.network.dropout,
                "P_mean": c.loss.density_mean, "P_std": c.loss.density_std}
        assert ours == pytest.approx(preset), name
        assert c.optimizer.epsilon * math.prod(build.spec(c).shape) == pytest.approx(1e-8)
        build.check(c)
        assert f"| {name} |" in edm2.__doc__


@pytest.mark.parametrize("name", ["img64_s", "img512_m"])
def test_tiny_has_the_structure_of_its_row(name):
    """Of one block a level in place of three: else the same layers."""
    full, tiny = (models.check_model(edm2.get_config(variant)).network for variant in (name, f"{name},tiny"))
    for key in ("multipliers", "attention_resolutions", "dropout", "clip_activations", "residual_balance"):
        assert getattr(full, key) == getattr(tiny, key)
    build.check(edm2.get_config(f"{name},tiny"))


@pytest.mark.slow
def test_one_row_trains_and_its_weights_keep_their_magnitude(tmp_path):
    """Of latents, for two steps of a high rate; sampled from an average that is made of its snapshots."""
    rng = np.random.default_rng(0)
    mean, deviation = edm2.get_config("img512_xs").data.mean, edm2.get_config("img512_xs").data.deviation
    x = np.float32(mean) + np.float32(deviation) / 2 * rng.standard_normal((16, 32, 32, 4), np.float32)
    np.savez(tmp_path / "few.npz", x=x, label=np.arange(16, dtype=np.int32) % 10)
    c = config_lib.override(edm2.get_config("img512_m,tiny"), {
        "data.path": str(tmp_path / "few.npz"), "optimizer.learning_rate": 0.3, "sample.weights": "raw"})
    train(c, tmp_path / "run", time.perf_counter())
    params = jax.device_get(pretrained.open_model(c, tmp_path / "run")[1]())
    kernels = [(path, leaf) for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "kernel"]
    assert len(kernels) > 60
    for path, leaf in kernels:
        np.testing.assert_allclose(np.mean(leaf**2, tuple(range(leaf.ndim - 1))), 1, atol=0.01, err_msg=str(path))
    start = build.training(c, build.model(c)).create_state().params["online"]
    for name in ("frequencies", "phases"):
        np.testing.assert_array_equal(params["params"]["fourier"][name], start["params"]["fourier"][name])
    moved = np.abs(params["params"]["conv_in"]["kernel"] - start["params"]["conv_in"]["kernel"])
    assert moved.mean() > 0.05
    other = config_lib.override(c, {"sample.weights": "posthoc:0.08"})
    found = pretrained.open_model(other, tmp_path / "run")[1]()
    assert np.isfinite(found["params"]["conv_in"]["kernel"]).all()
    state = build.training(c, build.model(c)).abstract_state
    assert state.params["online"]["uncertainty"]["weight"].shape == (128,)


def test_an_optimizer_of_two_sequences_is_refused():
    c = config_lib.choose(edm2.get_config("img64_s,tiny"), optimizer="schedule_free")
    with pytest.raises(ConfigError, match="optimizer.name.*two sequences"):
        build.check(c)
    with pytest.raises(ConfigError, match="optimizer.decay_from.*inverse_sqrt"):
        build.check(config_lib.override(edm2.get_config(), {"optimizer.decay": "cosine"}))
