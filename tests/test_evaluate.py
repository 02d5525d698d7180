"""The parts of an evaluation, without a program."""
import json

import costs
import jax
import numpy as np
from metrics.pixels import Pixels

from diffusion import build
from diffusion import config as config_lib
from diffusion.data import sources
from diffusion.programs import evaluation

TINY = {"data.name": "digits", "data.size": 8, "data.channels": 1, "network.channels": 8, "network.multipliers": (1,),
        "network.blocks": 1, "network.attention_resolutions": (), "network.groups": 4, "process.steps": 20,
        "sample.steps": 2, "sample.preview": 5, "evaluate.images": 20, "evaluate.metrics": ("fd",)}


def test_seeds_and_checkpoints_share_one_compiled_sampler(tmp_path):
    """It was once compiled again at each evaluation of a training, each seed and each checkpoint."""
    config = config_lib.override(config_lib.base(), TINY)
    model = build.model(config)
    evaluate = evaluation.prepare(config, model, Pixels(), tmp_path)
    params = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), model.abstract_params)
    first, shown = evaluate(params, 0, {})
    before = costs.programs()
    other, shown_other = evaluate(jax.tree.map(lambda x: 2 * x, params), 7, {})
    again, shown_again = evaluate(params, 0, {})
    assert costs.programs() == before
    assert again["samples"] == first["samples"] and again["metrics"] == first["metrics"]
    assert other["samples"]["sha256"] != first["samples"]["sha256"]
    assert shown.shape == (5, 8, 8, 1) and np.array_equal(shown, shown_again) and not np.array_equal(shown, shown_other)


def test_a_record_that_cannot_be_read_costs_no_report(tmp_path, capsys):
    """It was once read only after hours of sampling and feature extraction."""
    good = {"metrics": {"fd": {"value": 1.0}}, "protocol": {"images": 20}, "samples": {"checkpoint": None}}
    (tmp_path / "a.json").write_text(json.dumps(good))
    for name, text in (("b", "{"), ("c", "null"), ("d", '{"metrics": {"fd": {"value": "x"}}, "protocol": {}}')):
        (tmp_path / f"{name}.json").write_text(text)
    assert evaluation.records_in(tmp_path) == [good]
    assert capsys.readouterr().out.count("is not a metric record") == 3


def test_kept_features_that_are_damaged_are_taken_again(tmp_path, capsys):
    config = config_lib.override(config_lib.base(), TINY | {"evaluate.reference_images": 20})
    model, source = build.model(config), build.training_images(config)
    first = evaluation.features_of(config, model, Pixels(), source, tmp_path)
    spread = sources.gather_examples(source, np.arange(20) * len(source) // 20)["image"]  # not the first 20
    assert first.digest == evaluation.digest_of([spread], 20)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    again = evaluation.features_of(config, model, Pixels(), source, tmp_path)
    assert "the features are computed again: " in capsys.readouterr().out and again.digest == first.digest
