"""Whole chains of diffusers' pipelines, stored in tests/golden/chain.npz, and ours from the same files and noise."""
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import DiffusionPipeline
from diffusion.interop import unet2d
from diffusion.interop.tensor_files import write_safetensors

TESTS = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "networks"), str(TESTS / "interop")]
from golden_chain import BATCH, CASES, STRIDE, UNETS, random_state  # noqa: E402
from test_unet2d import abstract_params, network_of  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CASES)
def test_images_are_those_of_diffusers(name, tmp_path):
    unet, scheduler, steps, call = CASES[name]
    sections = unet2d.read_settings(UNETS[unet], "config.json")
    abstract = abstract_params(network_of(sections))
    shapes = unet2d.write_params(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract))
    state = random_state({key: value.shape for key, value in shapes.items()})
    (tmp_path / "config.json").write_text(json.dumps(UNETS[unet]))
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    write_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", state, {"format": "pt"})
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    out = pipe(BATCH, steps, seed=0, output_type="np", progress_bar=False, **call).images
    with np.load(TESTS / "golden" / "chain.npz") as file:
        expected = file[name]
    assert expected.std() > 0.05
    # Float32 on both sides, and schedules that are float32 products there and float64 here.
    np.testing.assert_allclose(out.ravel()[::STRIDE], expected, rtol=0, atol=1e-4)
