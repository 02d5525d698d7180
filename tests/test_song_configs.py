"""The variants of configs/edm.py and configs/score_sde.py: their networks, and a tiny one of each that trains."""
import importlib
import sys

import flax.traverse_util
import jax
import numpy as np
import program
import pytest

from diffusion import build, config_flags
from diffusion.errors import ConfigError

VARIANTS = [(name, variant) for name in ("edm", "score_sde")
            for variant in importlib.import_module(f"configs.{name}").VARIANTS]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Random pictures of 64 pixels in ten folders, one a class."""
    from PIL import Image
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(20):
        (folder / f"class{i % 10}").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"class{i % 10}" / f"{i}.png")
    return folder


def load(name, variant):
    return config_flags.load(str(program.ROOT / "configs" / f"{name}.py:{variant}"))


def structure(c) -> set[str]:
    """The layers of the network with an index of 0, which are those of every depth, and the number of axes of each."""
    parts = build.models.check_model(c)
    spec = jax.eval_shape(parts.network.init, jax.random.key(0), np.zeros((1, *parts.spec.shape)), np.zeros(1),
                          {name: np.zeros((1, *one.shape), one.dtype) for name, one in parts.conditions.items()})
    names = {("/".join(path), x.ndim) for path, x in flax.traverse_util.flatten_dict(spec["params"]).items()}
    return {(name, axes) for name, axes in names
            if "block0/" in name or "_block" not in name and "attention" not in name}


@pytest.mark.parametrize("name, variant", [("edm", "ve_cond"), ("score_sde", "sub_vp")])
def test_a_tiny_network_has_the_structure_of_the_whole(name, variant):
    def kept(names):  # a narrow block may need a shortcut where a wide one does not
        return {one for one in names if "shortcut" not in one[0]}
    assert kept(structure(load(name, f"{variant},tiny"))) == kept(structure(load(name, variant)))


def test_a_variant_is_its_row():
    faces, cifar, deep = load("edm", "afhqv2_ve"), load("edm", "vp_cond"), load("score_sde", "ve_deep")
    assert (faces.network.encoder, faces.network.dropout, faces.data.augment, faces.sample.steps) == (
        "residual", 0.25, 0.15, 40)
    assert (cifar.network.encoder, cifar.network.num_classes, cifar.data.augment) == ("standard", 10, 0.12)
    assert (deep.network.blocks, deep.prediction, deep.data.augment, deep.train.duration) == (
        8, "edm_ve", 0.0, "950k steps")
    assert load("score_sde", "sub_vp").prediction == "eps"
    with pytest.raises(ConfigError, match="'vp_condd' is not known. Did you mean 'vp_cond'"):
        load("edm", "vp_condd")


def trains(name, variant, pictures, workdir):
    program.execute([sys.executable, "-m", "diffusion.main", f"--config=configs/{name}.py:{variant},tiny",
                     "--config.data.name=folder", "--config.data.crop=edm", f"--config.data.dir={pictures}",
                     "--config.data.labels=folders", "--config.data.on_device=False", f"--workdir={workdir}"])
    (row,) = program.rows(workdir)
    assert np.isfinite(row["loss"]) and row["step"] == 2
    assert (workdir / "samples/step_00000002.png").stat().st_size > 100


@pytest.mark.slow
def test_a_tiny_one_trains_and_draws(pictures, tmp_path):
    """NCSN++ by class, with augmentation."""
    trains("edm", "ve_cond", pictures, tmp_path / "run")


@pytest.mark.rare
@pytest.mark.parametrize("name, variant", VARIANTS)
def test_every_tiny_one_trains_and_draws(name, variant, pictures, tmp_path):
    trains(name, variant, pictures, tmp_path / "run")


def test_augmentation_needs_a_network_that_takes_its_label():
    from diffusion import config
    c = config.base()
    c.data.augment = 0.12
    with pytest.raises(ConfigError, match="network.name = 'unet': is not told how images are augmented .*song_unet"):
        build.model(c)
