"""Writes clips of sound: .wav files, a picture of waveforms and spectrograms, and a page of players."""
import html
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusion.io import sound
from diffusion.io.files import atomic_write
from diffusion.io.images import save_png
from diffusion.io.sample_set import SHOWN, save_set

# float [B, L] in [-1, 1) -> the logarithm of the power [B, T, M], low frequencies first
Spectrogram = Callable[[np.ndarray], np.ndarray]

DECIBELS = 70      # below the loudest of a picture, what is black
_WIDTH, _WAVE, _SPECTROGRAM, _TITLE, _GAP = 232, 44, 96, 16, 8  # pixels of one clip's tile, and between tiles
_TILE = _TITLE + _WAVE + _SPECTROGRAM
_COLUMNS = 8
_HEAD = 30         # pixels above the tiles
_INK, _PAPER, _WAVE_PAPER = (31, 95, 168), (255, 255, 255), (240, 242, 245)


def save_clips(folder: str | os.PathLike, batches: Iterable[np.ndarray], *, count: int, rate: int,
               spectrogram: Spectrogram, titles: Sequence[str] = ()) -> None:
    """Writes clip i as `{i:06d}.wav`, the first 100 as grid.png and in index.html, a page of players, and all as
    samples.npz: `arr_0` int16 [N, L, C] and `rate`.

    batches: int16 [b, L, C], `count` clips in all. titles: a text for each clip, or none. Errors as in `save_set`.
    """
    folder = Path(folder)

    def overview(shown: np.ndarray) -> None:
        save_png(folder / "grid.png", picture(shown, rate=rate, spectrogram=spectrogram, titles=titles))
        atomic_write(folder / "index.html", page(len(shown), count=count, titles=titles,
                                                 seconds=shown.shape[1] / rate, rate=rate))

    def save(path: Path, clip: np.ndarray) -> None:
        path.write_bytes(sound.wav(clip, rate))
    save_set(folder, batches, count=count, ending=".wav", save=save, overview=overview,
             arrays={"rate": np.int64(rate)})


def save_picture(path: str | os.PathLike, clips: np.ndarray, *, rate: int, spectrogram: Spectrogram,
                 titles: Sequence[str] = ()) -> None:
    """Writes `picture` as a PNG, whole or not at all."""
    save_png(path, picture(clips[:SHOWN], rate=rate, spectrogram=spectrogram, titles=titles))


def picture(clips: np.ndarray, *, rate: int, spectrogram: Spectrogram, titles: Sequence[str] = ()) -> np.ndarray:
    """uint8 [h, w, 3]: of each clip, int16 [N, L, C], the title, the waveform and the spectrogram of its channels'
    mean. One scale of colours for all, so that loudness can be compared."""
    x = clips.astype(np.float32).mean(-1) / 32768
    power = spectrogram(x)
    high = float(power.max())
    levels = np.clip(1 + (power - high) / (DECIBELS * math.log(10) / 10), 0, 1) * (high > power.min())  # silence: black
    colours = (matplotlib.colormaps["magma"](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    rows = math.ceil(len(x) / _COLUMNS)
    columns = min(len(x), _COLUMNS)
    canvas = Image.new("RGB", (max(columns * (_WIDTH + _GAP) + _GAP, 520), _HEAD + rows * (_TILE + _GAP)), _PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    draw.text((_GAP, 8), f"{x.shape[1] / rate:.3g} s; waveform within ±1; log-mel spectrogram, 0 to {rate / 2000:g} "
              f"kHz upwards, {DECIBELS} dB from black to white", fill="black", font=font)
    for i, (wave, level) in enumerate(zip(x, levels, strict=True)):
        left, top = place(i)
        draw.text((left, top), _title(titles, i)[:36], fill="black", font=font)
        _draw_wave(draw, wave, left, top + _TITLE)
        tile = Image.fromarray(colours[(level.T[::-1] * 255).round().astype(np.uint8)])
        canvas.paste(tile.resize((_WIDTH, _SPECTROGRAM), Image.Resampling.BICUBIC), (left, top + _TITLE + _WAVE))
    return np.asarray(canvas)


def place(i: int) -> tuple[int, int]:
    """Left and top of the tile of clip i."""
    return _GAP + i % _COLUMNS * (_WIDTH + _GAP), _HEAD + i // _COLUMNS * (_TILE + _GAP)


def _title(titles: Sequence[str], i: int) -> str:
    """On one line."""
    return " ".join(titles[i].split()) if i < len(titles) else ""


def _draw_wave(draw: ImageDraw.ImageDraw, wave: np.ndarray, left: int, top: int) -> None:
    """The range of the samples in each column of pixels."""
    draw.rectangle((left, top, left + _WIDTH - 1, top + _WAVE - 1), fill=_WAVE_PAPER)
    edges = np.linspace(0, len(wave), _WIDTH + 1)
    middle, half = top + (_WAVE - 1) / 2, (_WAVE - 1) / 2
    for column in range(_WIDTH):
        part = wave[int(edges[column]):max(int(math.ceil(edges[column + 1])), int(edges[column]) + 1)]
        draw.line((left + column, round(middle - half * float(part.max())), left + column,
                   round(middle - half * float(part.min()))), fill=_INK)


def page(shown: int, *, count: int, titles: Sequence[str], seconds: float, rate: int) -> str:
    """An HTML page with a player for each of the first `shown` clips, beside its part of grid.png."""
    figures = []
    for i in range(shown):
        (left, top), name = place(i), f"{i:06d}.wav"
        title = html.escape(_title(titles, i))
        picture_of = f"background: url(grid.png) -{left}px -{top + _TITLE}px"
        figures.append(f'<figure><figcaption>{title} <a href="{name}">{name}</a></figcaption><div style="{picture_of}">'
                       f'</div><audio controls preload="none" src="{name}"></audio></figure>')
    more = f", the first {shown}" if count > shown else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Samples</title>
<style>
body {{ font: 14px sans-serif; margin: 24px; }}
main {{ display: flex; flex-wrap: wrap; gap: 16px; }}
figure {{ margin: 0; width: {_WIDTH}px; }}
figcaption {{ overflow-wrap: anywhere; }}
div {{ width: {_WIDTH}px; height: {_WAVE + _SPECTROGRAM}px; margin: 4px 0; }}
audio {{ width: {_WIDTH}px; height: 32px; }}
</style>
</head>
<body>
<h1>Samples</h1>
<p>{count:,} clips of {seconds:.3g} s at {rate:,} Hz{more}. <a href="grid.png">All in one picture</a>.</p>
<main>
{chr(10).join(figures)}
</main>
</body>
</html>
"""
