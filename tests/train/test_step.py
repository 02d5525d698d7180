"""The training step: what its result may not depend on, and what it must."""
import dataclasses
import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import program
import pytest

from diffusion.core import losses, parameterization, processes, schedules, streams, time_densities, weightings
from diffusion.core.conditions import Condition
from diffusion.core.parameterization import EPS
from diffusion.kinds.base import preparation
from diffusion.kinds.image import ImageSpec
from diffusion.networks.unet import UNet
from diffusion.parallel import sharding
from diffusion.train import state as states
from diffusion.train import step
from diffusion.train.averages import Average, HalfLife, Rule
from diffusion.train.updates import Update

SIZE, BATCH = 8, 8
PROCESS = processes.DiscreteProcess(betas=schedules.cosine(100))
NETWORK = UNet(channels=8, multipliers=(1,), blocks=1, attention_resolutions=(), groups=4, dropout=0.2, out_channels=1)
OPTIMIZER = optax.adam(1e-3)
AVERAGES = {"ema": Average(rule=HalfLife(half_life=100.0, warmup_ratio=0.0))}


def init_state(params, optimizer, statistics=()):
    """The first state of a plain training."""
    return states.init_state({"online": params}, {"online": optimizer}, AVERAGES, statistics)


def init(key):
    return NETWORK.init(key, jnp.zeros((1, SIZE, SIZE, 1)), jnp.zeros(1))


LOSS = losses.of_set(losses.make_denoising_loss(weightings.in_space(None, EPS)))
UNIFORM = time_densities.UniformDiscrete()
IMPORTANCE = time_densities.Importance(steps=4, history=2)
SHORT = processes.DiscreteProcess(betas=schedules.linear(4, beta_start=0.01, beta_end=0.5))


def make(accumulate=1, flip=True, network=NETWORK.apply, seed=0, density=UNIFORM, stratified=False, process=PROCESS,
         optim=OPTIMIZER, learning_rate=None, num_classes=0, label_dropout=0.0, **others):
    return step.make_train_step(
        updates=[Update(loss=LOSS, optimizer=optim, learning_rate=learning_rate)], density=density,
        denoisers={"online": parameterization.make_denoiser(lambda params: process, EPS, network)},
        stratified=stratified, averages=AVERAGES, seed=seed,
        prepare=preparing(flip, num_classes, label_dropout), accumulate=accumulate,
        log_snr_edges=np.linspace(-10, 10, 6), **others)


def preparing(flip=False, num_classes=0, label_dropout=0.0):
    declared = {"label": Condition(dtype="int32", null=num_classes)} if num_classes else {}
    return preparation(ImageSpec(shape=(SIZE, SIZE, 1), flip=flip), declared,
                       {"label": label_dropout} if label_dropout else {})


@functools.cache
def jitted(*args, **kwargs):
    """The same settings: one compilation for all tests."""
    return jax.jit(make(*args, **kwargs))


def tiny(params, x, c_noise, cond, keys):
    """A network that compiles at once."""
    return params["w"] * x + params["b"] * c_noise[:, None, None, None] / 100


TINY = {"w": np.float32(0.3), "b": np.float32(-0.2)}


def batch(k=0, images=None):
    rng = np.random.default_rng(k)
    images = rng.integers(0, 256, (BATCH, SIZE, SIZE, 1), np.uint8) if images is None else images
    return {"image": images, "label": np.zeros(BATCH, np.int32), "position": np.arange(BATCH, dtype=np.int32)}


@pytest.fixture(scope="module")
def state():
    """Every parameter random: at its own start the network is zero, and its loss does not depend on the images."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return init_state(jax.tree.unflatten(tree, [jnp.asarray(0.1 * rng.standard_normal(x.shape), jnp.float32)
                                                for x in leaves]), OPTIMIZER)


def assert_close(a, b, rtol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), a, b)


@pytest.mark.slow
def test_accumulation_changes_rounding_only(state):
    (one, m1), (four, m4) = (jitted(accumulate=a)(state, batch()) for a in (1, 4))
    np.testing.assert_allclose(m4.loss, m1.loss, rtol=1e-6)
    np.testing.assert_allclose(m4.grad_norm, m1.grad_norm, rtol=1e-5)
    np.testing.assert_allclose(m4.bin_loss, m1.bin_loss, rtol=1e-5)
    # Adam's first update is lr * sign(gradient): compare its first moment, which is linear in the gradient.
    assert_close(four.opt_state["online"][0].mu, one.opt_state["online"][0].mu, 1e-6)


def test_the_order_of_rows_does_not_matter_since_draws_follow_the_position(state):
    b = batch()
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    train_step = jitted()
    (_, straight), (_, shuffled) = train_step(state, b), train_step(state, {k: v[order] for k, v in b.items()})
    np.testing.assert_allclose(shuffled.loss, straight.loss, rtol=1e-6)
    wrong = {**b, "image": b["image"][order]}  # the same images at other positions meet other noise
    assert abs(train_step(state, wrong)[1].loss - straight.loss) > 1e-4


def test_no_two_examples_steps_seeds_or_streams_share_a_key():
    keys = np.concatenate([jax.random.key_data(streams.example_keys(jax.random.key(seed), stream, k, jnp.arange(64)))
                           for seed in (0, 1) for stream in ("loss", "dropout", "flip") for k in (0, 1)])
    assert len({tuple(k) for k in keys}) == len(keys)


def test_two_equal_examples_of_a_batch_get_other_noise_times_flips_and_dropout():
    """One public JAX code base gave every device the same noise: equal images must not get equal losses."""
    image = np.broadcast_to(np.arange(64, dtype=np.uint8).reshape(1, SIZE, SIZE, 1), (BATCH, SIZE, SIZE, 1))
    seen = drawn(np.arange(BATCH), image)
    assert len({row.tobytes() for row in seen["x"]}) == BATCH
    assert len(set(seen["c_noise"].tolist())) > BATCH // 2
    assert len({k.tobytes() for k in seen["keys"]}) == BATCH


def test_on_device_data_gives_the_same_step():
    images = np.random.default_rng(5).integers(0, 256, (20, SIZE, SIZE, 1), np.uint8)
    index = np.array([4, 19, 0, 7, 7, 2, 11, 3], np.int32)
    dataset = {"image": jnp.asarray(images), "label": jnp.zeros(20, jnp.int32)}
    train_step, state = jitted(network=tiny), init_state(jax.tree.map(jnp.asarray, TINY), OPTIMIZER)
    host, m1 = train_step(state, batch(images=images[index]))
    device, m2 = train_step(state, {"index": index, "position": np.arange(BATCH, dtype=np.int32)}, dataset)
    assert m1.loss == m2.loss
    jax.tree.map(np.testing.assert_array_equal, host.params["online"], device.params["online"])


def test_ema_follows_the_parameters(state):
    new, _ = jitted()(state, batch())
    d = 0.5 ** (BATCH / 100)
    assert_close(new.averages["ema"], jax.tree.map(
        lambda e, p: d * e + (1 - d) * p, state.averages["ema"], new.params["online"]), 1e-6)
    assert int(new.step) == 1


def test_metrics_say_where_the_loss_is_bad():
    def broken(params, x, c_noise, cond, keys):  # NaN where the time label is high, the noisy end
        return jnp.where(c_noise[:, None, None, None] > 60, jnp.nan, tiny(params, x, c_noise, cond, keys))

    state = init_state(jax.tree.map(jnp.asarray, TINY), OPTIMIZER)
    _, good = jitted(network=tiny)(state, batch())
    assert np.isnan(good.bad_log_snr).all() and (good.bad_position == -1).all() and np.isfinite(good.loss)
    assert good.bin_count.sum() == BATCH
    np.testing.assert_allclose(good.bin_loss.sum() / BATCH, good.loss, rtol=1e-6)
    _, bad = jitted(network=broken)(state, batch())
    assert np.isnan(bad.loss) and not bad.skipped
    named = np.asarray(bad.bad_position >= 0)
    assert 0 < named.sum() < BATCH and (np.diff(bad.bad_position[named]) > 0).all()
    assert (bad.bad_log_snr[named] < float(PROCESS.log_snr(60))).all() and np.isnan(bad.bad_log_snr[~named]).all()


def test_a_step_that_is_not_finite_is_skipped_if_asked():
    def overflowing(params, x, c_noise, cond, keys):
        return tiny(params, x, c_noise, cond, keys) + jnp.where(params["b"] > 0, jnp.inf, 0)

    train_step = jitted(network=overflowing, skip_nonfinite=True)
    for b, skipped in ((-0.2, 0), (0.2, 1)):
        start = init_state(jax.tree.map(jnp.asarray, TINY | {"b": np.float32(b)}), OPTIMIZER)
        new, metrics = train_step(start, batch())
        assert metrics.skipped == skipped and new.step == 1
        same = [np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (start.params, new.params)))]
        assert all(same) if skipped else not any(same)
        assert new.opt_state["online"][0].count == 1 - skipped


def test_the_rate_is_the_steps_also_after_a_step_that_was_skipped():
    """Logged and applied: 0.1 at the first step, 0.5 at the second, which the decay after it counts from."""
    rate, w = lambda n: jnp.where(n == 0, 0.1, 0.5), jnp.float32  # noqa: E731
    overflowing = lambda params, x, *_: params["w"] * x * jnp.where(params["w"] > 1, jnp.inf, 1)  # noqa: E731
    optim = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(rate))
    train_step = jax.jit(make(network=overflowing, optim=optim, skip_nonfinite=True, learning_rate=rate))
    state = init_state({"w": w(2.0)}, optim)
    state, metrics = train_step(state, batch())
    assert metrics.skipped and metrics.learning_rate == pytest.approx(0.1) and state.params["online"]["w"] == 2
    state, metrics = train_step(dataclasses.replace(state, params={"online": {"w": w(0.3)}}), batch())
    assert not metrics.skipped and metrics.learning_rate == pytest.approx(0.5)
    assert abs(state.params["online"]["w"] - 0.3) == pytest.approx(0.5, rel=1e-4)  # Adam's first step is the rate


def test_several_steps_in_one_dispatch_equal_single_ones():
    mesh = sharding.make_mesh(-1, 1)
    create, abstract = step.create_state(lambda key: jax.tree.map(jnp.asarray, TINY),
                                         lambda params: init_state(params, OPTIMIZER), mesh=mesh, seed=0)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    stacked = jax.tree.map(lambda *b: np.stack(b), batch(0), batch(1))
    compiled = {k: step.compile_train_step(make(network=tiny), mesh=mesh, state_shardings=shardings, steps=k)
                for k in (1, 2)}
    at_once, m = compiled[2](0)(create(), stacked, None)
    single, losses_ = create(), []
    for i in range(2):
        single, m1 = compiled[1](0)(single, jax.tree.map(lambda x: x[i:i + 1], stacked), None)
        losses_.append(m1.loss[0])
    np.testing.assert_allclose(m.loss, losses_, rtol=1e-6)
    assert_close(at_once.opt_state["online"][0].mu, single.opt_state["online"][0].mu, 1e-6)


def drawn(positions, images=None, **settings):
    """What the network meets at these places of the batch: x, c_noise, labels and the keys of dropout."""
    b = {k: v[positions] for k, v in batch(images=images).items()}
    jax.block_until_ready(jitted(network=spy, optim=STILL, **settings)(init_state(dict(w=np.zeros(1)), STILL), b))
    jax.effects_barrier()
    return dict(MET)


MET, STILL = {}, optax.sgd(0.0)


def spy(params, x, c_noise, cond, keys):
    jax.debug.callback(lambda **met: MET.update(jax.tree.map(np.asarray, met)), x=x, c_noise=c_noise, cond=cond,
                       keys=jax.random.key_data(keys))
    return jnp.zeros_like(x)


def test_stratified_times_cover_the_batch_evenly_and_follow_the_position():
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    times = drawn(np.arange(BATCH), stratified=True)["c_noise"]
    np.testing.assert_array_equal(drawn(order, stratified=True)["c_noise"], times[order])
    np.testing.assert_array_equal(np.sort(times // (100 / BATCH)), np.arange(BATCH))  # one in each eighth
    assert len(np.unique(np.sort(drawn(order)["c_noise"] // (100 / BATCH)))) < BATCH


@pytest.mark.parametrize("density", [UNIFORM, IMPORTANCE])
@pytest.mark.parametrize("stratified", [False, True])
def test_accumulation_and_the_order_of_rows_change_no_draw(density, stratified):
    process = PROCESS if density is UNIFORM else SHORT
    start = init_state(jax.tree.map(jnp.asarray, TINY), OPTIMIZER, density.init())
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])

    def three_steps(accumulate, order):
        train_step = jitted(accumulate, network=tiny, density=density, stratified=stratified, process=process)
        s, values = start, []
        for k in range(3):
            s, metrics = train_step(s, {name: v[order] for name, v in batch(k).items()})
            values.append(float(metrics.loss))
        return values, s.statistics

    straight = three_steps(1, np.arange(BATCH))
    for other in (three_steps(4, np.arange(BATCH)), three_steps(1, order), three_steps(4, order)):
        np.testing.assert_allclose(other[0], straight[0], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), other[1], straight[1])
    if density is IMPORTANCE:
        assert int(straight[1]["counts"].sum()) > 0 and np.all(np.asarray(straight[1]["losses"]).max(1) > 0)


def test_a_dropped_label_is_the_number_of_classes():
    b = np.arange(BATCH)
    assert drawn(b)["cond"] == {}
    np.testing.assert_array_equal(drawn(b, num_classes=3)["cond"]["label"], np.zeros(BATCH))
    np.testing.assert_array_equal(drawn(b, num_classes=3, label_dropout=1.0)["cond"]["label"], np.full(BATCH, 3))


def test_labels_are_dropped_as_often_as_told_and_by_the_position():
    """A batch of 2000 rows: each dropped with probability 0.1, in whatever order they come. The loss tells it."""
    positions = np.random.default_rng(0).permutation(2000).astype(np.int32)

    def told(params, diffusion, x0, cond, times, keys, noise, mask):
        label = jnp.asarray(cond["label"], float)
        per_example = label * params["w"]
        return per_example, losses.LossAux(times.t, label + 0.5, per_example, per_example)

    train_step = jax.jit(step.make_train_step(
        updates=[Update(loss=losses.of_set(told), optimizer=OPTIMIZER)], density=UNIFORM, stratified=False,
        denoisers={"online": parameterization.make_denoiser(lambda params: PROCESS, EPS, tiny)},
        averages=AVERAGES, seed=0, prepare=preparing(num_classes=10, label_dropout=0.1), accumulate=1,
        log_snr_edges=np.arange(12.0)))

    def counts(positions):
        rows = {"image": np.zeros((2000, 2, 2, 1), np.uint8), "label": positions % 10, "position": positions}
        return np.asarray(train_step(init_state(TINY, OPTIMIZER), rows)[1].bin_count)

    in_order = counts(np.arange(2000, dtype=np.int32))
    assert abs(in_order[10] / 2000 - 0.1) < 4 * (0.1 * 0.9 / 2000) ** 0.5
    assert in_order[:10].min() > 150 and in_order[:10].sum() + in_order[10] == 2000
    np.testing.assert_array_equal(counts(positions), in_order)


def test_the_effective_weight_of_a_bin_is_the_share_of_times_in_it():
    """With the weight 1 the sum of w p over the bins is the share of examples whose log-SNR is within them."""
    _, metrics = jitted(network=tiny)(init_state(jax.tree.map(jnp.asarray, TINY), OPTIMIZER), batch())
    edges = np.linspace(-10, 10, 6)
    np.testing.assert_allclose(metrics.bin_weight * np.diff(edges) * BATCH, metrics.bin_count, rtol=1e-5)


def test_eight_devices_draw_the_same_stratified_importance_times():
    """One step of one device and of eight: the same loss, history and probabilities."""
    script = """
import json, sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
import test_step as t
from diffusion.parallel import sharding
from diffusion.train import step
mesh = sharding.make_mesh(-1, 1)
create, abstract = step.create_state(lambda key: jax.tree.map(jax.numpy.asarray, t.TINY),
                                     lambda params: t.init_state(params, t.OPTIMIZER, t.IMPORTANCE.init()),
                                     mesh=mesh, seed=0)
shardings = jax.tree.map(lambda x: x.sharding, abstract)
run = step.compile_train_step(t.make(network=t.tiny, density=t.IMPORTANCE, stratified=True, process=t.SHORT),
                              mesh=mesh, state_shardings=shardings, steps=1)(0)
state, seen = create(), []
for k in range(3):
    b = sharding.place_batch(jax.tree.map(lambda x: x[None], t.batch(k)), mesh, leading=1)
    state, m = run(state, b, None)
    seen.append(float(m.loss[0]))
print(json.dumps({"devices": jax.device_count(), "losses": seen,
                  "history": np.asarray(state.statistics["losses"]).tolist(),
                  "counts": np.asarray(state.statistics["counts"]).tolist()}))
"""
    results = []
    for devices in (1, 8):
        done = program.execute([sys.executable, "-c", script, pathlib.Path(__file__).parent], devices)
        results.append(json.loads(done.stdout))
    one, eight = results
    assert (one["devices"], eight["devices"]) == (1, 8) and one["counts"] == eight["counts"]
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-5)
    np.testing.assert_allclose(eight["history"], one["history"], rtol=1e-4)


def test_the_gradient_is_that_of_the_mean_over_the_batch():
    """The loss is quadratic in w, so that its slope is a difference of the losses of the same draws."""
    train_step = jitted(network=tiny, optim=optax.sgd(1.0), flip=False)

    def at(w):
        return train_step(init_state({"w": jnp.float32(w), "b": jnp.float32(0.0)}, optax.sgd(1.0)), batch())

    slope = float(at(0.35)[1].loss - at(0.25)[1].loss) / 0.1
    assert 0.3 - float(at(0.3)[0].params["online"]["w"]) == pytest.approx(slope, rel=1e-3)


class Tenths(Rule):
    def share(self, step, **images):
        return 1 - step / 10


def test_the_average_counts_the_step_that_is_made_and_the_log_has_its_learning_rate():
    rate = lambda n: 0.1 * (n + 1)  # noqa: E731
    train_step = jax.jit(step.make_train_step(
        updates=[Update(loss=LOSS, optimizer=optax.sgd(rate), learning_rate=rate)], density=UNIFORM, stratified=False,
        denoisers={"online": parameterization.make_denoiser(lambda params: PROCESS, EPS, tiny)}, seed=0,
        averages={"ema": Average(rule=Tenths())}, prepare=preparing(), accumulate=1,
        log_snr_edges=np.linspace(-10, 10, 6)))
    old = init_state(jax.tree.map(jnp.asarray, TINY), optax.sgd(rate))
    for n in (1, 2):
        new, metrics = train_step(old, batch())
        assert_close(new.averages["ema"], jax.tree.map(
            lambda e, p: n / 10 * e + (1 - n / 10) * p, old.averages["ema"], new.params["online"]), 1e-6)
        assert metrics.learning_rate == pytest.approx(0.1 * n)
        old = new
