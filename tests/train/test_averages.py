"""The moving average: a half-life means what it says, and what the warm-up does."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.errors import FieldError
from diffusion.train.averages import Copy, HalfLife, Power, blend, stochastic_round


def new_share(step, *, batch_size, images_before=0, **settings):
    return HalfLife(**settings).share(step, batch_size=batch_size, images_before=images_before)


def weight_of_the_start(steps, **kwargs):
    """What the first value still counts after `steps` steps: run on params 0 from an average of 1."""
    def body(average, n):
        return blend(average, jnp.zeros(()), new_share(n, **kwargs)), None
    return float(jax.lax.scan(body, jnp.ones(()), jnp.arange(1, steps + 1))[0])


def test_0_9999_at_batch_128_is_the_papers_half_life(x64):
    decay = 1 - new_share(1, batch_size=128, half_life=887_184, warmup_ratio=0)
    assert float(decay) == pytest.approx(0.9999, abs=1e-8)
    assert 128 * np.log(0.5) / np.log(0.9999) == pytest.approx(887_184, abs=0.5)


@pytest.mark.parametrize("batch_size, half_life", [(1, 7.0), (64, 10_000.0), (128, 20_000.0), (512, 500_000.0),
                                                   (128, 887_184.0)])
def test_after_a_half_life_the_old_weighs_one_half(batch_size, half_life):
    """In float32, as in training. A step that is not a divisor of the half-life leaves 2^-(images/half-life)."""
    steps = round(half_life / batch_size)
    weight = weight_of_the_start(steps, batch_size=batch_size, half_life=half_life, warmup_ratio=0)
    assert weight == pytest.approx(2 ** (-steps * batch_size / half_life), rel=1e-3)


def test_the_half_life_in_images_does_not_depend_on_the_batch_size():
    small, large = (weight_of_the_start(10_240 // b, batch_size=b, half_life=5000.0, warmup_ratio=0) for b in (32, 512))
    assert small == pytest.approx(large, rel=1e-4)


def test_warm_up_bounds_the_half_life_by_the_images_seen(x64):
    """EDM's ramp-up: half-life min(H, 0.05 images), so that 2^-20 of the start is left after the first step."""
    def at(images, ratio=0.05):
        return float(1 - new_share(images / 100, batch_size=100, half_life=1000.0, warmup_ratio=ratio))
    assert at(100) == pytest.approx(2**-20)
    assert at(10_000) == pytest.approx(2 ** (-100 / 500))
    assert at(20_000) == at(1_000_000) == pytest.approx(2 ** (-100 / 1000))
    assert at(19_900) < at(20_000)
    assert at(100, ratio=0) == at(1_000_000)


def test_warm_up_forgets_the_start_at_once_and_the_full_length_does_not():
    kwargs = dict(batch_size=100, half_life=1e6)
    assert weight_of_the_start(1, **kwargs, warmup_ratio=0.05) == pytest.approx(2**-20, rel=1e-4)
    assert weight_of_the_start(100, **kwargs, warmup_ratio=0) > 0.99


@pytest.mark.parametrize("images", [2**31 - 128, 2**31, 4_000_000_000])
def test_decay_holds_beyond_int32_images(images):
    """EDM's ImageNet-64 run saw 2.5 billion images."""
    settings = dict(batch_size=4096, half_life=5e7, warmup_ratio=0.05)
    share = float(new_share(jnp.int32(images // 4096), **settings))
    assert 0 < share < 1
    assert float(new_share(jnp.int32(1), images_before=images - 4096, **settings)) == pytest.approx(share)


def test_the_images_seen_count_after_a_change_of_batch_size():
    """96 images in batches of 16, then batches of 160: at 256 images seen, whatever the number of steps."""
    kwargs = dict(half_life=1e6, warmup_ratio=0.05)
    assert float(new_share(7, batch_size=160, images_before=96 - 6 * 160, **kwargs)) == pytest.approx(
        1 - 2 ** (-160 / (0.05 * 256)))


def test_a_long_average_keeps_its_digits():
    """2^-x is rounded to 2^-24 near 1, which was 0.8 % of this share."""
    assert float(new_share(1, batch_size=128, half_life=5e7, warmup_ratio=0)) == pytest.approx(
        -np.expm1(-np.log(2) * 128 / 5e7), rel=1e-6)


def test_decay_of_a_traced_step_is_the_same():
    decay = jax.jit(lambda n: new_share(n, batch_size=64, half_life=1e4, warmup_ratio=0.05))
    for n in (1, 1000, 100_000):
        np.testing.assert_allclose(decay(jnp.int32(n)), new_share(n, batch_size=64, half_life=1e4,
                                                                  warmup_ratio=0.05), rtol=1e-6)


def test_update_is_the_formula_on_each_leaf():
    old, new = ({"a": jnp.full((2, 3), v), "b": [jnp.full((), 2 * v)]} for v in (1.0, 5.0))
    out = blend(old, new, 0.25)
    assert jax.tree.structure(out) == jax.tree.structure(old)
    np.testing.assert_allclose(out["a"], np.full((2, 3), 0.75 * 1 + 0.25 * 5))
    np.testing.assert_allclose(out["b"][0], 0.75 * 2 + 0.25 * 10)


def test_an_average_of_one_value_is_that_value():
    params = {"w": jax.random.normal(jax.random.key(0), (1000,))}
    average = params
    for _ in range(10):
        average = blend(average, params, 1e-4)
    np.testing.assert_array_equal(average["w"], params["w"])


def test_stochastic_rounding_keeps_the_mean_and_takes_a_neighbour():
    x = jnp.float32(1.0) + jnp.float32(2**-7) * jnp.linspace(0, 1, 11)  # between two neighbours in bfloat16
    keys = jax.random.split(jax.random.key(0), 4096)
    rounded = np.asarray(jax.vmap(lambda key: stochastic_round(x, key))(keys), np.float32)
    assert set(np.unique(rounded)) == {1.0, np.float32(1 + 2**-7)}
    np.testing.assert_allclose(rounded.mean(0), x, atol=5 * 2**-7 * 0.5 / 64)  # five standard errors
    exact = jnp.float32([0.0, -1.5, 2.0**-100])
    np.testing.assert_array_equal(stochastic_round(exact, keys[0]), exact)


def test_an_average_in_bfloat16_follows():
    """Rounded to the nearest it would never leave its start: the first step is 1e-4 of the way."""
    params = jnp.ones(4096)
    average = jax.lax.fori_loop(0, 5000, lambda n, e: blend(e, params, 1e-4, jax.random.key(n)),
                                jnp.zeros(4096, jnp.bfloat16))
    assert average.dtype == jnp.bfloat16
    # The noise of rounding is averaged over 4096 numbers and over the length of the average.
    np.testing.assert_allclose(np.asarray(average, np.float32).mean(), 1 - 0.9999**5000, atol=1e-3)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_a_relative_width_gives_edm2s_exponent(sigma_rel, gamma):
    """Karras et al. (2024), Section 3.1: gamma = 16.97 and 6.94."""
    found = Power.of_width(sigma_rel).gamma
    assert found == pytest.approx(gamma, abs=5e-3)
    assert np.sqrt((found + 1) / (found + 2) ** 2 / (found + 3)) == pytest.approx(sigma_rel, rel=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.0, 0.29, -1.0])
def test_a_width_that_no_power_has_is_refused(sigma_rel):
    with pytest.raises(FieldError, match="sigma_rel.*0.2886"):
        Power.of_width(sigma_rel)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_the_power_averages_weights_have_the_width_and_forget_the_start(sigma_rel):
    """The weight of each step's parameters is found by averaging unit vectors."""
    steps, rule = 1000, Power.of_width(sigma_rel)
    weights = jax.jit(lambda: jax.lax.fori_loop(1, steps + 1, lambda n, w: blend(
        w, jax.nn.one_hot(n, steps + 1), rule.share(n, batch_size=10)), jax.nn.one_hot(0, steps + 1)))()
    weights = np.asarray(weights, float)
    t = np.arange(steps + 1) / steps
    assert weights.sum() == pytest.approx(1, rel=1e-5) and weights[0] == 0
    mean = weights @ t
    assert np.sqrt(weights @ (t - mean) ** 2) == pytest.approx(sigma_rel, rel=2e-2)
    middle = t**rule.gamma  # Eq. 2
    np.testing.assert_allclose(weights[500:-1], (middle / middle.sum())[500:-1], rtol=3e-2)


@pytest.mark.parametrize("images", [2048, 2**21, 2**31 - 2048, 2**31, 2**36])
def test_factors_of_long_trainings_are_those_of_float64(images):
    """EDM2's lengths overflow an int32, and 1 - beta in float32 would keep one digit."""
    step, gamma = images // 2048, Power.of_width(0.05).gamma
    with np.errstate(divide="ignore"):
        exact = -np.expm1((gamma + 1) * np.log1p(-2048 / images))
    share = jax.jit(lambda n: Power(gamma=gamma).share(n, batch_size=2048))(jnp.int32(step))
    assert float(share) == pytest.approx(exact, rel=1e-6)
    ramp = jax.jit(lambda n: new_share(n, batch_size=2048, half_life=1e12, warmup_ratio=0.05))(jnp.int32(step))
    assert float(ramp) == pytest.approx(-np.expm1(-np.log(2) * 2048 / min(1e12, 0.05 * images)), rel=1e-6)


def test_a_copy_is_the_parameters_of_the_last_due_step_to_the_last_bit():
    rule, seen = Copy(every=3), []
    average = params = {"w": jnp.full(100, 0.1), "b": jnp.bfloat16(0.3)}
    for n in range(1, 8):
        params = jax.tree.map(lambda x: x * 1.37, params)
        average = rule.update(average, params, n, batch_size=1)
        seen.append(float(average["w"][0]))
        if n % 3 == 0:
            jax.tree.map(np.testing.assert_array_equal, average, params)
    assert seen[0] == seen[1] == np.float32(0.1) and len(set(seen)) == 3 and seen[5] == seen[6]
