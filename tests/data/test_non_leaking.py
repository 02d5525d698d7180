"""EDM's non-leaking augmentation: its authors' images and labels for the same draws, and what the kind makes of it."""
import pathlib

import jax
import numpy as np
import pytest
from networks.random_params import unit

from diffusion.data.non_leaking import Draws, augmented, drawn
from diffusion.errors import FieldError
from diffusion.kinds.image import ImageSpec, image

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "edm_augment.npz")


@pytest.mark.parametrize("name, probability", [("all", 1.0), ("some", 0.3)])
def test_images_and_labels_are_the_authors(name, probability):
    """Both in float32: theirs multiplies matrices of 3 x 3."""
    draws = Draws(*(GOLDEN[f"{name}/{field}"] for field in Draws._fields))
    expected, labels = GOLDEN[f"{name}/images"], GOLDEN[f"{name}/labels"]
    images, found = jax.jit(augmented, static_argnums=2)(unit("images", expected.shape, 0), draws, probability)
    np.testing.assert_allclose(found, labels, atol=1e-6)
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert 0 < (labels == 0).mean() < (0.5 if name == "all" else 0.9)


def prepared(probability, n=64, keys=None, order=slice(None)):
    spec = ImageSpec(shape=(6, 8, 1), augment=probability)
    images = np.random.default_rng(0).integers(0, 256, (n, 6, 8, 1), np.uint8)
    found = jax.jit(lambda images, keys: spec.prepare({"image": images}, keys and (lambda stream: keys[0])))(
        images[order], (keys[order],) if keys is not None else None)
    return np.asarray(found.x0), found.cond


def test_a_kind_augments_in_training_and_says_how():
    keys = jax.random.split(jax.random.key(1), 64)
    plain, cond = prepared(0.12)
    assert not cond
    x0, cond = prepared(0.12, keys=keys)
    labels = np.asarray(cond["augment"])
    assert labels.shape == (64, 9)
    untouched = (labels == 0).all(1)
    np.testing.assert_allclose(x0[untouched], plain[untouched], atol=1e-5)
    flipped = (labels[:, 0] == 1) & (labels[:, 1:] == 0).all(1)
    np.testing.assert_allclose(x0[flipped], plain[flipped][:, :, ::-1], atol=1e-5)
    assert min(untouched.sum(), flipped.sum()) > 5 and 20 < labels[:, 0].sum() < 44
    order = np.random.default_rng(1).permutation(64)  # image i depends on keys[i] alone
    other, told = prepared(0.12, keys=keys, order=order)
    np.testing.assert_allclose(other, x0[order], atol=1e-6)
    np.testing.assert_array_equal(told["augment"], labels[order])


def test_draws_have_their_distributions():
    draws = drawn(jax.random.split(jax.random.key(0), 4000))
    for name, mean, std in (("chosen", 0.5, 12**-0.5), ("flips", 0.5, 0.5), ("scale", 0, 1), ("stretch", 0, 1),
                            ("rotation", 0, 3**-0.5), ("direction", 0, 3**-0.5), ("shift", 0, 1)):
        values = np.asarray(getattr(draws, name))
        assert np.abs(values.mean(0) - mean).max() < 0.06 and np.abs(values.std(0) - std).max() < 0.06, name
        assert np.abs(np.corrcoef(values.reshape(len(values), -1).T) - np.eye(values[0].size)).max() < 0.06, name


def test_a_probability_that_is_none_is_refused():
    assert image(augment=0.12).augment_labels == 9 and image().augment_labels == 0
    for wrong in (-0.1, 1.1):
        with pytest.raises(FieldError, match="probability"):
            image(augment=wrong)
    with pytest.raises(FieldError, match="reflects"):
        image(size=(1, 8), augment=0.1)
