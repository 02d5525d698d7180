"""The learning rate at given steps, clipping, and Adam against its formula."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion.errors import ConfigError
from diffusion.train import optimizer

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
