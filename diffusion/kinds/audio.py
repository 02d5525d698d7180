"""Sound: clips of PCM, whose x0 is the waveform, or its complex spectrogram as an image."""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from diffusion.data.sources import read_examples
from diffusion.errors import DataError, DivergedError, require
from diffusion.io import sound
from diffusion.kinds import mel
from diffusion.kinds.base import Example, Record
from diffusion.kinds.stft import STFT
from diffusion.typing import Array, Keys

DEVIATION = 0.5     # of a spectrogram's x0: EDM's sigma_data, and about what images have
QUIETEST = 1 / 50   # the deviation of a frequency, of the loudest one's, below which it is taken for that
_MEASURED = 2048    # clips of which the deviations are measured


@dataclass(frozen=True, kw_only=True)
class AudioSpec:
    """Clips of one length, rate and number of channels. The record is PCM of 16 bits; `stft` None: x0 is the waveform
    [L, C] in [-1, 1], else DEVIATION times the compressed spectrum [F, T, 2 C] over `bands`."""
    length: int                     # L, samples
    rate: int                       # Hz
    channels: int = 1               # C
    crop: str = "center"            # the part of longer recordings: center or random
    mask_padding: bool = False      # whether losses and likelihoods leave out what follows a shorter recording's end
    stft: STFT | None = None
    bands: tuple[float, ...] = ()   # deviation of the compressed spectrum at each frequency, or of all; (): unknown
    field, called, endings = "audio", "clip", sound.ENDINGS

    @property
    def shape(self) -> tuple[int, ...]:
        """[L, C] or [F, T, 2 C]."""
        if self.stft is None:
            return self.length, self.channels
        return self.stft.frequencies, self.stft.frames, 2 * self.channels

    @property
    def rounding(self) -> str:
        """How `finish` makes 16 bits."""
        return ("int16: rint(32767.5 clip(x, -1, 1) - 1/2)" if self.stft is None else
                "int16: clip(rint(32768 x)) of the spectrogram's waveform x")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Those of waveforms; a spectrum has none."""
        return (-1.0, 1.0) if self.stft is None else None

    @property
    def levels(self) -> int | None:
        """Those of 16 bits, in a waveform."""
        return 65_536 if self.stft is None else None

    @property
    def stored(self) -> dict:
        """The PCM, its mask if losses use it, and a label."""
        mask = {"mask": ((self.length,), np.bool_)} if self.mask_padding else {}
        return {"audio": ((self.length, self.channels), np.int16), "label": ((), np.int32), **mask}

    @property
    def draws(self) -> bool:
        """Whether training takes parts at random places."""
        return self.crop == "random"

    @property
    def scaling(self) -> tuple:
        """What determines x0 of a waveform, beside its shape."""
        return self.rate, self.stft, self.bands

    @property
    def measured(self) -> bool:
        """Whether `bands` are known or not needed."""
        return self.stft is None or bool(self.bands)

    def assumed(self) -> dict[str, tuple[float, ...]]:
        """A usual value of `bands`, where the data are not at hand."""
        return {"bands": (0.2,)}

    def measure(self, source: Sequence) -> dict[str, tuple[float, ...]]:
        """`bands` of up to 2,048 clips, evenly over the source. Raises DataError if all are silent."""
        self.check(source, "config.data")
        indices = np.unique(np.linspace(0, len(source) - 1, _MEASURED).round().astype(int)).tolist()
        squares = np.zeros(self.stft.frequencies)
        for first in range(0, len(indices), 64):
            raw = read_examples(source, indices[first:first + 64])
            pcm = np.stack([self.load(one, None)["audio"] for one in raw])
            spectrum = np.asarray(self.stft.spectrum(pcm / np.float32(32768)), np.float64)
            squares += (spectrum ** 2).mean((2, 3)).sum(0)
        bands = np.sqrt(squares / len(indices))
        if not bands.any():
            raise DataError(f"All {len(indices):,} clips of config.data that were read are silent.")
        return {"bands": tuple(float(f"{band:.4g}") for band in np.maximum(bands, QUIETEST * bands.max()))}

    def check(self, source: Sequence, where: str) -> None:
        """Raises DataError if there is no example, or the first one cannot be made a clip."""
        if not len(source):
            raise DataError(f"{where} has no examples.")
        self.load(source[0], None)

    def needs_load(self, encoded: bool) -> bool:
        """Always: files are decoded, and arrays brought to the length."""
        return True

    def load(self, raw: dict, rng: np.random.Generator | None) -> dict:
        """{"file": File, ...} or {"audio": int16 or float [l, C] or [l], "mask": bool [l] if there is one, ...} ->
        "audio" int16 [L, C]: a part of a longer recording, in the middle or, with an rng and crop = random, anywhere;
        a shorter one followed by silence, which "mask" shows if `mask_padding`. Raises DataError that names a file
        which cannot be read."""
        def place(spare: int) -> int:
            return int(rng.integers(spare + 1)) if self.draws and rng is not None else spare // 2

        if isinstance(raw.get("file"), tuple):
            raise DataError(f"{raw['file'][0].where} is one of several files of an example, but a clip of sound is one "
                            "file.")
        if file := raw.get("file"):
            pcm = sound.to_pcm(sound.decode(file.content, file.where, rate=self.rate, channels=self.channels,
                                            length=self.length, place=place))
        elif "audio" in raw:
            pcm = self._from_array(np.asarray(raw["audio"]), raw.get("mask"))
            if (spare := len(pcm) - self.length) > 0:
                first = place(spare)
                pcm = pcm[first:first + self.length]
        else:
            raise DataError("data.kind = 'audio' takes files or records that hold 'audio', but the data have "
                            f"{', '.join(raw)}. Choose the kind that fits the data, or another source.")
        rest = {name: value for name, value in raw.items() if name not in ("file", "audio", "mask")}
        if self.mask_padding:
            rest["mask"] = np.arange(self.length) < len(pcm)
        return {"audio": np.pad(pcm, ((0, self.length - len(pcm)), (0, 0))), **rest}

    def _from_array(self, x: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """int16 [l, C] of an array, without what its mask leaves out."""
        x = x[:, None] if x.ndim == 1 else x
        if x.ndim != 2 or not x.size or x.shape[1] != self.channels:
            raise DataError(f"A clip of config.data is an array {list(x.shape)}, but the config asks for [samples, "
                            f"{self.channels}]: set data.channels, or transpose the array.")
        if mask is not None:
            x = x[np.asarray(mask, bool)]
        if x.dtype == np.int16:
            return x
        if not np.issubdtype(x.dtype, np.floating):
            raise DataError(f"A clip of config.data is {x.dtype}: give int16, or floats in [-1, 1].")
        if not np.isfinite(x).all() or np.abs(x).max(initial=0) > sound.LOUDEST:
            raise DataError("A clip of config.data has values that are NaN, infinite or far outside [-1, 1]: remove "
                            "it, or scale floats to [-1, 1].")
        return sound.to_pcm(x)

    def prepare(self, record: Record, keys: Callable[[str], Keys] | None = None) -> Example:
        """{"audio": int16 [B, L, C], ...} -> x0, and the record's other entries as conditions. A waveform's level s is
        (2 s + 1) / 65535, so that -1 and 1 are the outermost of 65,536."""
        pcm = jnp.asarray(record["audio"])
        if pcm.dtype != np.int16:
            raise DataError(f"Clips must be int16, but they are {pcm.dtype}.")
        cond = {name: value for name, value in record.items() if name not in ("audio", "mask")}
        if self.stft is not None:
            spectrum = self.stft.spectrum(pcm.astype(jnp.float32) / 32768)
            return Example(spectrum * (DEVIATION / self._bands()), cond)
        x0 = (2.0 * pcm.astype(jnp.float32) + 1.0) / 65535.0
        if not self.mask_padding:
            return Example(x0, cond)
        mask = jnp.asarray(record["mask"], bool)[..., None]
        return Example(jnp.where(mask, x0, 0), cond, mask)

    def _bands(self) -> np.ndarray:
        """float32 [1, F or 1, 1, 1]. Raises ValueError if they are not measured."""
        if not self.bands:
            raise ValueError("bands are not measured: see build.measured")
        return np.asarray(self.bands, np.float32).reshape(1, -1, 1, 1)

    def finish(self, x0: np.ndarray) -> np.ndarray:
        """int16 [B, L, C]: rounded to the nearest level, what is louder cut off."""
        x0 = np.asarray(x0, np.float32)
        if bad := int((~np.isfinite(x0.reshape(len(x0), -1))).any(axis=1).sum()):
            raise DivergedError(f"{bad} of {len(x0)} sampled clips contain NaN or infinity. Sample with "
                                "config.network.dtype=float32 or with an earlier checkpoint (--checkpoint=STEP).")
        if self.stft is None:
            return np.rint(np.clip(x0.astype(np.float64), -1, 1) * 32767.5 - 0.5).astype(np.int16)
        return sound.to_pcm(self.stft.waveform(x0 * (self._bands() / DEVIATION)))

    def write(self, folder: Path, batches: Iterable[np.ndarray], count: int, titles: Sequence[str] = ()) -> str:
        """.wav files, a picture of waveforms and spectrograms, a page of players, and samples.npz."""
        from diffusion.io import sound_files  # imports matplotlib, which takes half a second
        sound_files.save_clips(folder, batches, count=count, rate=self.rate, spectrogram=self._log_mel, titles=titles)
        return "index.html, grid.png and samples.npz"

    def preview(self, path: Path, samples: np.ndarray, titles: Sequence[str] = ()) -> None:
        """Waveforms and log-mel spectrograms."""
        from diffusion.io import sound_files
        sound_files.save_picture(path, samples, rate=self.rate, spectrogram=self._log_mel, titles=titles)

    def gap(self, first: float, last: float) -> np.ndarray:
        """The samples from `first` to `last` seconds, [L, 1]; or all frames that have some of them, [1, T, 1]."""
        a, b = (round(seconds * self.rate) for seconds in (first, last))
        hidden = np.arange(self.length)
        hidden = ((a <= hidden) & (hidden < b))[:, None]
        if self.stft is not None:
            slope = 2 * self.stft.frequencies - self.stft.hop
            starts = np.arange(self.stft.frames) * self.stft.hop - slope // 2
            hidden = ((starts < b) & (starts + 2 * self.stft.frequencies > a))[None, :, None]
        require(hidden.any() and not hidden.all(), "gap", (first, last), "must be a part of the "
                                                                         f"{self.length / self.rate:g} "
                "seconds of a clip.")
        return hidden

    def pooled(self, x0: np.ndarray) -> np.ndarray:
        """Averages over 8 parts of the time and 16 of the frequencies: of the log-mel spectrogram, or of the
        compressed magnitudes."""
        x0 = np.asarray(x0, np.float32)
        if self.stft is None:
            levels = self._log_mel(x0.mean(-1))
        else:
            parts = x0.reshape(*x0.shape[:3], self.channels, 2).astype(np.float64)
            levels = np.sqrt((parts ** 2).sum(-1)).mean(-1).transpose(0, 2, 1)
        for axis, most in ((1, 8), (2, 16)):
            edges = np.linspace(0, levels.shape[axis], min(most, levels.shape[axis]) + 1).astype(int)
            lengths = np.diff(edges).reshape([-1 if i == axis else 1 for i in range(3)])
            levels = np.add.reduceat(levels.astype(np.float64), edges[:-1], axis) / lengths
        return levels.reshape(len(x0), -1)

    def pictures(self, values: np.ndarray) -> np.ndarray:
        """Log-mel spectrograms, low tones first: float32 [B, 1, mels, frames, 1] of PCM."""
        return np.swapaxes(self._log_mel(values.mean(-1, dtype=np.float32) / 32768), 1, 2)[:, None, ..., None]

    def _log_mel(self, x: Array) -> Array:
        return mel.log_mel(x, self.rate, mels=min(64, mel.window_of(self.rate) // 4))


def audio(*, length: int = 16_384,          # of a clip, samples of each channel
          rate: int = 16_000,               # samples a second, Hz; files of another rate are resampled
          channels: int = 1,                # of a clip: 1, to which others are mixed down, or the files' own number
          crop: Literal["center", "random"] = "center",  # the part of longer recordings: the middle, or, in training,
                                            # a random one
          form: Literal["waveform", "stft"] = "waveform",  # what x0 is: samples, or a complex spectrogram as an image
          mask_padding: bool = False,       # leave what follows a shorter recording's end out of losses and
                                            # likelihoods; else the model learns that silence, and so where clips end
          frequencies: int = 64,            # of a spectrogram, F; a frame has 2 F samples
          hop: int = 96,                    # samples from one frame to the next, from F to 2 F
          compress: float = 0.5,            # power of a spectrogram's magnitudes (Richter et al. 2023: 0.5); 1: as is
          bands: tuple[float, ...] = (),    # deviation of the compressed spectrogram at each frequency, or of all;
                                            # empty: measured
          ) -> AudioSpec:
    """Clips of sound of 16 bits, as waveforms in [-1, 1] (Kong et al. 2021) or complex spectrograms."""
    require(length >= 2, "length", length, "must be 2 samples or more.")
    require(sound.RATES[0] <= rate <= sound.RATES[1], "rate", rate, f"must be {sound.RATES[0]:,} to "
            f"{sound.RATES[1]:,} Hz.")
    require(channels >= 1, "channels", channels, "must be positive.")
    if form == "waveform":
        require(not bands, "bands", bands, "is of spectrograms: leave it out, or set data.form=stft.")
        return AudioSpec(length=length, rate=rate, channels=channels, crop=crop, mask_padding=mask_padding)
    require(not mask_padding, "mask_padding", mask_padding, "is for waveforms (data.form): a frame of a spectrogram "
            "may hold both sound and padding.")
    stft = STFT(length=length, frequencies=frequencies, hop=hop, compress=compress)
    require(len(bands) in (0, 1, frequencies) and all(band > 0 for band in bands), "bands", bands, "is one positive "
            f"number, or one for each of the {frequencies} frequencies.")
    return AudioSpec(length=length, rate=rate, channels=channels, crop=crop, stft=stft, bands=tuple(bands))


KINDS = {"audio": audio}
