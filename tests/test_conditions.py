"""Conditions by name: a dict of a label, a vector and a number passes through every program and every part."""
import dataclasses

import conditions_parts
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import DiffusionPipeline, build, guidance, tasks
from diffusion import config as config_lib
from diffusion.build.conditions import declared
from diffusion.core import conditions, grids
from diffusion.core.continuous import VP
from diffusion.core.parameterization import EPS, Diffusion
from diffusion.core.streams import example_keys
from diffusion.data.sources import gather_examples
from diffusion.errors import ConfigError
from diffusion.families import BY_NAME
from diffusion.samplers.base import sample

SHAPES = {"label": (), "vector": (3,), "kept": ()}
NULLS = {"label": 9, "vector": 0.0}  # `kept` is never hidden
PROCESS = VP()
STEPS = grids.pairs(np.linspace(1.0, 0.1, 3))
COND = {"label": np.arange(4, dtype=np.int32), "vector": np.random.default_rng(0).normal(size=(4, 3)),
        "kept": np.arange(4) / 4}
TOLD = {"network.name": "conditions_parts:Told", "network.num_classes": 10, "data.name": "conditions_parts:rich",
        "data.size": 8, "data.channels": 1, "process.steps": 20, "sample.steps": 4, "sample.batch_size": 4,
        "train.batch_size": 8, "optimizer.warmup": "2 steps", "train.duration": "4 steps",
        "train.log_every": "2 steps", "train.sample_every": "4 steps", "train.checkpoint_every": "2 steps",
        "likelihood.steps": 3}


def denoise(x, t, cond):
    """Depends on each condition of its row; wrong names, or rows that do not fit x, end the trace."""
    assert {name: np.shape(value) for name, value in cond.items()} == {
        name: (len(x), *shape) for name, shape in SHAPES.items()}, jax.tree.map(np.shape, cond)
    told = cond["label"] + cond["vector"].sum(-1) + 10 * cond["kept"]
    eps = jnp.tanh(x + 0.1 * told.reshape(-1, *[1] * (x.ndim - 1)))
    return EPS.predict(PROCESS, eps, x, t)


DIFFUSION = Diffusion(PROCESS, denoise)


def run(solver, diffusion=DIFFUSION, x=None):
    """The chain, whose row i must not depend on the other rows' conditions."""
    x = np.random.default_rng(1).normal(size=(4, 2, 2, 1)).astype(np.float32) if x is None else x
    keys = example_keys(jax.random.key(0), "sample", 0, np.arange(4))
    chain = jax.jit(lambda x, keys, cond: sample(solver, diffusion, STEPS, x, keys, cond)[1])
    whole = np.asarray(chain(x, keys, COND))
    other = {name: np.concatenate([value[:3], value[:1]]) for name, value in COND.items()}
    changed = np.asarray(chain(x, keys, other))
    np.testing.assert_allclose(changed[:3], whole[:3], atol=1e-5)
    assert np.abs(changed[3] - whole[3]).max() > 1e-4
    return whole


def ddim():
    return BY_NAME["solver"].make(config_lib.base(solver="ddim").sample, steps=3)


@pytest.mark.parametrize("name", sorted(BY_NAME["solver"].members()))
def test_every_solver(name):
    if name == "adaptive_ode":
        pytest.importorskip("diffrax")
    run(BY_NAME["solver"].make(config_lib.base(solver=name).sample, steps=3))


@pytest.mark.parametrize("rule", ["linear", "plus_plus", "projected"])
def test_every_rule_of_guidance(rule):
    guided = guidance.guided(DIFFUSION, guidance.condition_pair(DIFFUSION, NULLS), getattr(guidance, rule)(0.7))
    run(ddim(), guided)
    run(ddim(), guidance.guided(guided, guidance.model_pair(guided, DIFFUSION), guidance.linear(2.0)))


def test_momentum_and_a_classifier():
    run(guidance.Momentum(solver=ddim(), momentum=-0.5, pair=lambda d: guidance.condition_pair(d, NULLS),
                          rule=guidance.projected(2.0)))
    run(ddim(), guidance.classifier(DIFFUSION, lambda x, t, cond: -cond["kept"] * jnp.sum(x**2, (1, 2, 3)), 1.0))


@pytest.mark.parametrize("name", ["continuous_vlb", "ode"])
def test_every_estimator_in_continuous_time(name):
    config = config_lib.override(config_lib.base(process="vp", estimator=name), {"likelihood.steps": 2})
    estimator = BY_NAME["estimator"].make(config.likelihood, process=PROCESS)
    x0 = np.zeros((4, 2, 2, 1), np.float32)
    keys = example_keys(jax.random.key(0), "likelihood", 0, np.arange(4))
    found = jax.jit(lambda cond: estimator(keys, DIFFUSION, x0, cond).bits_per_dim)(COND)
    assert found.shape == (4,) and np.isfinite(found).all()


@pytest.mark.parametrize("task", ["replacement", "inversion"])
def test_tasks_that_wrap_a_solver(task):
    known = np.zeros((4, 2, 2, 1), np.float32)
    wrapped = (tasks.Replacement(solver=ddim(), known=known, project=lambda x: x * np.eye(2)[None, ..., None])
               if task == "replacement" else tasks.Inversion(iterations=2))
    run(wrapped)


def test_the_weak_side_has_null_where_there_is_one():
    seen = []
    watching = Diffusion(PROCESS, lambda x, t, cond: seen.append(cond) or denoise(x, t, cond))
    guidance.condition_pair(watching, NULLS)(jnp.zeros((4, 2, 2, 1)), jnp.float32(0.5), COND)
    (both,) = seen
    np.testing.assert_array_equal(both["label"], [0, 9, 1, 9, 2, 9, 3, 9])
    np.testing.assert_array_equal(both["vector"][1::2], np.zeros((4, 3)))
    np.testing.assert_array_equal(both["kept"], np.repeat(COND["kept"], 2))


# ---- dropout, defaults and errors ---------------------------------------------------------------------------------

def test_dropout_is_by_key_and_by_position():
    positions = jnp.arange(2000)
    cond = {name: np.ones((2000, *shape), np.float32) for name, shape in SHAPES.items()}
    keys = lambda order: lambda stream: example_keys(jax.random.key(0), stream, 0, positions[order])  # noqa: E731
    drop = jax.jit(lambda order: conditions.dropped(cond, {"label": 0.1, "vector": 0.3}, NULLS, keys(order)))
    found = jax.tree.map(np.asarray, drop(np.arange(2000)))
    hidden = {"label": found["label"] == 9, "vector": (found["vector"] == 0).all(-1)}
    assert abs(hidden["label"].mean() - 0.1) < 0.03 and abs(hidden["vector"].mean() - 0.3) < 0.04
    assert abs(np.mean(hidden["label"] & hidden["vector"]) - 0.03) < 0.015  # independent
    np.testing.assert_array_equal(found["kept"], 1)
    assert set(np.unique(found["vector"].sum(-1))) == {0, 3}  # whole vectors
    order = np.random.default_rng(0).permutation(2000)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[order]), dict(drop(order)), found)


def test_defaults_and_errors_of_given_conditions():
    declared = conditions_parts.Told(num_classes=10).cond
    given = {name: np.zeros((2, *shape), np.float32 if shape else int) for name, shape in SHAPES.items()}
    found = conditions.complete(declared, given, 2, "network.name = 'told'")
    assert found["augment"].shape == (2, 2) and found["kept"].dtype == np.float32 and found["label"].dtype == np.int32
    for change, message in [
            ({"text": np.zeros(2)}, "condition 'text' was given, but network.name = 'told' does not declare it. It "
                                    "declares: label, vector, kept, augment"),
            ({"vector": np.zeros((2, 4))}, r"'vector' of network.name = 'told' must be float32 \[2, 3\], .* \[2, 4\]"),
            ({"label": np.zeros(2)}, r"'label' of network.name = 'told' must be int32 \[2\], but it is float"),
            ({"kept": None}, "network.name = 'told' needs the condition 'kept', float32 .* no default and was not")]:
        wrong = {name: value for name, value in (given | change).items() if value is not None}
        with pytest.raises(ConfigError, match=message):
            conditions.complete(declared, wrong, 2, "network.name = 'told'")


def config_of(**changes):
    return config_lib.override(config_lib.base(solver="ddim"),
                               TOLD | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize("changes, message", [
    (dict(train__condition_dropout=("kept: 0.1",)), "'kept: 0.1': cannot be hidden: .*Told.* no value for 'kept'"),
    (dict(train__condition_dropout=("text: 0.1",)), "names a condition that network.name = .*Told.* does not declare"),
    (dict(train__condition_dropout=("vector: 1.5",)), "is not \"NAME: RATE\""),
    (dict(train__condition_dropout=("label: 0.1",)), "network.label_dropout"),
    (dict(train__condition_dropout=("vector: 0.1", "vector: 0.2")), "a second rate"),
])
def test_rates_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        build.model(config_of(**changes))


def test_data_without_a_condition_are_refused_before_training():
    config = config_of(data__name="digits")
    with pytest.raises(ConfigError, match="Told' needs the condition 'vector', which has no default, and config.data "
                                          r"\(digits\) does not hold it. It holds: image, label"):
        build.training(config, build.model(config))


# ---- whole programs -----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def told():
    config = config_of(network__label_dropout=0.2, train__condition_dropout=("vector: 0.5",),
                       sample__guidance__name="classifier_free", sample__guidance__scale=2.0)
    model = build.model(config)
    return config, model, conditions_parts.weights(model.abstract_params)


def test_training_takes_all_conditions_of_the_data(told):
    config, model, _ = told
    parts = build.training(config, model)
    batch = jax.tree.map(lambda x: jnp.asarray(x)[None], next(parts.data))
    state = parts.create_state()
    before = jax.device_get(state)
    for _ in range(2):  # the first at the rate 0 of the warm-up
        state, metrics = parts.program(0)(state, batch, None)
    assert np.isfinite(metrics.loss).all()
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before.params, jax.device_get(state.params))
    for name in ("vector", "kept", "label"):
        assert max(jax.tree.leaves(moved["online"]["params"][name])) > 0, name


def test_samples_have_the_conditions_of_the_records(told):
    config, model, params = told
    found = build.conditions(config, model)(np.array([1, 41], np.int32))
    np.testing.assert_array_equal(found["vector"], np.full((2, 3), 1 / 40, np.float32))
    assert set(found) == {"label", "vector", "kept"}
    (x,) = build.generate(config, model)(params, 0, 0, 4)
    assert x.shape == (4, 8, 8, 1)


def test_the_pipeline_takes_conditions_by_name(told):
    config, model, params = told
    pipe = DiffusionPipeline(config, params, model=model)
    call = dict(batch_size=4, num_inference_steps=4, output_type="np", progress_bar=False)
    of_records = pipe(**call).images
    (x,) = build.generate(config, model)(params, 0, 0, 4)
    record = gather_examples(conditions_parts.Rich(), np.arange(4))
    given = {name: record[name] for name in ("vector", "kept")}
    np.testing.assert_array_equal(pipe(**call, class_labels=record["label"], conditions=given).images, of_records)
    np.testing.assert_array_equal((x + 1) / 2, of_records)
    other = pipe(**call, class_labels=record["label"], conditions=given | {"augment": np.ones((4, 2))}).images
    assert np.abs(other - of_records).max() > 1e-3
    for wrong, message in [({"text": np.zeros(4)}, "'text' was given, but network.name = 'conditions_parts:Told' does"),
                           ({"vector": np.zeros((3, 3))}, r"must be \[4, ...\]"), ({"label": [1] * 4}, "class_labels"),
                           (3, "conditions must be a dict")]:
        with pytest.raises(ConfigError, match=message):
            pipe(**call, conditions=wrong)


def test_likelihoods_take_the_conditions_of_the_records(told):
    config, model, params = told
    source = build.training_images(config)
    evaluator = build.evaluator(config, model, 0)
    read = lambda indices: gather_examples(source, indices)  # noqa: E731
    bits = evaluator(params, read, 6)["bits_per_dim"]
    hidden = lambda indices: read(indices) | {"vector": np.zeros((len(indices), 3), np.float32)}  # noqa: E731
    assert np.isfinite(bits) and abs(bits - evaluator(params, hidden, 6)["bits_per_dim"]) > 1e-6


def test_a_chain_of_the_bound_takes_them(told):
    config, model, _ = told
    assert config.likelihood.estimator == "vlb" and set(model.conditions) == {*SHAPES, "augment"}
    assert model.conditions["label"].null == 10 and model.conditions["kept"].null is None


def test_a_network_must_declare_the_label_that_it_is_given():
    @dataclasses.dataclass
    class Silent:
        cond = {}

    config = config_of(network__name="unet")
    with pytest.raises(ConfigError, match="does not fit network.name = 'unet', whose `cond` declares no condition"):
        declared(config, Silent())
