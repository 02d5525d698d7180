"""Shapes, and random numbers that are functions of their own key alone."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import numerics, streams

KEYS = jax.random.split(jax.random.key(0), 64)


@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 2, 3, 4)])
def test_expand_broadcasts_from_the_left(shape):
    x = np.ones(shape)
    rows = numerics.expand(np.arange(5.0), x)
    assert rows.shape == (5,) + (1,) * (len(shape) - 1)
    np.testing.assert_array_equal((rows * x).reshape(5, -1)[:, 0], np.arange(5))
    assert numerics.expand(2.0, x).shape == ()


def test_mean_flat_is_the_mean_of_each_example():
    x = np.random.default_rng(0).normal(size=(3, 2, 4, 5))
    np.testing.assert_allclose(numerics.mean_flat(x), x.mean((1, 2, 3)), rtol=1e-5)


def test_normal_rows_are_functions_of_their_key():
    whole = numerics.normal(KEYS, (2, 3))
    assert whole.shape == (64, 2, 3) and whole.dtype == jnp.float32
    np.testing.assert_array_equal(numerics.normal(KEYS[10:13], (2, 3)), whole[10:13])
    assert len(np.unique(whole)) == whole.size
    assert numerics.normal(KEYS, (2,), jnp.bfloat16).dtype == jnp.bfloat16


def test_normal_has_mean_0_and_variance_1():
    z = np.asarray(numerics.normal(KEYS, (4096,)), float).ravel()
    assert abs(z.mean()) < 5 / z.size**0.5 and abs(z.var() - 1) < 5 * (2 / z.size) ** 0.5


def test_example_keys_differ_in_each_of_seed_stream_step_and_position():
    seen = set()
    for seed, stream, step in itertools.product((0, 1), ("loss", "dropout", "flip"), (0, 1, 1000)):
        keys = streams.example_keys(jax.random.key(seed), stream, step, np.arange(16))
        seen |= set(map(bytes, np.asarray(jax.random.key_data(keys))))
    assert len(seen) == 2 * 3 * 3 * 16


def test_example_keys_depend_on_the_position_alone_not_on_the_batch():
    """What a device, a host or a micro-batch holds of the global batch draws what it would draw in the whole."""
    data = lambda positions: np.asarray(jax.random.key_data(  # noqa: E731
        streams.example_keys(jax.random.key(3), "loss", 7, positions)))
    whole = data(np.arange(16))
    np.testing.assert_array_equal(data(np.array([9, 2, 15])), whole[[9, 2, 15]])
    traced = jax.jit(lambda step: streams.example_keys(jax.random.key(3), "loss", step, np.arange(16)))(jnp.int32(7))
    np.testing.assert_array_equal(jax.random.key_data(traced), whole)


def test_streams_are_not_correlated():
    a, b = (np.asarray(numerics.normal(streams.example_keys(jax.random.key(0), name, 0, np.arange(64)), (1024,)))
            for name in ("loss", "dropout"))
    assert abs(np.mean(a * b)) < 5 / a.size**0.5
