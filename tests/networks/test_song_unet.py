"""DDPM++ and NCSN++: their sizes, resampling by a filter, and what they refuse. Outputs: tests/interop/test_edm.py."""
import json
import pathlib
import sys

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.errors import FieldError
from diffusion.interop import edm
from diffusion.networks.fir import fir_downsample, fir_upsample
from diffusion.networks.layers import downsample, upsample
from diffusion.networks.song_unet import SongUNet

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "interop"))
import others  # noqa: E402

COUNTS = json.loads(str(others.load("song_unet.npz")[1]["counts"]))


@pytest.mark.parametrize("name", others.SONG_PUBLISHED)
def test_parameters_are_as_many_as_the_authors(name):
    """Their frequencies are not counted, since they are not trained."""
    settings = others.SONG_PUBLISHED[name]
    found = others.abstract_of(edm.read_settings(settings, ""), augment=settings.get("augment_dim", 0))
    assert sum(leaf.size for path, leaf in flax.traverse_util.flatten_dict(found).items()
               if path[-1] != "frequencies") == COUNTS[name]


def test_two_taps_are_means_and_repetitions():
    x = others.images(8, 3)
    np.testing.assert_allclose(fir_downsample(x), downsample(x), atol=1e-6)
    np.testing.assert_allclose(fir_upsample(x), upsample(x), atol=1e-6)


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 5, 0, 1, 3), (1, 1, 2, 3, 5, 8, 0, 1)])
def test_a_filter_is_its_sum_and_upsampling_its_transpose(taps):
    """A constant stays one inside, where no zeros are seen."""
    x, y = (np.linspace(-1, 2, n, dtype=np.float32)[None, :, None] for n in (12, 6))
    around = np.pad(x[0, :, 0], len(taps) // 2 - 1)
    expected = [around[2 * i:2 * i + len(taps)] @ taps / sum(taps) for i in range(6)]
    np.testing.assert_allclose(fir_downsample(x, taps)[0, :, 0], expected, atol=1e-6)
    _, transpose = jax.vjp(lambda x: fir_downsample(x, taps), x)
    np.testing.assert_allclose(fir_upsample(y, taps), 2 * transpose(jnp.asarray(y))[0], atol=1e-6)


@pytest.mark.parametrize("fields, field, words", [
    (dict(resample_filter=(1, 2, 1)), "resample_filter", "even"), (dict(resample_filter=()), "resample_filter", "even"),
    (dict(channels=9), "noise_multiplier", "must be even"), (dict(noise_multiplier=0), "noise_multiplier", "even"),
    (dict(channels=36), "channels", "arrays of 144 channels"), (dict(channels=2), "noise_multiplier", "at least 4"),
    (dict(multipliers=(1,) * 5), "multipliers", "16 times shorter, which 8 pixels"), (dict(blocks=0), "blocks", "one"),
    (dict(attention_resolutions=(5,)), "attention_resolutions", r"heights are \[8, 4, 2\]"),
    (dict(multipliers=(1, 1.01)), "multipliers", "whole numbers"), (dict(dropout=1.0), "dropout", "probability"),
    (dict(embedding_channels=-1), "embedding_channels", "negative")])
def test_fields_that_do_not_fit_are_named(fields, field, words):
    network = SongUNet(**dict(channels=32, multipliers=(1, 2, 3), attention_resolutions=(4,)) | fields)
    with pytest.raises(FieldError, match=words) as caught:
        network.check((8, 8))
    assert caught.value.field == field


def test_it_takes_an_augmentation_label_which_is_zero_by_default():
    network = SongUNet(augment=9, num_classes=3)
    assert set(network.cond) == {"label", "augment"}
    assert network.cond["augment"].shape == (9,) and network.cond["augment"].default == 0
