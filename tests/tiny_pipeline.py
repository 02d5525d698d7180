"""A tiny pipeline with random weights, for the tests of pipelines and of their output files."""
import pathlib
import sys

import numpy as np

from diffusion import DiffusionPipeline, build
from diffusion import config as config_lib

sys.path.insert(0, str(pathlib.Path(__file__).parent / "networks"))
from random_params import random_params  # noqa: E402

TINY = {"data.size": 8, "data.channels": 3, "network.channels": 8, "network.multipliers": (1,), "network.blocks": 1,
        "network.attention_resolutions": (), "network.groups": 4, "process.steps": 20, "sample.steps": 10}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def pipeline(**changes) -> DiffusionPipeline:
    """A tiny model with random weights."""
    config = config_lib.override(config_lib.base(), TINY | {key.replace("__", "."): v for key, v in changes.items()})
    c = config.data
    network = build.network(config.network, c.size, c.channels * (1 + config.learned_range))
    return DiffusionPipeline(config, {"params": random_params(network, (c.size, c.size, c.channels), 0)})


def draw(pipe, *args, **kwargs) -> np.ndarray:
    return pipe(*args, output_type="np", progress_bar=False, **kwargs).images
