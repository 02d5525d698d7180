"""Guidance as config.sample.guidance names it: whole chains of a model of random weights."""
import json

import jax
import numpy as np
import pytest

from diffusion import build
from diffusion import config as config_lib
from diffusion.errors import ConfigError


def tiny(**changes):
    config = config_lib.override(config_lib.base(), {
        "data.size": 8, "data.channels": 1, "process.name": "cosine", "process.steps": 20, "prediction": "v",
        "network.channels": 8, "network.multipliers": (1,), "network.blocks": 1, "network.attention_resolutions": (),
        "network.groups": 4, "network.num_classes": 3, "network.label_dropout": 0.1, "sample.steps": 5,
        "sample.solver": "ddim"})
    return config_lib.override(config, {key.replace("__", "."): value for key, value in changes.items()})


def weights(model, seed=0):
    """Random, also where a new network starts from zeros."""
    leaves, tree = jax.tree.flatten(model.abstract_params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [rng.normal(size=leaf.shape).astype(np.float32) * 0.2 for leaf in leaves])


def key(config, without):
    return None if config is None else json.dumps({name: value for name, value in config.to_dict().items()
                                                   if name != without}, default=str, sort_keys=True)


_BUILT = {}


def model_of(config, guide=None):
    """Which does not depend on how it is sampled, and is built once."""
    name = key(config, "sample"), key(guide, "sample")
    if name not in _BUILT:
        _BUILT[name] = build.model(config, guide)
    return _BUILT[name]


def sampler_of(config, guide=None):
    """One for all numbers of steps, which are an argument of its program."""
    long = config_lib.override(config, {"sample.steps": 5})
    name = key(long, None), key(guide, None)
    if name not in _BUILT:
        _BUILT[name] = build.sampler(long, model_of(long, guide))
    return _BUILT[name]


def draw(config, guide=None, **given):
    model = model_of(config, guide)
    params = weights(model)
    if guide is not None:
        params["guide"] = weights(model.guide, given.pop("guide_seed", 0))
    return sampler_of(config, guide)(params, build.grid(config.sample, model.process), 0, np.arange(4, dtype=np.int32),
                                     cond={"label": np.arange(4, dtype=np.int32) % 3}, chain_inputs=given)


def guided(name, **changes):
    return tiny(**{"sample__guidance__name": name, "sample__guidance__scale": 3.0, **changes})


def test_a_scale_of_1_is_no_guidance_and_3_is_guidance():
    plain = draw(tiny()).x
    np.testing.assert_allclose(draw(guided("apg", sample__guidance__scale=1.0)).x, plain, atol=1e-5)
    for name in ("classifier_free", "apg"):
        assert np.abs(draw(guided(name)).x - plain).max() > 0.1
        np.testing.assert_allclose(draw(guided(name), scale=1.0).x, plain, atol=1e-5)  # given to the chain


def test_apg_whose_parts_are_all_kept_is_classifier_free_guidance():
    kept = draw(guided("apg", sample__guidance__parallel=1.0)).x
    np.testing.assert_allclose(kept, draw(guided("classifier_free")).x, atol=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "deis"])  # without a memory of its own, and with one
def test_momentum_remembers(solver):
    config = dict(sample__solver=solver, sample__clip=True)
    one, none = (draw(guided("apg", sample__guidance__momentum=m, **config)) for m in (-0.5, 0.0))
    assert np.abs(one.x - none.x).max() > 1e-2 and one.evaluations == none.evaluations == 5
    # The first step has nothing to remember.
    short = [draw(guided("apg", sample__guidance__momentum=m, sample__steps=1, **config)).x for m in (-0.5, 0.0)]
    np.testing.assert_allclose(*short, atol=1e-5)
    almost = draw(guided("apg", sample__guidance__momentum=1e-12, **config))
    np.testing.assert_allclose(almost.x, none.x, atol=1e-4)


def test_autoguidance_by_the_model_itself_changes_nothing():
    plain = draw(tiny()).x
    config = guided("autoguidance", sample__guidance__guide="itself")
    np.testing.assert_allclose(draw(config, tiny()).x, plain, atol=1e-5)
    assert np.abs(draw(config, tiny(), guide_seed=1).x - plain).max() > 0.1


def test_a_guide_may_be_smaller_without_classes_and_of_another_process():
    config = guided("autoguidance", sample__guidance__guide="smaller")
    smaller = tiny(network__channels=4, network__num_classes=0, network__label_dropout=0.0)
    same = draw(config, smaller).x
    assert np.isfinite(same).all()
    # The guide's own process: a flow, asked at the times of the same log-SNR; v is not its prediction.
    other = config_lib.override(smaller, {"process.name": "vp", "prediction": "v"})
    assert np.isfinite(draw(config, other).x).all()


@pytest.mark.parametrize("changes, guide, words", [
    (dict(), None, ["sample.guidance.guide", "worse model"]),
    (dict(), tiny(data__size=4), ["draws images of"]),
    (dict(), tiny(network__num_classes=2), ["knows 2 classes", "this model 3"]),
    (dict(), tiny(process__steps=30), ["between_times"]),
    (dict(sample__guidance__name="apg", sample__guidance__momentum=-0.5, sample__solver="heun",
          sample__between_times=True), None, ["sample.guidance.momentum", "once a step"]),
    (dict(sample__guidance__name="classifier_free", sample__guidance__momentum=-0.5), None, ["momentum", "apg"]),
])
def test_what_cannot_be(changes, guide, words):
    config = guided("autoguidance", sample__guidance__guide="it", **{})
    with pytest.raises(ConfigError) as error:
        config = config_lib.override(config, {key.replace("__", "."): value for key, value in changes.items()})
        build.sampler(config, model_of(config, guide))
    assert all(word in str(error.value) for word in words), error.value


def test_apg_has_the_threshold_of_its_key():
    """x_0 moves by (scale - 1) d at most, d cut to the threshold."""
    from diffusion.core.continuous import VP
    from diffusion.core.parameterization import Prediction
    from diffusion.families import BY_NAME
    strong, weak = (np.full((1, 2, 2, 1), value, np.float32) for value in (1.0, -1.0))
    weak[0, 0] *= -3
    apg = BY_NAME["guidance"].make(guided("apg", sample__guidance__norm_threshold=0.5).sample.guidance)
    x0 = apg.rule(3.0)(VP(), Prediction(strong, 0 * strong), Prediction(weak, 0 * weak), strong, 0.5).x0
    assert 0.1 < np.linalg.norm(x0 - strong) <= (3.0 - 1) * 0.5 * 1.001


def test_the_label_for_no_class_comes_after_the_classes():
    assert build.model(tiny()).null_label == 3 and build.model(tiny(network__label_dropout=0.0)).null_label is None
