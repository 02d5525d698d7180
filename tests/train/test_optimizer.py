"""The learning rate at given steps, clipping, and Adam against its formula."""
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion.errors import ConfigError
from diffusion.io.checkpoint import Checkpoints, NoData
from diffusion.train import optimizer
from diffusion.train.updates import Update, rate_of

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array(0.5)}
GRAD = {"w": jnp.array([0.3, -0.4, 0.0]), "b": jnp.array(1.2)}  # of norm 1.3
ADAM = dict(beta1=0.9, beta2=0.999, epsilon=1e-8)


def rate(step, decay="constant", peak=2e-4, warmup_steps=10, total_steps=100):
    schedule = optimizer.learning_rate(peak, warmup_steps=warmup_steps, decay=decay, total_steps=total_steps)
    return float(schedule(step))


@pytest.mark.parametrize("decay", ["constant", "cosine", "linear"])
def test_warm_up_is_linear_from_0_to_the_peak(decay):
    for step in (0, 1, 5, 9, 10):
        assert rate(step, decay) == pytest.approx(2e-4 * step / 10, rel=1e-6)


@pytest.mark.parametrize("decay", ["constant", "cosine", "linear"])
def test_without_warm_up_the_first_step_has_the_peak(decay):
    assert rate(0, decay, warmup_steps=0) == pytest.approx(2e-4)


def test_constant_stays_at_the_peak():
    for warmup_steps in (0, 10):
        for step in (10, 11, 100, 10**6):
            assert rate(step, warmup_steps=warmup_steps) == pytest.approx(2e-4)


def test_constant_may_warm_up_for_longer_than_it_runs():
    assert rate(100, warmup_steps=5000, total_steps=100) == pytest.approx(2e-4 * 100 / 5000)


def test_cosine_falls_to_0_at_the_end_of_the_run():
    for step in (10, 25, 55, 90, 100):
        expected = 2e-4 * 0.5 * (1 + np.cos(np.pi * (step - 10) / 90))
        assert rate(step, "cosine") == pytest.approx(expected, rel=1e-5, abs=1e-11)
    assert rate(100, "cosine") == rate(1000, "cosine") == pytest.approx(0, abs=1e-11)
    assert rate(50, "cosine", warmup_steps=0) == pytest.approx(1e-4, rel=1e-5)


def test_linear_falls_to_0_at_the_end_of_the_run():
    for step in (10, 25, 55, 90, 100):
        assert rate(step, "linear") == pytest.approx(2e-4 * (100 - step) / 90, rel=1e-5, abs=1e-11)
    assert rate(1000, "linear") == 0 and rate(50, "linear", warmup_steps=0) == pytest.approx(1e-4, rel=1e-5)


@pytest.mark.parametrize("warmup_steps", [100, 101])
def test_cosine_needs_room_after_the_warm_up(warmup_steps):
    with pytest.raises(ConfigError) as error:
        rate(0, "cosine", warmup_steps=warmup_steps)
    message = str(error.value)
    assert f"config.optimizer.warmup ({warmup_steps} steps)" in message
    assert "config.train.duration (100 steps)" in message and "Shorten the warm-up." in message


def one_update(grad, clip_norm, steps=1, epsilon=1e-8):
    transform = optimizer.adam(optax.constant_schedule(0.1), clip_norm=clip_norm, **{**ADAM, "epsilon": epsilon})
    state, update = transform.init(PARAMS), None
    for _ in range(steps):
        update, state = jax.jit(transform.update)(grad, state, PARAMS)
    return update


def test_the_first_step_is_adams():
    """m_hat = g and v_hat = g^2, so the step is -lr g / (|g| + epsilon) (Kingma & Ba 2015, Algorithm 1)."""
    for epsilon in (1e-8, 0.5):
        update = one_update(GRAD, clip_norm=0, epsilon=epsilon)
        for name, g in GRAD.items():
            np.testing.assert_allclose(update[name], -0.1 * g / (np.abs(g) + epsilon), rtol=1e-5)


def test_later_steps_are_adams():
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(5, 3))
    transform = optimizer.adam(optax.constant_schedule(0.1), beta1=0.8, beta2=0.95, epsilon=1e-3, clip_norm=0)
    w = jnp.zeros(3)
    state, m, v = transform.init(w), 0, 0
    for k, g in enumerate(grads, 1):
        update, state = transform.update(jnp.asarray(g), state, w)
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        expected = -0.1 * (m / (1 - 0.8**k)) / (np.sqrt(v / (1 - 0.95**k)) + 1e-3)
        np.testing.assert_allclose(update, expected, rtol=1e-5)


def test_the_learning_rate_of_the_first_step_is_the_schedules_at_0():
    schedule = optimizer.learning_rate(0.1, warmup_steps=2, decay="constant", total_steps=10)
    transform = optimizer.adam(schedule, **ADAM, clip_norm=0)
    state, sizes = transform.init(PARAMS), []
    for _ in range(4):
        update, state = transform.update(GRAD, state, PARAMS)
        sizes.append(-float(update["b"]))
    np.testing.assert_allclose(sizes, [0, 0.05, 0.1, 0.1], rtol=1e-5)


def test_clipping_is_by_the_global_norm():
    """Adam's first step does not see the scale of the gradient, but for epsilon: a large one shows it."""
    def expected(scale, epsilon=10.0):
        return {name: -0.1 * scale * g / (np.abs(scale * g) + epsilon) for name, g in GRAD.items()}

    for clip_norm, scale in ((1.0, 1 / 1.3), (0.13, 0.1), (1.4, 1.0), (0, 1.0)):
        update = one_update(GRAD, clip_norm, epsilon=10.0)
        for name, value in expected(scale).items():
            np.testing.assert_allclose(update[name], value, rtol=1e-5)


def test_a_zero_gradient_moves_nothing():
    zero = jax.tree.map(jnp.zeros_like, GRAD)
    for update in jax.tree.leaves(one_update(zero, clip_norm=1.0, steps=3)):
        np.testing.assert_array_equal(update, 0)


def test_adamw_decays_matrices_alone_and_is_adam_otherwise():
    """Loshchilov & Hutter (2019), Algorithm 2: the decay is added to the step, after Adam's scaling."""
    params = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full(3, 2.0), "labels": {"embedding": jnp.full((4, 2), 2.0)}}
    mask = functools.partial(optimizer.decay_mask, never=("labels/embedding$",))
    assert mask(params) == {"kernel": True, "bias": False, "labels": {"embedding": False}}
    grad = jax.tree.map(lambda x: jnp.full(x.shape, 0.1), params)
    rate = optax.constant_schedule(0.1)
    changes = []
    for made in (optimizer.adamw(rate, mask, weight_decay=0.3), optimizer.adam(rate)):
        changes.append(made.update(grad, made.init(params), params)[0])
    difference = jax.tree.map(lambda a, b: np.asarray(a - b), *changes)
    np.testing.assert_allclose(difference["kernel"], -0.1 * 0.3 * 2.0, rtol=1e-5)
    assert not difference["bias"].any() and not difference["labels"]["embedding"].any()
    with pytest.raises(ValueError, match="weight_decay"):
        optimizer.adamw(rate, mask, weight_decay=-0.1)


def test_what_a_network_never_trains_stays_though_its_gradient_is_not_zero():
    plain = optax.chain(optax.add_decayed_weights(0.5), optax.adam(0.1))
    held = optimizer.hold(plain, (r"/frequencies$",))
    params = {"fourier": {"frequencies": jnp.ones(3), "kernel": jnp.ones((2, 2))}}
    changes, state = held.update(params, held.init(params), params)
    assert not changes["fourier"]["frequencies"].any() and changes["fourier"]["kernel"].all()
    assert jax.tree.structure(state) == jax.tree.structure(plain.init(params))
    assert optimizer.hold(plain, ()) is plain


@pytest.mark.slow
def test_the_networks_say_what_is_never_decayed_or_trained():
    from diffusion import build
    from diffusion import config as config_lib
    from diffusion.build.training import check_optimizer
    config = config_lib.override(config_lib.base(optimizer="adamw", process="ve", network="unet"), {
        "network.embedding": "fourier", "network.num_classes": 3, "optimizer.weight_decay": 0.5, "network.channels": 32,
        "optimizer.warmup": "0 steps", "optimizer.learning_rate": 0.1})
    model = build.model(config)
    params = jax.tree.map(lambda x: jnp.ones(x.shape), model.shapes)
    made = check_optimizer(config, 100, model.network)
    changes, _ = made.update(jax.tree.map(jnp.zeros_like, params), made.init(params), params)
    moved = {jax.tree_util.keystr(path, simple=True, separator="/") for path, x in jax.tree.leaves_with_path(changes)
             if x.any()}
    kernels = {jax.tree_util.keystr(path, simple=True, separator="/") for path, x in jax.tree.leaves_with_path(params)
               if x.ndim >= 2}
    assert kernels - moved == {"params/labels/embedding"} and moved < kernels


def test_the_inverse_square_root_rate_is_edm2s():
    """Their learning_rate_schedule of EDM2-S on ImageNet-512, whose ramp-up of 10M images is no whole number of steps
    of 2048."""
    golden = np.load(pathlib.Path(__file__).parent.parent / "golden" / "edm2.npz")
    schedule = optimizer.learning_rate(0.01, warmup_steps=10e6 / 2048, decay="inverse_sqrt", total_steps=10**6,
                                       reference_steps=70_000)
    np.testing.assert_allclose(jax.vmap(schedule)(golden["rate_steps"]), golden["rates"], rtol=1e-6)
    without = optimizer.learning_rate(0.01, warmup_steps=0, decay="inverse_sqrt", total_steps=10, reference_steps=4)
    np.testing.assert_allclose([without(0), without(4), without(16)], [0.01, 0.01, 0.005], rtol=1e-6)


KERNELS = {"a": {"kernel": jnp.ones((3, 3, 4, 6)), "bias": jnp.ones(6)}, "b": {"kernel": jnp.ones((5, 8))},
           "labels": {"embedding": jnp.ones((4, 2))}}


def none_decayed(params):
    return jax.tree.map(lambda x: False, params)


def updates_of(made, grads, params=KERNELS):
    state, found = made.init(params), []
    for grad in grads:
        change, state = made.update(grad, state, params)
        params = optax.apply_updates(params, change)
        found.append(change)
    return found, state, params


def random_grads(count):
    rng = np.random.default_rng(0)
    return [jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), KERNELS)
            for _ in range(count)]


def test_muon_makes_the_updates_of_kernels_orthogonal_and_others_adams():
    """Of a convolution too, as a matrix [36, 6]; singular values lie near one value, as those of 5 iterations do."""
    rate = optax.constant_schedule(0.1)
    ((change,), _, _), ((plain,), _, _) = (updates_of(optimizer.muon(
        rate, none_decayed, clip_norm=0.0, update_rms=rms), random_grads(1)) for rms in (0.2, 0.0))
    for name, scale in (("a", 1.0), ("b", (8 / 5) ** 0.5)):
        matrix = np.asarray(change[name]["kernel"]).reshape(-1, KERNELS[name]["kernel"].shape[-1])
        values = np.linalg.svd(matrix, compute_uv=False) / (0.1 * 0.2 * max(matrix.shape) ** 0.5)
        assert 0.6 < values.min() and values.max() < 1.3
        np.testing.assert_allclose(np.mean(matrix**2) ** 0.5, 0.1 * 0.2, rtol=0.2)
        other = np.asarray(plain[name]["kernel"]).reshape(matrix.shape)
        np.testing.assert_allclose(other, matrix * scale / (0.2 * max(matrix.shape) ** 0.5), rtol=1e-4, atol=1e-6)
    for leaf in (change["a"]["bias"], change["labels"]["embedding"]):
        np.testing.assert_allclose(np.abs(leaf), 0.1 * (0.9 / 1.9 + 1), rtol=1e-4)  # Nesterov's
    for name, value in (("momentum", 1.0), ("update_rms", -1.0), ("weight_decay", -1.0)):
        with pytest.raises(ValueError, match=name):
            optimizer.muon(rate, none_decayed, **{name: value})


def test_schedule_free_evaluates_the_mean_of_its_iterates():
    """At a constant rate; the parameters are 0.9 of it and 0.1 of the last iterate."""
    rate = optax.constant_schedule(0.1)
    made = optimizer.hold(optimizer.schedule_free(rate, none_decayed, clip_norm=0.0), ("bias$",))
    grads, iterates, params = random_grads(4), [], KERNELS
    state = made.init(params)
    for grad in grads:
        change, state = made.update(grad, state, params)
        params = optax.apply_updates(params, change)
        (free,) = [x for x in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "z")) if hasattr(x, "z")]
        iterates.append(free.z["b"]["kernel"])
    x = made.evaluated(state, params)["b"]["kernel"]
    np.testing.assert_allclose(x, np.mean(iterates, axis=0), rtol=1e-5)
    np.testing.assert_allclose(params["b"]["kernel"], 0.9 * x + 0.1 * iterates[-1], rtol=1e-5)
    np.testing.assert_array_equal(params["a"]["bias"], 1)
    first = optimizer.adam(rate, beta1=0.0, clip_norm=0.0)
    np.testing.assert_allclose(iterates[0] - 1, updates_of(first, grads[:1])[0][0]["b"]["kernel"], rtol=1e-4)
    with pytest.raises(ValueError, match="beta1"):
        optimizer.schedule_free(rate, none_decayed, beta1=0.0)


def test_radam_begins_with_the_momentum_alone_and_becomes_adam():
    """Liu et al. (2020), Algorithm 2: not divided by the second moment in the first 5 steps at beta2 = 0.999."""
    found, *_ = updates_of(optimizer.radam(optax.constant_schedule(0.1), beta1=0.0, clip_norm=0.0), random_grads(7))
    for i, (change, grad) in enumerate(zip(found, random_grads(7))):
        plain = np.allclose(change["b"]["kernel"], -0.1 * grad["b"]["kernel"], rtol=1e-4)
        assert plain == (i < 5)


@pytest.mark.parametrize("name", ["radam", "muon", "schedule_free"])
def test_the_state_of_each_optimizer_is_stored_and_its_rate_is_read(tmp_path, name):
    rate = optimizer.learning_rate(0.1, warmup_steps=2, decay="constant", total_steps=10)
    made = optimizer.OPTIMIZERS[name](rate, **({} if name == "radam" else {"decayed": none_decayed}))
    _, state, _ = updates_of(made, random_grads(1))
    assert float(rate_of(Update(loss=None, optimizer=made, learning_rate=rate), state)) == pytest.approx(0.05)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, {"opt_state": state}, NoData(), {})
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    found, _ = checkpoints.restore({"opt_state": abstract}, NoData())
    jax.tree.map(np.testing.assert_array_equal, found["opt_state"], state)
