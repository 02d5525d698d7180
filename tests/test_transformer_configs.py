"""configs/dit.py, sit.py and jit.py: the authors' counts of parameters at full size, JiT's loss and chain, and short
runs."""
import pathlib
import re
import sys

import jax
import numpy as np
import program
import pytest
from networks import golden_jit as case
from networks.random_params import random_params, unit
from PIL import Image

from configs import dit, jit, sit
from diffusion import build, config_flags
from diffusion import config as config_lib
from diffusion.build.objective import objective as build_objective
from diffusion.core.losses import Bind, Inputs
from diffusion.errors import ConfigError

GOLDEN = {name: np.load(pathlib.Path(__file__).parent / "golden" / f"{name}.npz") for name in ("sit", "jit")}
COUNTS = {str(name): int(count) for found in GOLDEN.values() for name, count in zip(found["counted"], found["counts"])}
CONFIGS = {"DiT": dit, "SiT": sit, "JiT": jit}
TINY = ["dit:tiny", "sit:tiny", "jit:tiny"]


def variant(name: str) -> str:
    """"DiT-XL/2" -> "xl2"."""
    return name.partition("-")[2].replace("/", "").lower()


# The authors' code has more SiTs than the paper, which has /2 alone.
@pytest.mark.parametrize("name", [name if re.search(r"XL/2|S/8|B/|H/", name) else pytest.param(
    name, marks=pytest.mark.slow) for name in COUNTS if not re.match(r"SiT.*/[48]", name)])
def test_parameters_are_as_many_as_the_authors(name):
    """With 1,000 classes and none of them; the authors' fixed positions are not counted."""
    model = build.model(CONFIGS[name[:3]].get_config(variant(name)))
    assert sum(x.size for x in jax.tree.leaves(model.shapes)) == COUNTS[name]


def test_jit_at_1024_pixels_is_of_table_5():
    model = build.model(jit.get_config("b64"))
    assert round(sum(x.size for x in jax.tree.leaves(model.shapes)) / 1e6) == 141
    assert model.spec.shape == (1024, 1024, 3)


@pytest.mark.parametrize("name", TINY)
def test_tiny_has_the_same_kinds_of_parameters(name):
    """The same layers, in fewer and narrower blocks, and the same choices but for sizes."""
    file = name.partition(":")[0]
    whole, tiny = (config_flags.load(str(program.ROOT / f"configs/{file}.py{end}")) for end in ("", ":tiny"))
    kinds = lambda c: {(re.sub(r"block\d+", "block", jax.tree_util.keystr(path)), leaf.ndim)  # noqa: E731
                       for path, leaf in jax.tree_util.tree_leaves_with_path(build.model(c).shapes)}
    assert kinds(whole) == kinds(tiny)
    differing = {key for key, value in config_lib.keys(whole).items() if config_lib.keys(tiny)[key] != value}
    assert differing <= {f"network.{key}" for key in ("channels", "depth", "heads", "num_classes", "bottleneck",
                                                      "class_tokens", "class_tokens_from")} | {
        "data.size", "data.shape", "ema.half_life", "averages", "optimizer.warmup", "train.batch_size",
        "train.duration", "sample.steps", "sample.batch_size", "sample.preview"}


def test_an_unknown_variant_lists_them():
    with pytest.raises(ConfigError, match="'m2' is not known.*xl2, xl4, xl8, l2"):
        dit.get_config("m2")


# ---- JiT against its authors' denoiser.py ---------------------------------------------------------------------------

@pytest.fixture(scope="module")
def golden_model():
    """configs/jit.py with the network of the golden file, and noise of twice the deviation, as at 512 pixels."""
    n = case.JIT
    fields = ("channels", "depth", "heads", "patch", "bottleneck", "class_tokens", "class_tokens_from")
    c = config_lib.override(jit.get_config("b32"), {
        **{f"network.{key}": getattr(n, key) for key in fields}, "network.num_classes": n.num_classes - 1,
        "network.dtype": "float32", "data.size": case.SHAPES["jit"][0], "sample.steps": case.STEPS,
        "sample.guidance.scale": case.SCALE})
    assert c.process.noise_scale == case.NOISE_SCALE
    return c, build.model(c), {"params": random_params(n, case.SHAPES["jit"], case.SEED)}


def test_jits_loss_is_the_authors(golden_model):
    """At given times and noise, in units of the noise's scale. The last time is one whose denominator is clipped."""
    c, model, params = golden_model
    objective, t = build_objective(c, model.process), 1 - np.float32(case.TIMES)
    times = objective.density.draw(np.full((4, 1), 0.5), model.process)._replace(t=t, importance=1.0)

    @jax.jit
    def loss(params):
        inputs = Inputs(case.images("jit"), {"label": np.array(case.LABELS)}, times,
                        lambda stream: jax.random.split(jax.random.key(0), 4), 0, case.images("jit", "noise"))
        return objective.loss(Bind({"online": model.denoiser}, {"online": params}), inputs)[0]
    assert float(loss(params).mean()) * case.NOISE_SCALE**2 == pytest.approx(float(GOLDEN["jit"]["loss"]), rel=1e-5)


def test_jits_chain_is_the_authors(golden_model):
    """Heun's method with guidance in an interval of times and a clipped denominator, from the same noise."""
    c, model, params = golden_model
    noise = case.NOISE_SCALE * unit("chain", (2, *case.SHAPES["jit"]), case.SEED)
    steps, labels, theirs = build.grid(c.sample, model.process), np.int32(case.CHAIN_LABELS), GOLDEN["jit"]["chain"]
    clipped, not_clipped = (build.sampler(config_lib.override(c, {"sample.least_noise": least}), model)(
        params, steps, 0, np.arange(2, dtype=np.int32), cond={"label": labels}, noise=noise).x
        for least in (case.T_EPS, 0.0))
    assert np.abs(clipped - theirs).max() < 3e-5 * np.abs(theirs).max()
    assert np.abs(not_clipped - theirs).max() > 0.03


@pytest.mark.parametrize("changes, words", [
    ({"sample.least_noise": 1.0}, "a share of noise below 1"),
    ({"process.name": "vp", "sample.least_noise": 0.05}, "of the velocity of the process flow"),
    ({"process.t_max": 0.0}, "above t_min"), ({"process.noise_scale": 0.0}, "must be positive"),
    ({"network.heads": 5}, "must divide"), ({"network.heads": 128}, "rotary"),
    ({"network.num_classes": 0, "network.label_dropout": 0.0, "sample.guidance.name": "none"}, "class_tokens")])
def test_what_does_not_fit_is_named(changes, words):
    c = config_lib.override(jit.get_config("b16"), changes)
    with pytest.raises(ConfigError, match=words):
        build.check(c)
        build.sampler(c, build.model(c))


# ---- Runs -----------------------------------------------------------------------------------------------------------

def data(name: str, folder: pathlib.Path) -> str:
    """A flag that names made-up data for the config."""
    rng, labels = np.random.default_rng(0), np.arange(20) % 10
    if name == "jit:tiny":
        for i, label in enumerate(labels):
            path = folder / "train" / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (70, 80, 3), np.uint8)).save(path)
        return f"--config.data.dir={folder}"
    shape = (20, 16, 16, 4)
    arrays = {"image": rng.integers(0, 256, shape, np.uint8)} if name == "dit:tiny" else {
        "x": rng.standard_normal(shape).astype(np.float32) / 0.18}
    np.savez(folder / "latents.npz", **arrays, label=labels)
    return f"--config.data.path={folder / 'latents.npz'}"


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_it_trains_and_draws(name, tmp_path):
    other = ["--config.data.name=file"] if name == "dit:tiny" else []
    run = [sys.executable, "-m", "diffusion.main", f"--workdir={tmp_path}/run", *other, data(name, tmp_path)]
    file, _, end = name.partition(":")
    program.execute([*run, f"--config=configs/{file}.py:{end}", "--config.train.log_every=1 steps",
                     "--config.train.sample_every=2 steps", "--config.train.checkpoint_every=2 steps"])
    assert len(program.rows(tmp_path / "run")) == 2
    program.execute([*run, "--mode=sample", "--num_samples=3", f"--out={tmp_path}/out"])
    drawn = np.load(tmp_path / "out" / "samples.npz")["arr_0"]
    assert drawn.shape[1:] == ((64, 64, 3) if name == "jit:tiny" else (16, 16, 4))
