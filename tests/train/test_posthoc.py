"""Averages that are made after the training: their coefficients, and the snapshots of a run that they are made of."""
import functools
import json
import pathlib
import shutil
import time

import jax
import numpy as np
import pytest

from configs import toy_2d
from diffusion import build, pretrained
from diffusion import config as config_lib
from diffusion.errors import CheckpointError, ConfigError, FieldError
from diffusion.io import checkpoint
from diffusion.programs.sample import sample
from diffusion.programs.train import train
from diffusion.train import posthoc
from diffusion.train.averages import Power

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "edm2.npz")


def gamma(width):
    return Power.of_width(width).gamma


def test_the_coefficients_are_the_authors():
    """In float64: the solution of 16 equations whose condition number is 1e4."""
    images, gammas = GOLDEN["in_images"], [gamma(s) for s in GOLDEN["in_sigma_rel"]]
    np.testing.assert_allclose([gamma(s) for s in GOLDEN["out_sigma_rel"]], GOLDEN["exponents"], rtol=1e-13)
    at = images.max()
    for width, theirs in zip(GOLDEN["out_sigma_rel"], GOLDEN["coefficients"].T, strict=True):
        np.testing.assert_allclose(posthoc.solve(images, gammas, at, gamma(width))[0], theirs, rtol=0,
                                   atol=1e-10 * np.abs(theirs).max())
    early = images <= 5 * (8 << 20)
    found = posthoc.coefficients(images[early], np.array(gammas)[early], 5 * (8 << 20), 0.08)
    np.testing.assert_allclose(found, GOLDEN["coefficients_at_5"][:, 0], rtol=0, atol=1e-10)


def test_a_power_average_forgets_as_the_authors_do(x64):
    rule = Power.of_width(0.05)
    ours = [1 - rule.share(t // 2048, batch_size=2048) for t in GOLDEN["in_images"][:8]]
    np.testing.assert_allclose(ours, GOLDEN["beta"], rtol=1e-12)


def test_the_combination_is_the_average_that_was_not_kept():
    """Of a random walk, over 4096 steps with 16 snapshots; and the error that is stated is that of the weights."""
    steps, every = 4096, 256
    walk = np.cumsum(np.random.default_rng(0).standard_normal(steps)) / np.sqrt(steps)

    def average(width, steps=steps):
        """At each `every` steps."""
        value, kept = 0.0, []
        for i in range(1, steps + 1):
            value += (1 - (1 - 1 / i) ** (gamma(width) + 1)) * (walk[i - 1] - value)
            kept += [value] * (i % every == 0)
        return np.array(kept)
    times = np.tile(np.arange(every, steps + 1, every), 2)
    gammas, stored = np.repeat([gamma(0.05), gamma(0.1)], steps // every), np.concatenate([average(0.05), average(0.1)])
    for width in (0.03, 0.05, 0.08, 0.15, 0.2):
        found = posthoc.coefficients(times, gammas, steps, width)
        assert found.sum() == pytest.approx(1) and found @ stored == pytest.approx(average(width)[-1], abs=0.01)


def test_the_error_is_that_of_the_weights():
    """Against sums over a grid of images: that of the least squares, before the sum is made 1."""
    at, times, gammas = 100.0, np.array([60.0, 60, 100, 100]), np.array([gamma(0.05), gamma(0.1)] * 2)
    grid = (np.arange(100_000) + 0.5) / 1000

    def profile(end, g):
        return np.where(grid <= end, (g + 1) / end * (grid / end) ** g, 0)
    basis, wanted = np.stack([profile(*of) for of in zip(times, gammas)], axis=1), profile(at, gamma(0.2))
    found, *_ = np.linalg.lstsq(basis, wanted)
    x, error = posthoc.solve(times, gammas, at, gamma(0.2))
    np.testing.assert_allclose(x, found / found.sum(), atol=1e-3)
    theirs = np.linalg.norm(basis @ found - wanted) / np.linalg.norm(wanted)
    assert error == pytest.approx(theirs, abs=1e-3) and error > 0.1


def test_widths_out_of_reach_are_refused_with_those_in_reach():
    gammas, times = [gamma(0.05), gamma(0.1)] * 2, [50, 50, 100, 100]
    posthoc.coefficients(times, gammas, 100, 0.08)
    for width in (0.01, 0.25):
        with pytest.raises(FieldError, match=r"off by \d+% of its norm. Within 10% they reach 0.04 to 0.13"):
            posthoc.coefficients(times, gammas, 100, width)
    with pytest.raises(FieldError, match="must lie in"):
        posthoc.coefficients(times, gammas, 100, 0.3)


SNAPSHOTS = {"train.snapshot_every": "8 steps", "ema.name": "power", "averages": ("long: power, sigma_rel=0.1",)}


def config(**changes):
    small = {"network.channels": 8, "network.depth": 1, "train.batch_size": 32, "train.duration": "40 steps",
             "train.checkpoint_every": "20 steps", "train.sample_every": "40 steps", "train.log_every": "20 steps",
             "optimizer.warmup": "2 steps", "sample.steps": 2, "sample.preview": 4, "sample.batch_size": 4}
    return config_lib.override(measured(), small | SNAPSHOTS | {
        name.replace("__", "."): value for name, value in changes.items()})


@functools.cache
def measured():
    return build.measured(toy_2d.get_config())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("posthoc") / "run"
    train(config(), folder, time.perf_counter())
    return folder


def params(folder, weights, step=None):
    c = config(sample__weights=weights)
    return jax.device_get(pretrained.open_model(c, folder, checkpoint=step)[1]())


def snapshot(folder, name, step):
    return jax.device_get(checkpoint.Checkpoints(folder / "snapshots" / name, keep=None).restore_part(
        f"averages.{name}", build.model(config()).abstract_params, step))


def test_a_run_takes_snapshots_and_weights_are_made_of_them(run, tmp_path):
    for name in ("ema", "long"):
        assert checkpoint.Checkpoints(run / "snapshots" / name).steps() == [8, 16, 24, 32, 40]
    same = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), a, b)  # noqa: E731
    same(params(run, "posthoc:0.05"), params(run, "ema"))
    same(params(run, "posthoc:0.1"), params(run, "long"))
    same(params(run, "posthoc:0.1", 24), snapshot(run, "long", 24))
    of = [(name, step, gamma(width)) for name, width in (("ema", 0.05), ("long", 0.1)) for step in range(8, 41, 8)]
    factors = posthoc.coefficients([32 * step for _, step, _ in of], [g for *_, g in of], 32 * 40, 0.08)
    same(params(run, "posthoc:0.08"), jax.tree.map(lambda *x: sum(c * a for c, a in zip(factors, x)), *(
        snapshot(run, name, step) for name, step, _ in of)))
    loaded = pretrained.load_source(f"{run}@24#posthoc:0.08").params(build.model(config()).abstract_params)
    same(loaded, params(run, "posthoc:0.08", 24))
    sample(config(sample__weights="posthoc:0.08"), run, num_samples=4, seed=0, out=tmp_path / "out", step=None)
    assert np.load(next((tmp_path / "out").glob("*.npz")))["arr_0"].shape == (4, 2)
    assert pretrained.newest_step(run, config(sample__weights="posthoc:0.08")) == 40


@pytest.mark.slow
def test_a_resumed_run_makes_the_same_snapshots_again(run, tmp_path):
    """Those of later steps than the checkpoint's are removed first: they may be of another learning rate."""
    shutil.copytree(run, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "40")
    (tmp_path / "again" / "snapshots" / "ema" / "48.orbax-checkpoint-tmp-1").mkdir()  # a save that was cut short
    stays, goes = (tmp_path / "again" / "snapshots" / "ema" / str(step) / "score.json" for step in (16, 24))
    before = [path.stat().st_mtime_ns for path in (stays, goes)]
    train(config(), tmp_path / "again", time.perf_counter())
    after = [path.stat().st_mtime_ns for path in (stays, goes)]
    assert before[0] == after[0] and before[1] < after[1]
    for name in ("ema", "long"):
        for step in (16, 24, 40):
            jax.tree.map(np.testing.assert_array_equal, snapshot(run, name, step),
                         snapshot(tmp_path / "again", name, step))


def test_wrong_weights_are_refused(run, tmp_path):
    for weights, step, error, words in (
            ("posthoc:0.28", None, ConfigError, "cannot be reached"), ("posthoc:0.3", None, ConfigError, "must lie in"),
            ("posthoc:much", None, ConfigError, "such as posthoc:0.08"), ("posthoc:", None, ConfigError, "such as"),
            ("posthoc:0.08", 20, CheckpointError, "no snapshots of step 20, .*: name one of 8, 16, 24, 32, 40")):
        with pytest.raises(error, match=words):
            params(run, weights, step)
    with pytest.raises(ConfigError, match="made of snapshots, after the training"):
        build.check(config(sample__weights="posthoc:0.08"))
    with pytest.raises(ConfigError, match="snapshot_every.*there are none: choose ema.name=power"):
        build.check(config(ema__name="half_life", averages=()))
    with pytest.raises(ConfigError, match="takes none"):
        build.averages.check_weights(config(train__snapshot_every="never"), "posthoc:0.08", "the run")


@pytest.mark.parametrize("damage, words", [
    (lambda run: shutil.rmtree(run / "snapshots"), "no snapshots of its averages yet"),
    (lambda run: edit(run / "environment.json"), "is not of the run"),
    (lambda run: flip(run / "snapshots" / "ema" / "16"), "is damaged")], ids=("none", "another run", "a bit"))
def test_snapshots_that_are_missing_foreign_or_damaged_are_refused(run, tmp_path, damage, words):
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(CheckpointError, match=words):
        params(tmp_path / "run", "posthoc:0.08")


def edit(environment):
    starts = json.loads(environment.read_text())
    environment.write_text(json.dumps([starts[0] | {"time": "another"}]))


def flip(snapshot):
    file = max((path for path in (snapshot / "state").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
