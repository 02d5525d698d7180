"""What save_pretrained writes: read back as the same model and sampler, or named, with nothing written."""
import json

import jax
import numpy as np
import pytest
from tiny_pipeline import pipeline

from diffusion import DiffusionPipeline, pretrained
from diffusion import config as config_lib
from diffusion.errors import CheckpointError


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


@pytest.mark.parametrize("changes, message", [
    ({"sample.solver": "unipc"}, "do not support config.sample.solver = 'unipc'. They support: ancestral, ddim"),
    ({"sample.solver": "euler_ancestral"}, "config.sample.solver = 'euler_ancestral'"),
    ({"sample.solver": "dpm_solver++m"}, "config.sample.spacing = 'linspace'. It can be one of: open_linspace"),
    ({"sample.solver": "dpm_solver++m", "sample.spacing": "trailing", "sample.order": 3, "sample.clip": False},
     "solver_order = 3 ends with lower orders"),
    ({"sample.solver": "dpm_solver++sde", "sample.spacing": "trailing", "sample.eta": 0.5}, "config.sample.solver of"),
    ({"sample.solver": "dpm_solver++m", "sample.spacing": "trailing"}, "reach=inf, .* instead of .*reach=4"),
    ({"sample.solver": "pndm", "sample.spacing": "leading", "sample.between_times": True}, "config.sample.clip of"),
    ({"sample.spacing": "karras", "sample.between_times": True}, "config.sample.spacing = 'karras'"),
    ({"sample.corrector": "langevin"}, "config.sample.solver of this model"),
    ({"prediction": "x0_and_eps"}, "config.prediction = 'x0_and_eps'. It can be one of: eps, x0, v"),
    ({"process.name": "flow"}, "diffusers' chains are of betas: config.process.name = 'flow' is a process in"),
])
def test_a_sampler_that_diffusers_lacks_is_named(pipe, tmp_path, changes, message):
    other = object.__new__(DiffusionPipeline)
    other.config, other.params = config_lib.override(pipe.config, changes), pipe.params
    with pytest.raises(CheckpointError, match=message):
        other.save_pretrained(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [
    {"sample.solver": "dpm_solver++m", "sample.spacing": "open_leading", "sample.offset": 1,
     "sample.reach": float("inf"), "sample.solver_type": "heun"},
    {"sample.solver": "dpm_solver++sde", "sample.spacing": "trailing", "sample.end": 1, "sample.order": 1,
     "sample.reach": float("inf")},
    {"sample.solver": "plms", "sample.spacing": "leading", "sample.clip": False},
])
def test_samplers_go_there_and_back(pipe, tmp_path, changes):
    DiffusionPipeline(config_lib.override(pipe.config, changes), pipe.params).save_pretrained(tmp_path / "new")
    back = pretrained.load(tmp_path / "new").config
    assert {key: config_lib.keys(back)[key] for key in changes} == changes


def test_the_label_of_no_class_is_exported(tmp_path):
    """The table of a network trained with label dropout has one row more than there are classes."""
    pipe = pipeline(network__num_classes=3, network__label_dropout=0.1)
    pipe.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new/unet/config.json").read_text())["num_class_embeds"] == 4
    assert "one of 4 labels, which" in (tmp_path / "new/README.md").read_text()
    back = DiffusionPipeline.from_pretrained(tmp_path / "new")
    jax.tree.map(np.testing.assert_array_equal, back.params, pipe.params)
