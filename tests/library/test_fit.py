"""The library without a config: fit, draw and their parts by name."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffusion
from diffusion.core import losses, parameterization
from diffusion.core.conditions import Condition
from diffusion.core.parameterization import VELOCITY
from diffusion.errors import ConfigError, DataError, DivergedError, FieldError
from diffusion.kinds.image import ImageSpec
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.flow_map import FlowMap

DATA = np.random.default_rng(0).standard_normal((100, 3)) * [1.0, 0.5, 0.1]


def init(key):
    return {"w": jax.random.normal(key, (3, 3)), "b": jnp.zeros(3)}


def apply(params, x, c_noise):
    return x @ params["w"] + params["b"][None] * c_noise[:, None]


MODEL = diffusion.Model(network=(init, apply), shape=(3,), process="edm", prediction="edm")
CHAIN = diffusion.Model(network=(init, apply), shape=(3,), process="cosine")
FIT = dict(data=DATA, batch_size=16, optimizer=optax.adam(1e-2))


@pytest.fixture(scope="module")
def six():
    return diffusion.fit(MODEL, steps=6, **FIT)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_training_that_goes_on_equals_one_that_was_not_cut(six):
    first = diffusion.fit(MODEL, steps=2, **FIT)
    equal(diffusion.fit(MODEL, steps=4, state=first, **FIT), six)
    assert int(first.step) == 2  # it was not overwritten


def test_the_seed_and_the_objective_matter(six):
    for other in (diffusion.fit(MODEL, steps=6, seed=1, **FIT),
                  diffusion.fit(MODEL, diffusion.objective(MODEL, weighting="edm", space="x0", density="log_normal"),
                                steps=6, **FIT)):
        assert not np.array_equal(other.params["online"]["params"]["w"], six.params["online"]["params"]["w"])


def test_the_metrics_of_each_step_are_reported():
    rows, rate = [], optax.linear_schedule(0.0, 1.0, 10)
    diffusion.fit(MODEL, steps=3, data=DATA, batch_size=16, optimizer=optax.sgd(rate), learning_rate=rate,
                  report=lambda step, row: rows.append((step, row)))
    assert [step for step, _ in rows] == [1, 2, 3]
    assert [row["learning_rate"] for _, row in rows] == pytest.approx([0.0, 0.1, 0.2])
    assert all(row["loss"] > 0 and row["grad_norm"] > 0 for _, row in rows)


def test_sample_i_depends_on_the_seed_and_i_alone(six):
    params = six.averages["ema"]
    some, more = (diffusion.draw(MODEL, params, times=5, count=count) for count in (3, 7))
    assert some.shape == (3, 3) and some.dtype == np.float32
    np.testing.assert_allclose(more[:3], some, rtol=1e-5)
    assert not np.allclose(diffusion.draw(MODEL, params, times=5, count=3, seed=1), some)
    by_parts = diffusion.draw(MODEL, params, solver=DDIM(), times=diffusion.grid(MODEL.process, "log_snr", 5), count=3)
    np.testing.assert_array_equal(by_parts, some)


def test_labels_reach_the_network_and_are_hidden_as_the_null_label():
    seen = []

    def told(params, x, c_noise, cond):
        jax.debug.callback(lambda c: seen.extend(c.tolist()), cond["label"])
        return x * params["w"]

    model = diffusion.Model(network=(lambda key: {"w": jnp.ones(())}, told), shape=(3,), process="flow",
                            prediction="velocity", num_classes=4, null_label=4)
    labelled = {"x0": DATA, "label": np.arange(100, dtype=np.int32) % 4}
    state = diffusion.fit(model, data=labelled, batch_size=64, steps=2, optimizer=optax.sgd(0.1),
                          condition_dropout={"label": 0.5})
    jax.effects_barrier()
    assert set(seen) == {0, 1, 2, 3, 4} and 0.3 < np.mean(np.array(seen) == 4) < 0.7
    seen.clear()
    diffusion.draw(model, state.params["online"], times=1, count=5, cond={"label": np.int32([3, 3, 2, 1, 0])})
    jax.effects_barrier()
    assert set(seen) >= {0, 1, 2, 3} and 4 not in seen


def test_images_of_bytes_are_scaled_and_flipped():
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), np.uint8)
    shape = dict(shape=(4, 4, 1), process="cosine", prediction="v")
    network = lambda key: {"w": jnp.ones(())}, lambda params, x, c_noise: params["w"] * x  # noqa: E731
    model = diffusion.Model(network=network, **shape)
    scaled = (2.0 * images.astype(np.float32) - 255) / 255
    flipped = diffusion.Model(network=network, spec=ImageSpec(shape=(4, 4, 1), flip=True), process="cosine",
                              prediction="v")
    states = [diffusion.fit(one, data=x, batch_size=8, steps=2, optimizer=optax.sgd(0.1))
              for x, one in ((images, model), (scaled, model), (images, flipped))]
    equal(states[0], states[1])
    assert states[2].params["online"]["params"]["w"] != states[0].params["online"]["params"]["w"]
    assert diffusion.draw(model, states[0].params["online"], times=3, count=2).shape == (2, 4, 4, 1)


WRONG = DATA.copy()
WRONG[17, 1] = np.nan


@pytest.mark.parametrize(("given", "kind", "words"), [
    (dict(data=WRONG), DataError, "x of example 17 in the data is NaN or infinite"),
    (dict(data={"x0": DATA, "mask": np.arange(100)[:, None] != 5}), DataError, "mask of example 5.*no valid entry"),
    (dict(data={"x0": DATA, "mask": np.ones((100, 2))}), DataError, r"mask in the data is \[100, 2\]"),
    (dict(data={"x0": np.zeros((100, 3), np.uint8), "mask": np.ones((100, 3))}), DataError, "Images have no mask"),
    (dict(model=dataclasses.replace(MODEL, shape=(4, 4, 1), spec=ImageSpec(shape=(4, 4, 1))),
          data=np.zeros((9, 4, 4, 1))), DataError, "float32, but the model's kind of data, image, takes uint8"),
    (dict(data=DATA[:, :2]), DataError, r"\[100, 2\], but the model's are \[N, 3\]"),
    (dict(data=DATA.astype(int)), DataError, "int64: give floats"),
    (dict(data={"x0": DATA, "label": np.zeros(100, int)}), ConfigError, "'label' was given.*does not declare"),
    (dict(data={"x": DATA}), DataError, "give \"x0\""),
    (dict(optimizer=None), FieldError, "optimizer.*missing"),
    (dict(objective=[diffusion.Update(loss=None, optimizer=optax.sgd(1.0))]), FieldError, "optimizer.*each Update"),
    (dict(objective=[diffusion.Update(loss=None, optimizer=optax.sgd(1.0))], optimizer=None, learning_rate=abs),
     FieldError, "learning_rate.*each Update"),
    (dict(steps=0), FieldError, "steps"),
    (dict(batch_size=0), FieldError, "batch_size"),
    (dict(condition_dropout={"label": 0.1}), FieldError, "null_label"),
    (dict(averages={"raw": diffusion.Average(rule=diffusion.Copy(every=1))}), FieldError, "'raw'"),
    (dict(frozen={"teacher": {}}), FieldError, "'teacher'.*has no model"),
    (dict(model={"online": MODEL, "teacher": dataclasses.replace(MODEL, conditions={"label": Condition()})},
          frozen={"teacher": {}}), FieldError, "'teacher'.*conditions label.*takes none"),
    (dict(frozen={"ema": {}}), FieldError, "'ema'.*two")])
def test_what_cannot_be_fitted_is_refused_before_any_compilation(given, kind, words):
    with pytest.raises(kind, match=words):
        diffusion.fit(**dict(model=MODEL, steps=2) | FIT | given)


def test_a_networks_own_projection_and_its_untrained_parameters_are_honoured():
    class Own:
        untrained = ("/b$",)
        init = staticmethod(lambda key, *inputs: {"params": {**init(key), "b": jnp.ones(3)}})
        apply = staticmethod(lambda variables, x, c_noise, *others: apply(variables["params"], x, c_noise))

    class Projected(Own):
        project = staticmethod(lambda params: params | {"w": jnp.round(params["w"], 1)})

    plain, projected = (diffusion.fit(dataclasses.replace(MODEL, network=network()), steps=1, **FIT | dict(
        optimizer=optax.adamw(0.01, weight_decay=0.1))).params["online"]["params"] for network in (Own, Projected))
    assert plain["b"].tolist() == projected["b"].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(projected["w"], jnp.round(plain["w"], 1))
    assert not np.array_equal(projected["w"], plain["w"])


def test_what_is_masked_may_be_nan():
    mask = np.arange(3) < np.arange(100)[:, None] % 3 + 1
    states = [diffusion.fit(MODEL, steps=2, **FIT | dict(data={"x0": np.where(mask, DATA, padding), "mask": mask}))
              for padding in (0, np.nan)]
    equal(*states)


def test_a_loss_that_diverges_stops_with_its_step():
    with pytest.raises(DivergedError, match=r"stopped at step \d+: the loss is"):
        diffusion.fit(MODEL, steps=30, data=DATA, batch_size=16, optimizer=optax.sgd(1e12))


@pytest.mark.parametrize(("make", "kind", "words"), [
    (lambda: diffusion.Model(network=lambda x: x, shape=(3,), process="edm"), TypeError, "pair of functions"),
    (lambda: diffusion.Model(network=(init, apply), shape=(3,), process="edn"), ConfigError, "'edn'.*Did you mean"),
    (lambda: diffusion.objective(MODEL, density_men=1.0, density="log_normal"), FieldError, "density_men"),
    (lambda: diffusion.objective(MODEL, "vlbb"), ConfigError, "'vlbb'"),
    (lambda: diffusion.objective(MODEL, "vlb"), FieldError, "loss.*continuous time: use continuous_vlb"),
    (lambda: diffusion.objective(CHAIN, "continuous_vlb"), FieldError, "loss.*use vlb"),
    (lambda: diffusion.objective(CHAIN, "hybrid"), FieldError, "loss.*learned_range=True"),
    (lambda: diffusion.objective(dataclasses.replace(CHAIN, learned_range=True)), FieldError, "variance head"),
    (lambda: diffusion.objective(CHAIN, density="log_normal"), FieldError, "density.*real times"),
    (lambda: diffusion.objective(MODEL, density="importance"), FieldError, "density.*whole times"),
    (lambda: diffusion.Model(network=(init, apply), shape=(3,), process="edm", null_label=2), FieldError, "null_label"),
    (lambda: diffusion.draw(MODEL, None, count=0), FieldError, "count"),
    (lambda: diffusion.grid("cosine", "linspace", 2000), FieldError, "1 .. 1000"),
    (lambda: diffusion.grid("edm", "linspace", 20), FieldError, "discrete chain")])
def test_what_no_part_has_is_refused_by_name(make, kind, words):
    with pytest.raises(kind, match=words):
        make()


def test_public_names_are_imported_when_asked_for():
    assert set(diffusion.__all__) == {name for name in diffusion.__all__ if getattr(diffusion, name)}
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        diffusion.fitt  # noqa: B018


def test_minibatch_optimal_transport_pairs_each_datum_with_the_nearest_noise():
    """The pairs' total squared distance is the least of all permutations, and the marginals stay."""
    from scipy.optimize import linear_sum_assignment

    from diffusion.train.couplings import minibatch_ot
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal((2, 16, 3)).astype(np.float32)
    same, paired, cond = jax.jit(minibatch_ot())(x0, noise, None)
    np.testing.assert_array_equal(same, x0)
    np.testing.assert_array_equal(np.sort(paired, axis=0), np.sort(noise, axis=0))
    cost = ((x0[:, None] - noise) ** 2).sum(-1)
    rows, columns = linear_sum_assignment(cost)
    assert ((x0 - paired) ** 2).sum() == pytest.approx(cost[rows, columns].sum(), rel=1e-5)
    assert cond is None and ((x0 - paired) ** 2).sum() < 0.7 * ((x0 - noise) ** 2).sum()


def test_a_coupling_works_on_the_whole_batch_before_micro_batches_and_the_default_is_the_identity(six):
    identity = dataclasses.replace(diffusion.objective(MODEL), coupling=lambda x0, noise, cond: (x0, noise, cond))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
                 diffusion.fit(MODEL, identity, steps=6, **FIT).params, six.params)
    flow = diffusion.Model(network=(init, apply), shape=(3,), process="flow", prediction="velocity")
    paired = diffusion.objective(flow, coupling="minibatch_ot")
    whole, parts = (diffusion.fit(flow, paired, steps=3, accumulate=n, **FIT) for n in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole.params, parts.params)
    alone = diffusion.fit(flow, steps=3, **FIT)
    assert abs(alone.params["online"]["params"]["w"] - whole.params["online"]["params"]["w"]).max() > 1e-4


def mean_velocity(params, x, c_noise, cond=None, keys=None):
    """u(x, t, r) = (x_r - x_t) / (r - t) of data N(0, STD^2) on the straight path, where x_t has the standard deviation
    s(t) and the flow keeps x / s; at r = t the velocity itself."""
    t, r = c_noise[:, :1] / 1000, c_noise[:, 1:] / 1000
    std = lambda t: jnp.sqrt((1 - t) ** 2 * 0.5**2 + t**2)  # noqa: E731
    slope = (t - (1 - t) * 0.25) / std(t)
    close = jnp.abs(t - r) < 1e-6
    return x / std(t) * jnp.where(close, slope, (std(t) - std(r)) / jnp.where(close, 1, t - r))


def test_a_flow_map_jumps_as_far_as_many_steps_of_its_denoiser():
    """Geng et al. (2025), Eq. 12, with the exact mean velocity of a normal distribution."""
    model = diffusion.Model(network=(lambda key: {}, mean_velocity), shape=(3,), process="flow", prediction=VELOCITY,
                            two_times=True)
    draw = lambda solver, times: diffusion.draw(model, {"params": {}}, solver=solver, times=times, count=500)  # noqa: E731
    once, some = (draw(FlowMap(), np.linspace(1, 1 / n, n)) for n in (1, 4))
    np.testing.assert_allclose(once, some, atol=1e-5)
    np.testing.assert_allclose(once, draw("heun", np.linspace(1.0, 1e-3, 60)), atol=5e-3)
    assert once.std() == pytest.approx(0.5, rel=0.05)
    diffusion_ = model.denoiser({"params": {}})
    x = jnp.ones((2, 3))
    np.testing.assert_allclose(diffusion_.flow_map(x, 0.4, 0.4), x, rtol=1e-5)
    assert diffusion_.network(x, 0.4, None, r=0.1)["f"].shape == (2, 3)


def test_a_flow_map_follows_its_process_and_is_left_out_by_what_cannot_change_it():
    model = diffusion.Model(network=(lambda key: {}, mean_velocity), shape=(3,), process="flow", prediction=VELOCITY,
                            two_times=True)
    ours = model.denoiser({"params": {}})
    there = parameterization.on_process(ours, diffusion.part("process", "edm"))
    x = jnp.full((2, 3), 3.0)
    level, end = 4.0, 0.5  # x / alpha at sigma / alpha; on the flow process t = level / (1 + level)
    expected = ours.flow_map(x / (1 + level), level / (1 + level), end / (1 + end)) * (1 + end)
    np.testing.assert_allclose(there.flow_map(x, level, end), expected, rtol=1e-5)
    assert parameterization.clip_x0(ours).flow_map is None and parameterization.clip_x0(ours).network is None
    with pytest.raises(ValueError, match="needs a flow map"):
        diffusion.draw(MODEL, MODEL.init(jax.random.key(0)), solver=FlowMap(), times=1, count=2)
    with pytest.raises(ValueError, match="two_times=True"):
        MODEL.denoiser(MODEL.init(jax.random.key(0))).network(x, 1.0, None, r=0.5)


def test_a_density_may_take_several_uniform_numbers_and_the_step():
    from diffusion.core.time_densities import TimeDensity, Times, independent, stratified
    seen = []

    @dataclasses.dataclass(frozen=True)
    class TwoTimes(TimeDensity):
        uniforms = 3

        def draw(self, u, process, state=(), step=0):
            jax.debug.callback(lambda *x: seen.append(x), u, step)
            t, r = jnp.maximum(u[:, 0], u[:, 1]), jnp.minimum(u[:, 0], u[:, 1])
            return Times(1e-3 + 0.99 * t, jnp.ones(len(u)), r=r)

    def loss(bind, inputs):
        assert inputs.times.r.shape == inputs.times.t.shape
        return losses.of_set(losses.make_denoising_loss(lambda process, times: jnp.ones(16), VELOCITY))(bind, inputs)

    flow = diffusion.Model(network=(init, apply), shape=(3,), process="flow", prediction="velocity")
    for even in (False, True):
        diffusion.fit(flow, diffusion.Objective(loss=loss, density=TwoTimes(), stratified=even), steps=2, **FIT)
    jax.effects_barrier()
    assert [int(step) for _, step in seen] == [0, 1, 0, 1] and seen[0][0].shape == (16, 3)
    assert np.ptp(np.diff(np.sort(seen[2][0][:, 0]))) < 1e-5 < np.ptp(np.diff(np.sort(seen[2][0][:, 1])))
    keys = jax.random.split(jax.random.key(0), 50)
    three = np.asarray(independent(keys, 3))
    np.testing.assert_array_equal(three[:, :1], independent(keys))
    assert len(np.unique(three)) == 150 and np.abs(np.corrcoef(three.T) - np.eye(3)).max() < 0.5
    assert stratified(keys[0], jnp.arange(4), 4).shape == (4, 1)


class Read:
    """A random-access source of the rows of arrays."""

    def __init__(self, **arrays):
        self.arrays = arrays

    def __len__(self):
        return len(self.arrays["x0"])

    def __getitem__(self, i):
        return {name: rows[i] for name, rows in self.arrays.items()}


def test_a_source_that_is_read_example_by_example_trains_as_its_arrays_do(six):
    equal(diffusion.fit(MODEL, steps=6, **FIT | {"data": Read(x0=DATA)}), six)
    half = diffusion.fit(MODEL, steps=2, **FIT | {"data": Read(x0=DATA)})
    equal(diffusion.fit(MODEL, steps=4, state=half, **FIT | {"data": Read(x0=DATA)}), six)


@pytest.mark.parametrize("data, message", [
    (Read(x0=DATA[:0]), "have no example"),
    (Read(x0=DATA[:, :2]), "The data are .1, 2., but the model's are .N, 3."),
    (Read(x0=DATA, label=np.zeros(100, int)), "'label' was given, but the model does not declare it"),
    (Read(x0=[*DATA[:5], DATA[5, :2]]), "The data are .1, 2."),
    (Read(x0=[*DATA[:5], np.array([1, 2, np.nan])]), "is NaN or infinite"),
    (type("Words", (), {"__len__": lambda self: 3, "__getitem__": lambda self, i: "x"})(), "must be a mapping"),
    (type("Other", (), {"__len__": lambda self: 3, "__getitem__": lambda self, i: {"y": 1}})(), "but no .x0."),
])
def test_examples_that_do_not_fit(data, message):
    with pytest.raises((DataError, ConfigError), match=message):
        diffusion.fit(MODEL, steps=3, **FIT | {"data": data})
