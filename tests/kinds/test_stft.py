"""The transform by NumPy's FFT in float64, its inverse, and that it keeps the energy."""
import jax
import numpy as np
import pytest

from diffusion.errors import FieldError
from diffusion.kinds.stft import STFT, basis, windows

SIZES = [(64, 96, 6), (8, 8, 5), (8, 16, 3), (8, 13, 4), (5, 7, 1), (64, 96, 64)]  # F, hop, T


def stft(f, hop, t, compress=0.5):
    return STFT(length=hop * t, frequencies=f, hop=hop, compress=compress)


def reference(x, f, hop, t, compress):
    """[L] -> complex [F, T]: each frame's FFT, in float64."""
    slope = 2 * f - hop
    rising = np.sin(np.pi / 2 * (np.arange(slope) + 0.5) / max(slope, 1))
    found = np.zeros((f, t), complex)
    for k in range(t):
        window = np.concatenate([rising, np.ones(hop - slope), rising[::-1]])
        frame = np.zeros(2 * f)
        for n in range(2 * f):
            place = k * hop - slope // 2 + n
            if 0 <= place < hop * t:
                at_an_end = (k == 0 and n < slope) or (k == t - 1 and n >= hop)
                frame[n] = x[place] * (1 if at_an_end else window[n])
        z = np.fft.rfft(frame) / np.sqrt(2 * f)
        z[:f] *= np.exp(-2j * np.pi * np.arange(f) * ((k * hop) % (2 * f)) / (2 * f))  # from the clip's start
        found[:, k] = np.concatenate([[z[0].real + 1j * z[f].real], np.sqrt(2) * z[1:f]])
    return found * np.abs(found) ** (compress - 1)


@pytest.mark.parametrize("f, hop, t", SIZES[:-1])
@pytest.mark.parametrize("compress", [0.5, 1.0])
def test_it_is_the_fft_of_each_windowed_frame(f, hop, t, compress):
    x = np.random.default_rng(0).normal(size=(2, hop * t, 2)) * 0.1
    found = np.asarray(jax.jit(stft(f, hop, t, compress).spectrum)(x))
    assert found.shape == (2, f, t, 4) and found.dtype == np.float32
    for b in range(2):
        for c in range(2):
            exact = reference(x[b, :, c], f, hop, t, compress)
            np.testing.assert_allclose(found[b, :, :, 2 * c], exact.real, atol=2e-6)
            np.testing.assert_allclose(found[b, :, :, 2 * c + 1], exact.imag, atol=2e-6)


@pytest.mark.parametrize("f, hop, t", SIZES)
def test_the_inverse_is_exact_and_the_energy_stays(f, hop, t):
    x = np.random.default_rng(1).uniform(-1, 1, (2, hop * t, 2)).astype(np.float32)
    for compress in (0.3, 0.5, 1.0):
        one = stft(f, hop, t, compress)
        found = np.asarray(one.spectrum(x))
        np.testing.assert_allclose(one.waveform(found), x, atol=4e-6)
        power = np.sum(found.reshape(2, f, t, 2, 2) ** 2, axis=-1) ** (1 / compress)
        np.testing.assert_allclose(power.sum(), np.sum(x ** 2), rtol=1e-5)


@pytest.mark.parametrize("f, hop, t", SIZES)
def test_squares_of_windows_add_up_to_1(f, hop, t):
    total = np.zeros(hop * (t + 2))
    for k, window in enumerate(windows(stft(f, hop, t))):
        total[k * hop:k * hop + 2 * f] += window.astype(float) ** 2
    before = (2 * f - hop) // 2
    np.testing.assert_allclose(total[before:before + hop * t], 1, atol=1e-6)
    assert total[:before].max(initial=0) == 0 and total[before + hop * t:].max(initial=0) == 0


@pytest.mark.parametrize("k", [3, 17, 18, 40])
def test_a_steady_tone_has_one_phase_at_every_frequency(k):
    """Without the turns, its phase would advance by 2 pi k hop / 2F from frame to frame."""
    f, hop, t = 64, 96, 8
    tone = np.cos(2 * np.pi * k * np.arange(hop * t) / (2 * f) + 0.3)[None, :, None]
    x = np.asarray(stft(f, hop, t, 1.0).spectrum(tone))[0, k, 1:-1]
    phases = np.arctan2(x[:, 1], x[:, 0])
    np.testing.assert_allclose(phases, phases[0], atol=2e-2)  # the negative frequency leaks a little
    assert np.abs(x).max() > 1


def test_the_basis_is_orthogonal():
    matrix = basis(16).reshape(32, 32).astype(float)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(32), atol=1e-6)


def test_silence_is_zero_and_has_a_derivative():
    one = stft(8, 12, 3)
    assert not np.asarray(one.spectrum(np.zeros((1, 36, 1)))).any()
    assert np.isfinite(jax.grad(lambda x: one.spectrum(x).sum())(np.zeros((1, 36, 1), np.float32))).all()


@pytest.mark.parametrize("changes, message", [
    (dict(length=100), "length = 100: must be a multiple of data.hop = 96: the nearest are 96 and 192"),
    (dict(hop=32), "hop = 32: is at least data.frequencies = 64 and at most twice that, 128"),
    (dict(hop=200), "hop = 200"), (dict(compress=0.0), "compress = 0.0"), (dict(frequencies=1), "frequencies = 1"),
])
def test_impossible_transforms_are_refused(changes, message):
    with pytest.raises(FieldError, match=message):
        STFT(**{"length": 960, **changes})
