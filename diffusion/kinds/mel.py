"""Log-mel spectrograms: for pictures of sound, and for networks that classify it."""
import functools
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import require
from diffusion.typing import Array

WINDOW = 0.025   # seconds: the window is the next power of two of samples, 256 at 8 kHz and 512 at 16 kHz
STEP = 0.010     # seconds from one frame to the next
FLOOR = 1e-6     # of the power: 80 dB below a full-scale sine at 8 kHz; a silent band has the logarithm -13.8
_BREAK = 1000.0  # Hz: below it Slaney's scale is linear, 200/3 Hz a mel, above it logarithmic, 27 mels a factor 6.4


def log_mel(x: Array, rate: int, *, mels: int = 64, window: int | None = None, step: int | None = None,
            low: float = 0.0, high: float | None = None, floor: float = FLOOR) -> Array:
    """log(power in mel bands + floor) of waveforms x [..., L] in [-1, 1]: float32 [..., 1 + L // step, mels].

    NumPy for NumPy arrays and JAX for JAX's. The power is |FFT|^2 of frames under a periodic Hann window of `window`
    samples, frame k centred on sample k step, with zeros beyond the ends; bands as in `filters`. With power in place of
    its logarithm these are the numbers of librosa.feature.melspectrogram (center=True, pad_mode="constant").
    rate: in Hz. window, step: in samples; by default the power of two from 25 ms up, and 10 ms. low, high: the
    frequencies of the lowest and highest band's outer edge, Hz; high is rate / 2 by default. Raises FieldError if a
    band would have no frequency of the transform in it.
    """
    window, step = window or window_of(rate), step or max(1, round(STEP * rate))
    xp: ModuleType = jnp if isinstance(x, jax.Array) else np
    x = xp.asarray(x, np.float32)
    weights = filters(rate, window, mels, low=low, high=high)
    frames = 1 + x.shape[-1] // step
    x = xp.pad(x, [(0, 0)] * (x.ndim - 1) + [(window // 2, window)])
    taken = x[..., np.arange(frames)[:, None] * step + np.arange(window)]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
    spectrum = xp.fft.rfft(taken * hann.reshape([1] * x.ndim + [window]))
    power = spectrum.real ** 2 + spectrum.imag ** 2
    if xp is jnp:  # an accelerator's default precision would leave three digits
        banded = jnp.matmul(power, weights.T, precision=jax.lax.Precision.HIGHEST)
    else:
        banded = power.astype(np.float32) @ weights.T
    return xp.log(banded + np.float32(floor))


def window_of(rate: int) -> int:
    """Samples of the usual window: the power of two from 25 ms up."""
    return 1 << max(4, int(np.ceil(np.log2(WINDOW * rate))))


@functools.lru_cache(maxsize=16)
def filters(rate: int, window: int, mels: int, *, low: float = 0.0, high: float | None = None) -> np.ndarray:
    """Triangles of unit area in frequency, evenly spaced on Slaney's mel scale: float32 [mels, window // 2 + 1].

    Slaney's Auditory Toolbox (1998), as librosa.filters.mel has it by default (htk=False, norm="slaney"). Raises
    FieldError if a band has no frequency of the transform in it.
    """
    high = rate / 2 if high is None else high
    require(0 <= low < high <= rate / 2, "high", high, f"must be above low = {low} and at most {rate / 2} Hz.")
    require(mels >= 1, "mels", mels, "must be positive.")
    edges = from_mel(np.linspace(to_mel(low), to_mel(high), mels + 2))
    at = np.fft.rfftfreq(window, 1 / rate)
    left, centre, right = (edges[i:mels + i, None] for i in range(3))
    triangles = np.maximum(0, np.minimum((at - left) / (centre - left), (right - at) / (right - centre)))
    require(triangles.any(axis=1).all(), "mels", mels, f"are more bands than {window} samples at {rate} Hz tell apart: "
            "ask for fewer, or for a longer window.")
    found = (triangles * 2 / (right - left)).astype(np.float32)
    found.setflags(write=False)
    return found


def to_mel(frequency: Array) -> np.ndarray:
    """Hz -> mel, Slaney's scale."""
    frequency = np.asarray(frequency, float)
    above = 15 + np.log(np.maximum(frequency, _BREAK) / _BREAK) * (27 / np.log(6.4))
    return np.where(frequency < _BREAK, frequency * 3 / 200, above)


def from_mel(mel: Array) -> np.ndarray:
    """mel -> Hz, Slaney's scale."""
    mel = np.asarray(mel, float)
    return np.where(mel < 15, mel * 200 / 3, _BREAK * np.exp((np.maximum(mel, 15) - 15) * (np.log(6.4) / 27)))
