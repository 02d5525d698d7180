"""The parts of an evaluation, without a program."""
import costs
import jax
import numpy as np
from metrics.pixels import Pixels

from diffusion import build, evaluate
from diffusion import config as config_lib

TINY = {"data.name": "digits", "data.size": 8, "data.channels": 1, "network.channels": 8, "network.multipliers": (1,),
        "network.blocks": 1, "network.attention_resolutions": (), "network.groups": 4, "process.steps": 20,
        "sample.steps": 2, "sample.preview": 5, "evaluate.images": 20, "evaluate.metrics": ("fd",)}


def test_seeds_and_checkpoints_share_one_compiled_sampler(tmp_path):
    """It was compiled anew at each evaluation of a training, each seed and each checkpoint."""
    config = config_lib.override(config_lib.base(), TINY)
    model = build.model(config)
    evaluation = evaluate.prepare(config, model, Pixels(), tmp_path)
    params = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), model.abstract_params)
    first, shown = evaluation(params, 0, {})
    before = costs.programs()
    other, shown_other = evaluation(jax.tree.map(lambda x: 2 * x, params), 7, {})
    again, shown_again = evaluation(params, 0, {})
    assert costs.programs() == before
    assert again["samples"] == first["samples"] and again["metrics"] == first["metrics"]
    assert other["samples"]["sha256"] != first["samples"]["sha256"]
    assert shown.shape == (5, 8, 8, 1) and np.array_equal(shown, shown_again) and not np.array_equal(shown, shown_other)
