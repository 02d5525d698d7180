"""The training step: what its result may not depend on, and what it must."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion.core import losses, parameterization, processes, schedules, streams, time_densities, weightings
from diffusion.networks.unet import UNet
from diffusion.train import ema, sharding, step
from diffusion.train.state import init_state

SIZE, BATCH = 8, 8
PROCESS = processes.DiscreteProcess(betas=schedules.cosine(100))
NETWORK = UNet(channels=8, multipliers=(1,), blocks=1, attention_resolutions=(), groups=4, dropout=0.2, out_channels=1)
OPTIMIZER = optax.adam(1e-3)


def init(key):
    return NETWORK.init(key, jnp.zeros((1, SIZE, SIZE, 1)), jnp.zeros(1))


def make(accumulate=1, flip=True, network=NETWORK.apply, seed=0):
    return jax.jit(step.make_train_step(
        loss=losses.make_denoising_loss(PROCESS, time_densities.uniform_discrete, weightings.simple),
        denoiser=parameterization.make_denoiser(PROCESS, parameterization.EPS, network), optimizer=OPTIMIZER,
        learning_rate=optax.constant_schedule(1e-3),
        ema_decay=lambda n: ema.decay(n, batch_size=BATCH, half_life=100.0, warmup_ratio=0.0), seed=seed,
        flip=flip, conditional=False, accumulate=accumulate, log_snr_edges=np.linspace(-10, 10, 6)))


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


def test_accumulation_changes_rounding_only(state):
    (one, m1), (four, m4) = (make(accumulate=a)(state, batch()) for a in (1, 4))
    np.testing.assert_allclose(m4.loss, m1.loss, rtol=1e-6)
    np.testing.assert_allclose(m4.grad_norm, m1.grad_norm, rtol=1e-5)
    np.testing.assert_allclose(m4.bin_loss, m1.bin_loss, rtol=1e-5)
    # Adam's first update is lr * sign(gradient): compare its first moment, which is linear in the gradient.
    assert_close(four.opt_state[0].mu, one.opt_state[0].mu, 1e-6)


def test_the_order_of_rows_does_not_matter_since_draws_follow_the_position(state):
    b = batch()
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    train_step = make()
    (_, straight), (_, shuffled) = train_step(state, b), train_step(state, {k: v[order] for k, v in b.items()})
    np.testing.assert_allclose(shuffled.loss, straight.loss, rtol=1e-6)
    wrong = {**b, "image": b["image"][order]}  # the same images at other positions meet other noise
    assert abs(train_step(state, wrong)[1].loss - straight.loss) > 1e-4


def test_no_two_examples_steps_seeds_or_streams_share_a_key():
    keys = np.concatenate([jax.random.key_data(streams.example_keys(jax.random.key(seed), stream, k, jnp.arange(64)))
                           for seed in (0, 1) for stream in ("loss", "dropout", "flip") for k in (0, 1)])
    assert len({tuple(k) for k in keys}) == len(keys)


def test_two_equal_examples_of_a_batch_get_other_noise_times_flips_and_dropout(state):
    """One public JAX code base gave every device the same noise: equal images must not get equal losses."""
    seen = {}

    def spy(params, x, c_noise, cond, keys):
        seen.update(x=x, c_noise=c_noise, keys=keys)
        return jnp.zeros_like(x)

    image = np.broadcast_to(np.arange(64, dtype=np.uint8).reshape(1, SIZE, SIZE, 1), (BATCH, SIZE, SIZE, 1))
    with jax.disable_jit():
        step_fn = step.make_train_step(
            loss=losses.make_denoising_loss(PROCESS, time_densities.uniform_discrete, weightings.simple),
            denoiser=parameterization.make_denoiser(PROCESS, parameterization.EPS, spy), optimizer=optax.sgd(0.0),
            learning_rate=optax.constant_schedule(0.0), ema_decay=lambda n: jnp.float32(1.0), seed=0, flip=True,
            conditional=False, accumulate=1, log_snr_edges=np.linspace(-10, 10, 6))
        step_fn(init_state({"w": jnp.zeros(1)}, optax.sgd(0.0)), batch(images=image))
    assert len({row.tobytes() for row in np.asarray(seen["x"])}) == BATCH
    assert len(set(np.asarray(seen["c_noise"]).tolist())) > BATCH // 2
    assert len({k.tobytes() for k in np.asarray(jax.random.key_data(seen["keys"]))}) == BATCH


def test_on_device_data_gives_the_same_step(state):
    images = np.random.default_rng(5).integers(0, 256, (20, SIZE, SIZE, 1), np.uint8)
    index = np.array([4, 19, 0, 7, 7, 2, 11, 3], np.int32)
    dataset = {"image": jnp.asarray(images), "label": jnp.zeros(20, jnp.int32)}
    train_step = make()
    host, m1 = train_step(state, batch(images=images[index]))
    device, m2 = train_step(state, {"index": index, "position": np.arange(BATCH, dtype=np.int32)}, dataset)
    assert m1.loss == m2.loss
    jax.tree.map(np.testing.assert_array_equal, host.params, device.params)


def test_ema_follows_the_parameters(state):
    new, _ = make()(state, batch())
    d = 0.5 ** (BATCH / 100)
    assert_close(new.ema, jax.tree.map(lambda e, p: d * e + (1 - d) * p, state.ema, new.params), 1e-6)
    assert int(new.step) == 1


def test_metrics_say_where_the_loss_is_bad(state):
    def broken(params, x, c_noise, cond, keys):  # NaN where the time label is high, the noisy end
        return jnp.where(c_noise[:, None, None, None] > 60, jnp.nan, NETWORK.apply(params, x, c_noise, cond, keys))

    _, good = make()(state, batch())
    assert np.isnan(good.bad_log_snr) and np.isfinite(good.loss)
    assert good.bin_count.sum() == BATCH
    np.testing.assert_allclose(good.bin_loss.sum() / BATCH, good.loss, rtol=1e-6)
    _, bad = make(network=broken)(state, batch())
    assert np.isnan(bad.loss) and float(bad.bad_log_snr) < float(PROCESS.log_snr(60))


def test_several_steps_in_one_dispatch_equal_single_ones(state):
    mesh = sharding.make_mesh(-1, 1)
    create, abstract = step.create_state(lambda key: init_state(init(key), OPTIMIZER), mesh=mesh, seed=0)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    stacked = jax.tree.map(lambda *b: np.stack(b), batch(0), batch(1))
    compiled = {k: step.compile_train_step(make(), mesh=mesh, state_shardings=shardings, steps=k) for k in (1, 2)}
    at_once, m = compiled[2](create(), stacked, None)
    single, losses_ = create(), []
    for i in range(2):
        single, m1 = compiled[1](single, jax.tree.map(lambda x: x[i:i + 1], stacked), None)
        losses_.append(m1.loss[0])
    np.testing.assert_allclose(m.loss, losses_, rtol=1e-6)
    assert_close(at_once.opt_state[0].mu, single.opt_state[0].mu, 1e-6)
