"""The kind `array`: floats of any rank through each program, masks, and data that are refused."""
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import program
import pytest
from PIL import Image

from diffusion import DiffusionPipeline, build, pretrained
from diffusion import config as config_lib
from diffusion.core import losses, numerics, weightings
from diffusion.core.continuous import VP
from diffusion.core.parameterization import EPS, Diffusion
from diffusion.core.streams import example_keys
from diffusion.core.time_densities import Times
from diffusion.data import arrays, sources
from diffusion.errors import ConfigError, DataError
from diffusion.families import BY_NAME
from diffusion.kinds.array import ArraySpec, measure
from diffusion.kinds.base import preparation
from diffusion.likelihood.continuous import make_continuous_vlb
from diffusion.likelihood.ode import ode
from diffusion.programs import evaluate

TOY = ["--config.network.channels=16", "--config.network.depth=1", "--config.train.duration=40 steps",
       "--config.train.steps_per_dispatch=1", "--config.train.log_every=20 steps",
       "--config.train.sample_every=40 steps", "--config.train.checkpoint_every=20 steps",
       "--config.optimizer.warmup=5 steps", "--config.train.batch_size=64", "--config.sample.steps=5",
       "--config.sample.preview=50", "--config.data.points=500", "--config.likelihood.steps=10",
       "--config.ema.half_life=100 images"]
NET = {"network.channels": 16, "network.depth": 1, "sample.spacing": "uniform", "sample.steps": 4,
       "likelihood.steps": 4, "optimizer.warmup": "2 steps", "train.batch_size": 8, "train.duration": "4 steps",
       "train.log_every": "2 steps", "train.sample_every": "4 steps", "train.checkpoint_every": "2 steps",
       "ema.half_life": "8 images"}


def execute(*flags):
    return program.execute([sys.executable, "-m", "diffusion.main", *flags])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "toy"
    execute("--config=configs/toy_2d.py", f"--workdir={workdir}", *TOY)
    return workdir


def test_training_measures_the_data_and_draws_points(run):
    data = json.loads((run / "config.json").read_text())["data"]
    x = arrays.mixture(split="train", points=500).arrays["x"].astype(float)
    np.testing.assert_allclose(data["mean"], x.mean(0))
    np.testing.assert_allclose(data["deviation"], x.std(0))
    assert np.asarray(Image.open(run / "samples" / "step_00000040.png")).std() > 1
    rows = program.rows(run)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_it_goes_on_and_is_finished(run):
    done = execute("--config=configs/toy_2d.py", f"--workdir={run}", *TOY)
    assert "is finished: 40 of 40 steps" in done.stdout


@pytest.mark.slow
def test_samples_are_in_the_units_of_the_data(run, tmp_path):
    execute(f"--workdir={run}", "--mode=sample", "--num_samples=300", f"--out={tmp_path}/out")
    x = np.load(tmp_path / "out" / "samples.npz")["arr_0"]
    assert x.shape == (300, 2) and x.dtype == np.float32 and 1 < x.std() < 6
    assert (tmp_path / "out" / "scatter.png").stat().st_size > 1000
    pipe = DiffusionPipeline.from_pretrained(run)
    again = pipe(4, num_inference_steps=5, output_type="np", progress_bar=False).images
    np.testing.assert_allclose(again, x[:4], atol=1e-5)
    with pytest.raises(ConfigError, match="are not pictures: use output_type='np'"):
        pipe(4)


def test_the_likelihood_is_in_nats(run, tmp_path):
    execute(f"--workdir={run}", "--mode=likelihood", "--num_examples=20", f"--out={tmp_path}/nats.json",
            "--config.data.split=test")
    found = json.loads((tmp_path / "nats.json").read_text())
    assert 2 < found["nats"] < 8 and "bits_per_dim" not in found


@pytest.mark.slow
def test_it_is_planned():
    assert "memory" in execute("--config=configs/toy_2d.py", "--mode=plan", *TOY).stdout


@pytest.mark.slow
def test_samplers_are_compared(run, tmp_path):
    execute(f"--workdir={run}", "--mode=compare", "--num_samples=200", "--solvers=heun", "--steps=2,16",
            f"--out={tmp_path}/compare")
    coarse, fine = json.loads((tmp_path / "compare" / "compare.json").read_text())["cells"]
    assert 0 < fine["error"] < 0.1 * coarse["error"] and fine["distance"] < 1
    assert (tmp_path / "compare" / "heun_16_steps.png").exists()


def test_what_is_for_images_is_refused(run):
    for task, message in (("upscale", "is for images, but data.kind = 'array' is of arrays"),
                          ("inpaint", "--task=inpaint needs images, sound or clips, but the data are arrays")):
        done = program.execute([sys.executable, "-m", "diffusion.main", f"--workdir={run}", "--mode=sample",
                                f"--task={task}"], check=False)
        assert done.returncode == 1 and message in done.stdout + done.stderr


@pytest.mark.parametrize("changes, message", [
    ({"data.channels": 4}, "evaluate.extractor = 'inception': takes data of 1 or 3 channels, but this model's have 4"),
    (None, "evaluate.extractor = 'inception': takes data.kind = 'image', but this model's is 'array'")])
def test_an_extractor_takes_its_own_kind_of_data(tmp_path, changes, message):
    config = config_of("x.npz", (2,)) if changes is None else config_lib.override(config_lib.base(), changes)
    config = config_lib.override(config, {"evaluate.extractor": "inception"})
    with pytest.raises(ConfigError, match=message):
        build.check(config, "evaluate")
    with pytest.raises(ConfigError, match=message):
        evaluate.evaluate(config, tmp_path, None, seed=0, seeds=1, step=None, all_checkpoints=False, out=tmp_path)


# ---- files of any rank --------------------------------------------------------------------------------------------

def write(path, **given):
    np.savez(path, **given)
    return str(path)


def config_of(path, shape, **changes):
    return config_lib.override(
        config_lib.base(data="file", kind="array", network="mlp", process="vp", solver="ddim", spacing="uniform",
                        estimator="ode"),
        NET | {"data.path": str(path), "data.shape": shape} | {k.replace("__", "."): v for k, v in changes.items()})


@pytest.mark.parametrize("shape", [(4, 3), *(pytest.param(s, marks=pytest.mark.slow) for s in ((5,), (2, 3, 2)))])
def test_any_rank_trains_samples_and_has_a_density(tmp_path, shape):
    rng = np.random.default_rng(0)
    x = (7 + 3 * rng.normal(size=(40, *shape))).astype(np.float32)
    config = build.measured(config_of(write(tmp_path / "data.npz", x=x, label=np.arange(40) % 2), shape,
                                      network__num_classes=2, network__label_dropout=0.1, prediction="v"))
    model = build.model(config)
    assert model.shape == shape and len(config.data.mean) == shape[-1]
    parts = build.training(config, model)
    state = parts.create_state()
    _, metrics = parts.program(0)(state, jax.tree.map(lambda x: jnp.asarray(x)[None], next(parts.data)), None)
    assert np.isfinite(metrics.loss).all()
    params = parts.create_state().params
    params = params.get("online", params)
    drawn = model.spec.finish(next(build.generate(config, model)(params, 0, 0, 3)))
    assert drawn.shape == (3, *shape)
    source = build.training_images(config)
    found = build.evaluator(config, model, 0)(params, source.gather, 8)
    # The network is zero at the start, so that v is 0: the law of standardised data is N(0, 1).
    z = (x[:8] - np.asarray(config.data.mean)) / config.data.deviation
    each = 0.5 * z**2 + 0.5 * np.log(2 * np.pi) + np.log(config.data.deviation)
    np.testing.assert_allclose(found["nats"], each.reshape(8, -1).sum(1).mean(), rtol=1e-3)


def test_a_npy_file_is_read(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 2)))
    source = build.training_images(build.measured(config_of(tmp_path / "x.npy", (2,))))
    assert len(source) == 20 and set(source[0]) == {"x"}


def test_images_of_bytes_come_from_a_file_too(tmp_path):
    rng = np.random.default_rng(0)
    path = write(tmp_path / "i.npz", image=rng.integers(0, 256, (20, 8, 8, 2), np.uint8), label=np.arange(20) % 3)
    config = config_lib.override(config_lib.base(data="file"), {"data.path": path, "data.size": 8, "data.channels": 2})
    assert len(build.training_images(config)) == 20


@pytest.mark.parametrize("given, shape, changes, message", [
    (dict(x=np.where(np.arange(20)[:, None] == 7, np.nan, 1.0) * np.ones((20, 2))), (2,), {},
     "x of example 7 in .*data.npz is NaN or infinite"),
    (dict(x=np.random.default_rng(0).uniform(0, 255, (20, 2))), (2,), dict(data__mean=(0.0,), data__deviation=(1.0,)),
     r"root mean square of config.data \(file\) is 1\d\d .* store uint8 and use data.kind=image"),
    (dict(x=np.zeros((20, 3))), (2,), {}, r"have the shape \[3\], .* --config.data.shape=3"),
    (dict(x=np.zeros((20, 2), np.uint8)), (2,), dict(data__mean=(0.0,), data__deviation=(1.0,)), "must be floats"),
    (dict(y=np.zeros((20, 2))), (2,), {}, "must hold an array named x"),
    (dict(x=np.zeros((20, 2)), label=np.zeros(3, int)), (2,), {}, r"must be \[N, ...\] with one N: x \[20, 2\], label"),
    (dict(x=np.zeros((20, 2)), label=np.full(20, -1)), (2,), {}, "label in .* must be integers .N. from 0"),
    (dict(image=np.zeros((20, 8, 8, 1), np.uint8)), (2,), dict(data__mean=(0.0,), data__deviation=(1.0,)),
     "data.kind = 'array' takes records that hold 'x', but .* gives image"),
    (dict(x=np.zeros((0, 2))), (2,), {}, "has no examples"),
    (dict(x=np.zeros(20)), (2,), {}, r"have the shape \[\], .* store numbers as \[N, 1\]"),
    (dict(x=np.ones((20, 2)), mask=np.ones((20, 3), bool)), (2,), {}, r"mask in .* \[20, 3\]: .* axes of x, \[20, 2\]"),
    (dict(x=np.ones((20, 2)), mask=np.ones((20, 2, 2), bool)), (2,), {}, r"mask in .* \[20, 2, 2\]: "),
    (dict(x=np.ones((20, 2)), mask=np.full((20, 2), 0.5)), (2,), {}, "must be true or false .* but it is float64"),
    (dict(x=np.ones((20, 2)), mask=np.arange(20) != 7), (2,), {}, "mask of example 7 in .* has no valid entry"),
])
def test_data_that_are_refused(tmp_path, given, shape, changes, message):
    with pytest.raises(DataError, match=message):
        build.training_images(build.measured(config_of(write(tmp_path / "data.npz", **given), shape, **changes)))


@pytest.mark.parametrize("crop, size", [("none", 8), ("center", 6)])
def test_images_of_a_file_need_no_labels_for_a_model_without_classes(tmp_path, crop, size):
    path = write(tmp_path / "data.npz", image=np.zeros((20, 8, 8, 1), np.uint8))
    config = config_lib.override(config_lib.base(data="file"), {"data.path": path, "data.size": size,
                                                                "data.channels": 1, "data.crop": crop})
    found = build.training_images(config)
    assert sources.gather_examples(found, np.arange(3))["image"].shape == (3, size, size, 1)
    floats = write(tmp_path / "floats.npz", image=np.zeros((20, 8, 8, 1)))
    with pytest.raises(DataError, match="Images must be uint8"):
        build.training_images(config_lib.override(config, {"data.path": floats}))


def test_a_kind_that_does_not_fit_the_source():
    with pytest.raises(DataError, match="data.kind = 'image' takes records that hold 'image', but .* gives x, label"):
        build.training_images(config_lib.base(data="mixture"))


@pytest.mark.parametrize("changes, message", [
    (dict(data__shape=()), "config.data.shape = .*: is the shape of one array"),
    (dict(data__mean=(1.0,)), "config.data.mean = .*: and data.deviation are both given"),
    (dict(data__mean=(1.0,) * 3, data__deviation=(1.0,)), "one for each of 2 channels"),
    (dict(data__mean=(1.0,), data__deviation=(0.0,)), "must be positive"),
    (dict(network__name="unet"), "network.name = 'unet': takes arrays of 2 axes and channels, .* have 0 axes"),
    (dict(sample__clip=True), "config.sample.clip = True: limits x0, but data.kind = 'array' has no bounds"),
    (dict(loss__name="continuous_vlb"), "probability of a level of a byte"),
    (dict(likelihood__estimator="continuous_vlb"), "which have a density: use ode"),
    (dict(data__size=8), "config.data.size is a key of data.name = moving_mnist and of data.kind = image, video, and"),
])
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        config = config_of("x.npz", (2,))
        config = config_lib.override(config, {key.replace("__", "."): value for key, value in changes.items()})
        build.check(config, "likelihood" if "likelihood__estimator" in changes else "train")


def test_clipping_follows_the_kind():
    assert build.clips(config_lib.base()) and not build.clips(config_of("x.npz", (2,)))
    assert not build.clips(config_lib.override(config_lib.base(), {"sample.clip": False}))


# ---- masks --------------------------------------------------------------------------------------------------------

LENGTHS, LONGEST = np.array([6, 2, 4]), 6
MASK = np.arange(LONGEST) < LENGTHS[:, None]
X = np.random.default_rng(0).normal(size=(3, LONGEST, 1)).astype(np.float32)
KEYS = example_keys(jax.random.key(0), "loss", 0, np.arange(3))
PROCESS = VP()
# A network that takes each entry alone, so that padding could come in by a loss or a likelihood only.
POINTWISE = Diffusion(PROCESS, lambda x, t, cond: EPS.predict(PROCESS, jnp.tanh(1.3 * x) + 0.1, x, t))
# The same if the network sees 0 where the data are masked.
SEEING = Diffusion(PROCESS, lambda x, t, cond: EPS.predict(PROCESS, jnp.tanh(1.3 * x) + 0.1 + jnp.sum(
    jnp.where(MASK[..., None], 0, x), 1, keepdims=True), x, t))


def valid(i):
    return X[i:i + 1, :LENGTHS[i]]


def padded():
    return np.where(MASK[..., None], X, 1e4).astype(np.float32)


@pytest.mark.parametrize("loss", [
    losses.make_denoising_loss(weightings.in_space(None, EPS)), losses.make_continuous_vlb_loss()])
def test_a_masked_loss_is_that_of_the_valid_part(loss):
    times = lambda n: Times(jnp.full(n, 0.4), jnp.ones(n), jnp.ones(n))  # noqa: E731
    found, _ = loss({}, SEEING, padded(), {}, times(3), KEYS, mask=MASK[..., None])
    for i in range(3):
        alone, _ = loss({}, POINTWISE, valid(i), {}, times(1), KEYS[i:i + 1])
        np.testing.assert_allclose(found[i], alone[0], rtol=2e-5)


@pytest.mark.parametrize("name, estimator", [
    ("nats", ode(levels=None, steps=3)), ("nats", ode(levels=None, steps=3, probes="exact")),
    ("bits_per_dim", make_continuous_vlb(3))])
def test_a_masked_likelihood_is_that_of_the_valid_part(name, estimator):
    x = np.clip(padded(), -2, 2) if name == "nats" else np.clip(padded(), -1, 1)
    found = getattr(estimator(KEYS, SEEING, x, {}, MASK[..., None]), name)
    for i in range(3):
        alone = getattr(estimator(KEYS[i:i + 1], POINTWISE, x[i:i + 1, :LENGTHS[i]], {}), name)
        np.testing.assert_allclose(found[i], alone[0], rtol=1e-4)


def test_a_mask_comes_from_the_data(tmp_path):
    x = np.where(MASK[..., None], X, np.nan)  # what is masked may hold anything
    path = write(tmp_path / "data.npz", x=x, mask=MASK)
    config = build.measured(config_of(path, (LONGEST, 1)))
    valid_numbers = X[MASK].astype(float)
    np.testing.assert_allclose([config.data.mean, config.data.deviation],
                               [[valid_numbers.mean()], [valid_numbers.std()]], rtol=1e-6)
    source = build.training_images(config)
    example = preparation(build.spec(config), {})(source.gather(np.arange(3)))
    np.testing.assert_allclose(numerics.mean_over(example.x0**2, example.mask).shape, 3)
    assert np.all(np.asarray(example.x0)[~MASK] == 0) and np.isfinite(example.x0).all()
    model = build.model(config)
    params = build.training(config, model).create_state().params
    params = params.get("online", params)
    assert np.isfinite(build.evaluator(config, model, 0)(params, source.gather, 3)["nats"])


def test_the_volume_is_of_the_valid_entries():
    spec = ArraySpec(shape=(LONGEST, 1), mean=(0.0,), deviation=(2.0,))
    np.testing.assert_allclose(spec.log_volume(MASK[..., None]), LENGTHS * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(spec.log_volume(), LONGEST * np.log(2), rtol=1e-6)


def test_measured_numbers_are_exact():
    x = (1e3 + np.random.default_rng(0).normal(size=(50, 3))).astype(np.float32)
    mean, deviation = measure(arrays.Records({"x": x}), (3,))
    np.testing.assert_allclose(mean, x.astype(float).mean(0))
    np.testing.assert_allclose(deviation, x.astype(float).std(0))
    assert measure(arrays.Records({"x": np.ones((4, 1))}), (1,))[1] == (1.0,)


def test_every_kind_keeps_the_interface():
    for name in BY_NAME["kind"].members():
        config = config_lib.base(kind=name)
        if name == "array":
            config = config_lib.override(config, {"data.shape": (2,)})
        found = build.spec(config)
        assert found.shape and found.called and all(len(entry) == 2 for entry in found.stored.values())
        assert pretrained.NETWORK[0] == "network"
