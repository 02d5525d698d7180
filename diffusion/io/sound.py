"""Reads sound files from users and writes PCM of 16 bits.

A file is decoded by soundfile (libsndfile), mixed down to one channel if one is asked for, and resampled by soxr. 16
bits are s / 32768 in [-1, 1); wider ones are rounded to them. Silent damage is an error: a .wav whose data are shorter
than its header says, and floats that are NaN, infinite or not scaled to about [-1, 1].
"""
import io
import math
import os
import wave
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffusion.errors import DataError
from diffusion.io.files import atomic_write
from diffusion.io.reading import check_room, reading

ENDINGS = (".wav", ".flac", ".ogg", ".mp3")
LOUDEST = 8.0     # of floating-point samples: above it they are not scaled to [-1, 1]; what is above 1 is cut off
RATES = (1_000, 768_000)  # Hz: a file that claims another is damaged
_MARGIN = 128     # samples beside a part that is resampled, at the lower rate, so that its ends are as in the whole


class Header(NamedTuple):
    """What a file says about itself."""
    rate: int      # Hz
    frames: int    # samples of each channel
    channels: int


def header(content: bytes, where: object) -> Header:
    """The rate, length and channels of a file. Raises DataError that names it, as `where`, if it is no sound, empty,
    or incomplete."""
    with _opened(content, where) as file:
        return _header(file, content, where)


def decode(content: bytes, where: object, *, rate: int, channels: int, length: int | None = None,
           place: Callable[[int], int] = lambda spare: spare // 2) -> np.ndarray:
    """float32 [n, C] of a sound file's bytes, at `rate` Hz: n <= length of a part, or all of it if length is None.

    Several channels become one by their mean; other changes of their number are refused. place: for a file that is
    longer than `length`, the sample from which on it is read, of 0 .. spare; only about that part is decoded. Raises
    DataError, which names the file as `where`, for one that cannot be read.
    """
    with _opened(content, where) as file:
        found = _header(file, content, where)
        if channels not in (1, found.channels):
            raise DataError(f"{where} has {found.channels} channel{'s' * (found.channels > 1)}, but "
                            f"config.data.channels = {channels}. Set --config.data.channels={found.channels}, or 1, to "
                            "which other numbers are mixed down, or leave the file out.")
        up, down = (n // math.gcd(rate, found.rate) for n in (rate, found.rate))
        needed = found.frames if length is None else min(found.frames, -(-length * down // up))
        start = place(found.frames - needed) if needed < found.frames else 0
        margin = 0 if up == down else -(-max(_MARGIN, _MARGIN * down // up) // down) * down
        before = min(start // down * down, margin)  # a multiple of `down`, so that whole samples are cut off later
        last = min(start + needed + margin, found.frames)
        x = _read(file, start - before, last - start + before, where)
    x = x.mean(axis=1, keepdims=True) if channels == 1 and x.shape[1] > 1 else x
    if up == down:
        return x
    x = _soxr().resample(x, found.rate, rate, quality="HQ").reshape(-1, x.shape[1])
    x = x[before // down * up:]
    return x[:max(1, round(needed * up / down))] if length is None else x[:min(length, round(needed * up / down))]


def to_pcm(x: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1) -> int16, rounded to the nearest of s / 32768; what is louder is cut off."""
    return np.clip(np.rint(np.asarray(x, np.float32) * 32768), -32768, 32767).astype(np.int16)


def wav(pcm: np.ndarray, rate: int) -> bytes:
    """The bytes of a .wav file of int16 [L, C]."""
    if pcm.dtype != np.int16 or pcm.ndim != 2:
        raise ValueError(f"expected int16 [L, C], got {pcm.dtype} {list(pcm.shape)}")
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(pcm.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.ascontiguousarray(pcm, "<i2").tobytes())
    return out.getvalue()


def save_wav(path: str | os.PathLike, pcm: np.ndarray, rate: int) -> None:
    """Writes int16 [L, C] as a .wav file, whole or not at all. Raises CheckpointError if it cannot be written."""
    atomic_write(path, wav(pcm, rate))


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: without the library libsndfile
        raise DataError(f"Sound files are read by soundfile, which is not installed ({error}). Install the extra: "
                        "pip install 'diffusion[audio]'") from error
    return soundfile


def _soxr() -> Any:
    try:
        import soxr
    except ImportError as error:
        raise DataError("Sound is resampled by soxr, which is not installed. Install the extra: "
                        "pip install 'diffusion[audio]', or set data.rate to the files' own rate.") from error
    return soxr


def _opened(content: bytes, where: object) -> Any:
    soundfile = _soundfile()
    if not content:
        raise DataError(f"{where} is empty (0 bytes). Replace or remove it.")
    with reading(f"{where} is not a sound file that can be read, or is damaged", "Replace or remove it."):
        return soundfile.SoundFile(io.BytesIO(content))


def _header(file: Any, content: bytes, where: object) -> Header:
    found = Header(file.samplerate, file.frames, file.channels)
    _check_whole(content, where)
    if not found.frames:
        raise DataError(f"{where} holds no sound: its length is 0. Replace or remove it.")
    if not RATES[0] <= found.rate <= RATES[1]:
        raise DataError(f"{where} claims {found.rate:,} samples a second, but sound has {RATES[0]:,} to {RATES[1]:,}: "
                        "it is damaged. Replace or remove it.")
    return found


def _check_whole(content: bytes, where: object) -> None:
    """Raises DataError for a .wav whose data end before its header says: libsndfile reads it as a shorter one."""
    if content[:4] not in (b"RIFF", b"RIFX") or content[8:12] != b"WAVE":
        return
    order, at = "little" if content[:4] == b"RIFF" else "big", 12
    while at + 8 <= len(content):
        size = int.from_bytes(content[at + 4:at + 8], order)
        if content[at:at + 4] == b"data":
            there = len(content) - at - 8
            if there < size and size < 0x7FFFFFFF - 4096:  # programs that write to a pipe announce the largest number
                raise DataError(f"{where} is incomplete: its header announces {size:,} bytes of sound, but "
                                f"{there:,} are in the file. Copy it again, or remove it.")
            return
        at += 8 + size + size % 2


def _read(file: Any, start: int, count: int, where: object) -> np.ndarray:
    """float32 [count, C] from the frame `start` on. Raises DataError for a file that ends before, and for values that
    are no sound."""
    check_room(4 * count * file.channels, f"The sound of {where}")
    with reading(f"{where} is damaged", "Replace or remove it."):
        if start:
            file.seek(start)
        x = file.read(count, dtype="float32", always_2d=True)
    if len(x) != count:
        raise DataError(f"{where} is incomplete: its header announces {file.frames:,} samples, but it ends after "
                        f"{start + len(x):,}. Copy it again, or remove it.")
    if not np.isfinite(x).all():
        raise DataError(f"{where} has samples that are NaN or infinite. Replace or remove it.")
    if (peak := float(np.abs(x).max())) > LOUDEST:
        raise DataError(f"{where} has floating-point samples up to {peak:,.5g}, but sound lies in [-1, 1]: scale them, "
                        "or save them as 16-bit PCM.")
    return x
