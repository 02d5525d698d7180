import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.data.augment import random_flip, to_float
from diffusion.errors import DataError
from diffusion.kinds.image import ImageSpec


def test_what_is_not_uint8_is_refused():
    """Floats in [-1, 1] were scaled as bytes: every image became the same dark grey."""
    for dtype in (np.float32, jnp.bfloat16, np.int32, bool):
        with pytest.raises(DataError, match="must be uint8, but they are .*np.rint"):
            to_float(jnp.zeros((1, 2, 2, 1), dtype))


def test_to_float_is_the_affine_map_onto_minus_one_to_one():
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    eager, jitted = np.asarray(to_float(x)), np.asarray(jax.jit(to_float)(x))
    np.testing.assert_array_equal(eager, jitted)
    assert eager.dtype == np.float32
    assert eager.min() == -1 and eager.max() == 1
    np.testing.assert_array_equal(eager.ravel(), -eager.ravel()[::-1])
    np.testing.assert_allclose(eager, x.astype(np.float64) / 127.5 - 1, rtol=0, atol=1.2e-7)
    np.testing.assert_array_equal(np.round((eager + 1) * 127.5), x)


def test_random_flip_mirrors_the_width_of_half_of_the_images_by_key():
    images = np.random.default_rng(0).integers(0, 256, (1000, 4, 5, 3), dtype=np.uint8)
    keys = jax.random.split(jax.random.key(0), 1000)
    out = np.asarray(random_flip(keys, images))
    mirrored = np.all(out == images[:, :, ::-1], axis=(1, 2, 3))
    same = np.all(out == images, axis=(1, 2, 3))
    assert np.all(mirrored ^ same)
    assert abs(mirrored.mean() - 0.5) < 0.05
    order = np.random.default_rng(1).permutation(1000)  # image i depends on keys[i] alone
    np.testing.assert_array_equal(random_flip(keys[order], images[order]), out[order])


def test_a_kind_flips_only_if_it_is_asked_to_and_only_in_training():
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 4, 1), np.uint8)
    record, keys = {"image": images, "label": np.zeros(64, np.int32)}, lambda stream: jax.random.split(
        jax.random.key(0), 64)
    plain = np.asarray(to_float(images))
    for flip, given in ((False, None), (False, keys), (True, None)):
        np.testing.assert_array_equal(ImageSpec(shape=(3, 4, 1), flip=flip).prepare(record, given).x0, plain)
    found = np.asarray(ImageSpec(shape=(3, 4, 1), flip=True).prepare(record, keys).x0)
    mirrored = (found == plain[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (found == plain).all((1, 2, 3))).all() and 16 < mirrored.sum() < 48
