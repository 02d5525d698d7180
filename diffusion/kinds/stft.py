"""Waveforms as pictures of complex numbers: a short-time Fourier transform that is its own inverse's transpose."""
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import require
from diffusion.typing import Array


@dataclass(frozen=True, kw_only=True)
class STFT:
    """x [B, T hop, C] <-> the compressed spectrum [B, F, T, 2 C] of frames of 2 F samples.

    A tight frame (Princen and Bradley 1986; Daubechies et al. 1986): frame t has the samples around t hop .. (t + 1)
    hop, under a window that is 1 but for two sine slopes of 2 F - hop samples, which it shares with its neighbours. The
    squares of overlapping windows add up to 1, at the ends of the clip too, where the slope is a step. So the
    transform, by a real orthogonal matrix, keeps the sum of squares, and its transpose is an exact inverse. The
    constant and the highest frequency, both real, are the two parts of one complex number, so that there are F numbers,
    not F + 1. Phases are counted from the clip's start, and not from each frame's: a steady tone then has nearly the
    same number in successive frames, at every frequency alike, as a network of convolutions can learn.

    Magnitudes are compressed, |z|^p e^(i phi) with p = `compress` (0.5 as Richter et al. 2023, SGMSE+): loudness spans
    60 dB, and what a network sees 30 dB. Channel 2 c is the real and 2 c + 1 the imaginary part.
    """
    length: int            # samples of a clip
    frequencies: int = 64  # F
    hop: int = 96          # samples from one frame to the next, F .. 2 F
    compress: float = 0.5  # p; 1: not compressed

    def __post_init__(self):
        require(self.frequencies >= 2, "frequencies", self.frequencies, "must be 2 or more.")
        require(self.frequencies <= self.hop <= 2 * self.frequencies, "hop", self.hop, "is at least data.frequencies = "
                f"{self.frequencies} and at most twice that, {2 * self.frequencies}, the length of a frame.")
        require(0 < self.compress <= 1, "compress", self.compress, "is the power of the magnitudes, in (0, 1].")
        require(self.length % self.hop == 0, "length", self.length, f"must be a multiple of data.hop = {self.hop}: "
                f"the nearest are {max(1, self.length // self.hop) * self.hop} and "
                f"{(self.length // self.hop + 1) * self.hop}.")

    @property
    def frames(self) -> int:
        """T."""
        return self.length // self.hop

    def spectrum(self, x: Array) -> jax.Array:
        """float32 [B, L, C] -> the compressed spectrum [B, F, T, 2 C]."""
        x, slope = jnp.asarray(x, jnp.float32), 2 * self.frequencies - self.hop
        x = jnp.pad(x, ((0, 0), (slope // 2, self.hop - slope // 2), (0, 0)))
        blocks = x.reshape(len(x), self.frames + 1, self.hop, x.shape[-1])
        frames = jnp.concatenate([blocks[:, :-1], blocks[:, 1:, :slope]], axis=2) * windows(self)[None, :, :, None]
        # A dense matrix, since partitioned programs gather the batch for an FFT; in float32 on every device.
        z = jnp.einsum("btnc,nfk->bftck", frames, basis(self.frequencies), precision=jax.lax.Precision.HIGHEST)
        z = turned(z, turns(self), -1)
        power = jnp.sum(z ** 2, axis=-1, keepdims=True)
        # |z|^(p - 1), 0 at 0, where it would be infinite
        factor = jnp.where(power > 0, jnp.where(power > 0, power, 1) ** ((self.compress - 1) / 2), 0)
        return (z * factor).reshape(*z.shape[:3], -1)

    def waveform(self, spectrum: np.ndarray) -> np.ndarray:
        """[B, F, T, 2 C] -> [B, L, C], the exact inverse, in float64."""
        z = np.asarray(spectrum, np.float64).reshape(*spectrum.shape[:3], -1, 2)
        z = z * np.sum(z ** 2, axis=-1, keepdims=True) ** ((1 / self.compress - 1) / 2)
        z = turned(z, turns(self).astype(np.float64), 1)
        frames = np.einsum("bftck,nfk->btnc", z, basis(self.frequencies).astype(np.float64), optimize=True)
        frames, slope = frames * windows(self)[:, :, None], 2 * self.frequencies - self.hop
        out = np.zeros((len(z), (self.frames + 1) * self.hop, z.shape[3]))
        blocks = out.reshape(len(z), self.frames + 1, self.hop, -1)  # views of out
        blocks[:, :-1] += frames[:, :, :self.hop]
        blocks[:, 1:, :slope] += frames[:, :, self.hop:]
        return out[:, slope // 2:slope // 2 + self.length]


@functools.lru_cache(maxsize=8)
def windows(stft: STFT) -> np.ndarray:
    """The window of each frame: float32 [T, 2 F], whose squares add up to 1 at each sample of the clip."""
    size, slope = 2 * stft.frequencies, 2 * stft.frequencies - stft.hop
    rising = np.sin(np.pi / 2 * (np.arange(slope) + 0.5) / slope) if slope else np.ones(0)
    found = np.ones((stft.frames, size))
    found[:, :slope], found[:, size - slope:] = rising, rising[::-1]
    found[0, :slope] = np.arange(slope) >= slope // 2  # before the clip: 0
    found[-1, size - slope:] = np.arange(slope) < slope // 2  # after it
    found = found.astype(np.float32)
    found.setflags(write=False)
    return found


def turned(z: Array, angles: np.ndarray, sign: int) -> Array:
    """z exp(sign i angle): real and imaginary parts, z [B, F, T, C, 2], angles [F, T, 2] as cosine and sine."""
    cosine, sine = angles[None, :, :, None, 0], sign * angles[None, :, :, None, 1]
    xp = np if isinstance(z, np.ndarray) else jnp
    return xp.stack([z[..., 0] * cosine - z[..., 1] * sine, z[..., 0] * sine + z[..., 1] * cosine], axis=-1)


@functools.lru_cache(maxsize=8)
def turns(stft: STFT) -> np.ndarray:
    """How far a tone of each frequency turns from the clip's start to each frame, modulo a turn: cosine and sine,
    float32 [F, T, 2]; 1 at frequency 0, where two real numbers are."""
    size = 2 * stft.frequencies
    angle = 2 * np.pi * (np.outer(np.arange(stft.frequencies), np.arange(stft.frames) * stft.hop) % size) / size
    found = np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)
    found.setflags(write=False)
    return found


@functools.lru_cache(maxsize=8)
def basis(frequencies: int) -> np.ndarray:
    """The real Fourier transform of 2 F samples as an orthogonal matrix: float32 [2 F, F, 2], real and imaginary parts;
    at frequency 0 the constant and the highest frequency."""
    size = 2 * frequencies
    angle = 2 * np.pi * (np.outer(np.arange(size), np.arange(frequencies)) % size) / size
    found = np.stack([np.cos(angle), -np.sin(angle)], axis=-1) * np.sqrt(2 / size)
    found[:, 0, 0] = 1 / np.sqrt(size)
    found[:, 0, 1] = (-1.0) ** np.arange(size) / np.sqrt(size)
    found = found.astype(np.float32)
    found.setflags(write=False)
    return found
