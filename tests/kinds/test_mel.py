"""Mel bands by librosa's published numbers, and log-mel spectrograms by their sums written out."""
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.errors import FieldError
from diffusion.kinds import mel

# librosa's documentation of mel_frequencies(n_mels=40): Slaney's scale, 0 .. 11,025 Hz
LIBROSA = [0., 85.317, 170.635, 255.952, 341.269, 426.586, 511.904, 597.221, 682.538, 767.855, 853.173, 938.49,
           1024.856, 1119.114, 1222.042, 1334.436, 1457.167, 1591.187, 1737.532, 1897.337, 2071.84, 2262.393, 2470.47,
           2697.686, 2945.799, 3216.731, 3512.582, 3835.643, 4188.417, 4573.636, 4994.285, 5453.621, 5955.205, 6502.92,
           7101.009, 7754.107, 8467.272, 9246.028, 10096.408, 11025.]


def test_the_scale_is_slaneys():
    found = mel.from_mel(np.linspace(0, mel.to_mel(11025), 40))
    np.testing.assert_allclose(found, LIBROSA, atol=6e-4)
    np.testing.assert_allclose(mel.to_mel([60, 110, 220, 440]), [0.9, 1.65, 3.3, 6.6])  # of hz_to_mel's documentation
    np.testing.assert_allclose(mel.to_mel(mel.from_mel(np.arange(40))), np.arange(40))


def test_a_filter_is_a_triangle_of_unit_area():
    found, spacing = mel.filters(22050, 8192, 20), 22050 / 8192
    np.testing.assert_allclose(found.sum(1) * spacing, 1, rtol=0.01)
    edges = mel.from_mel(np.linspace(0, mel.to_mel(11025), 22))
    np.testing.assert_allclose(found.argmax(1) * spacing, edges[1:-1], atol=spacing)
    assert found[5][int(edges[5] / spacing)] == 0 and found[5][int(edges[7] / spacing) + 1] == 0


def test_log_mel_by_the_sums_of_its_definition():
    rate, window, step = 8000, 64, 30
    x = np.random.default_rng(0).uniform(-1, 1, (2, 200))
    found = mel.log_mel(x, rate, mels=10, window=window, step=step)
    assert found.shape == (2, 1 + 200 // 30, 10) and found.dtype == np.float32
    padded = np.pad(x, [(0, 0), (window, window)])
    n = np.arange(window)
    for frame in range(found.shape[1]):
        start = window + frame * step - window // 2
        part = padded[:, start:start + window] * np.sin(np.pi * n / window) ** 2
        power = np.abs(part @ np.exp(-2j * np.pi * np.outer(n, np.arange(33)) / window)) ** 2
        np.testing.assert_allclose(found[:, frame], np.log(power @ mel.filters(rate, window, 10).T + mel.FLOOR),
                                   rtol=2e-5, atol=2e-5)


def test_numpy_and_jax_agree_and_silence_is_the_floor():
    x = np.random.default_rng(0).uniform(-1, 1, (3, 1000)).astype(np.float32)
    x[2] = 0
    found = mel.log_mel(x, 8000)
    np.testing.assert_allclose(mel.log_mel(jnp.asarray(x), 8000), found, atol=1e-4)
    assert found.shape == (3, 13, 64)
    np.testing.assert_allclose(found[2], np.log(mel.FLOOR))


@pytest.mark.parametrize("rate, window", [(8000, 256), (16000, 512), (22050, 1024), (44100, 2048)])
def test_usual_windows_tell_64_bands_apart(rate, window):
    assert mel.window_of(rate) == window and mel.filters(rate, window, 64).any(axis=1).all()


def test_too_many_bands_are_refused():
    with pytest.raises(FieldError, match="mels = 64: are more bands than 64 samples"):
        mel.filters(8000, 64, 64)
    with pytest.raises(FieldError, match="high = 5000"):
        mel.filters(8000, 256, 64, high=5000)
