"""Reads clips of users: animations, films and folders of frames; writes clips as GIF, MP4 and contact sheets."""
import io
import itertools
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageSequence

from diffusion.errors import DataError
from diffusion.io import images, pictures
from diffusion.io.files import atomic_write
from diffusion.io.reading import reading
from diffusion.io.sample_set import save_set

FILMS = {".mp4": "mov", ".mov": "mov", ".webm": "matroska", ".mkv": "matroska", ".avi": "avi"}  # ffmpeg's names
ENDINGS = (".gif", *FILMS)  # of the files that `frames` reads
RATE = 8                    # frames a second of what is written
ROWS, COLUMNS = 32, 32      # of a contact sheet, at most
_DAMAGED = "Replace or remove it."
_INSTALL = "pip install 'diffusion[video]'"


def frames(content: bytes, where: str, ending: str, *, channels: int, background: str = "white") -> Iterator[
        Image.Image]:
    """The frames of an animation or film, in turn: 1 channel grey, 3 RGB, 4 with alpha. A frame of a GIF counts once,
    however long it is shown. Raises DataError that names the file (`where`) if it cannot be read or has another
    format."""
    if channels not in pictures.MODES:
        raise DataError(f"A frame has 1, 3 or 4 channels, not the {channels} of config.data.channels.")
    found = _of_film(content, where, ending) if ending in FILMS else _of_gif(content, where)
    mode = pictures.MODES[channels]
    for frame in found:
        if channels != 4 and frame.has_transparency_data:
            frame = frame.convert("RGBA")
            frame = Image.alpha_composite(Image.new("RGBA", frame.size, background), frame)
        yield frame.convert(mode)


def _of_gif(content: bytes, where: str) -> Iterator[Image.Image]:
    problem = f"{where} is not an animation that can be read, or is damaged"
    with reading(problem, _DAMAGED), Image.open(io.BytesIO(content), formats=("GIF",)) as file:
        if file.width * file.height > pictures.MAX_PIXELS:
            raise DataError(f"{where} claims {file.width:,} x {file.height:,} pixels: it is damaged, or made to fill "
                            f"the memory. {_DAMAGED}")
        if not content.rstrip(b"\0").endswith(b";"):  # else Pillow gives the frames before the end
            raise DataError(f"{problem}: it has no end. {_DAMAGED}")
        for frame in ImageSequence.Iterator(file):
            yield frame.copy()


def _of_film(content: bytes, where: str, ending: str) -> Iterator[Image.Image]:
    command = [_ffmpeg(f"{where} cannot be read: films"), "-nostdin", "-v", "error", "-f", FILMS[ending], "-i"]
    # ffmpeg seeks in what it reads, so that the content must be a file; it writes a stream of PPM pictures.
    with (tempfile.NamedTemporaryFile(suffix=ending) as file, tempfile.TemporaryFile() as said,
          reading(f"{where} is not a film that can be read, or is damaged", _DAMAGED)):
        file.write(content)
        file.flush()
        command += [file.name, "-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said) as process:
            try:
                while process.stdout.readline() == b"P6\n":
                    width, height = map(int, process.stdout.readline().split())
                    process.stdout.readline()
                    yield Image.frombytes("RGB", (width, height), process.stdout.read(3 * width * height))
                said.seek(0)
                if process.wait() or (errors := said.read()):
                    raise ValueError(errors.decode(errors="replace").strip().rpartition("\n")[2] or "ffmpeg failed")
            finally:
                process.kill()


def _ffmpeg(what: str) -> str:
    """The path of the program. Raises DataError without the extra `video`."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise DataError(f"{what} need ffmpeg, which is not installed. Install the extra: {_INSTALL}") from error
    return imageio_ffmpeg.get_ffmpeg_exe()


def films_are_written() -> bool:
    """Whether the extra `video` is installed."""
    try:
        return bool(_ffmpeg("films"))
    except DataError:
        return False


def save_clips(folder: str | os.PathLike, batches: Iterable[np.ndarray], *, count: int,
               titles: Sequence[str] = ()) -> None:
    """Writes clip i as `{i:06d}.gif`, the first as the contact sheet grid.png and, where the extra `video` is
    installed, side by side in the film grid.mp4, then all as samples.npz, by `save_set`.

    batches: uint8 [b, T, H, W, C], `count` clips in all. A GIF has 256 colours a frame: greys are exact, others are
    not; samples.npz has the exact values. Raises CheckpointError if the disk is full.
    """
    folder = Path(folder)

    def overview(shown: np.ndarray) -> None:
        images.save_png(folder / "grid.png", contact_sheet(shown, titles))
        if films_are_written():
            write_film(folder / "grid.mp4", side_by_side(shown))

    save_set(folder, batches, count=count, ending=".gif", save=lambda path, clip: path.write_bytes(gif(clip)),
             overview=overview)


def contact_sheet(clips: np.ndarray, titles: Sequence[str] = ()) -> np.ndarray:
    """A row for each clip with its title, a column for each frame: uint8 [N, T, H, W, C] -> uint8 [h, w, 3].

    At most the first ROWS clips; of more than COLUMNS frames, every second or third and so on.
    """
    clips = np.asarray(clips)[:ROWS]
    clips = clips[:, ::-(-clips.shape[1] // COLUMNS)]
    number, columns = clips.shape[:2]
    sheet = images.grid(clips.reshape(-1, *clips.shape[2:]), columns=columns)
    if not len(titles):
        return sheet
    font = ImageFont.load_default(14)
    titles = [str(title) for title in titles[:number]]
    left = 10 + max(round(font.getlength(title)) for title in titles)
    canvas = Image.new("RGB", (left + sheet.shape[1], sheet.shape[0]), (225, 225, 225))
    canvas.paste(Image.fromarray(sheet), (left, 0))
    draw, height = ImageDraw.Draw(canvas), sheet.shape[0] / number
    for row, title in enumerate(titles):
        draw.text((5, (row + 0.5) * height), title, fill=(0, 0, 0), font=font, anchor="lm")
    return np.asarray(canvas)


def side_by_side(clips: np.ndarray) -> np.ndarray:
    """uint8 [N, T, H, W, C] -> one clip uint8 [T, h, w, 3], of each frame's `images.grid`, with even sides."""
    shown = np.stack([images.grid(frame) for frame in np.moveaxis(clips, 1, 0)])
    return np.pad(shown, ((0, 0), (0, shown.shape[1] % 2), (0, shown.shape[2] % 2), (0, 0)), mode="edge")


def write_film(path: str | os.PathLike, clip: np.ndarray, rate: int = RATE) -> None:
    """Writes uint8 [T, H, W, 3], H and W even, as a film (H.264). Raises DataError without the extra `video`,
    CheckpointError if it cannot be written."""
    height, width = clip.shape[1:3]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"clip{Path(path).suffix}"
        subprocess.run([_ffmpeg("films"), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s",
                        f"{width}x{height}", "-r", str(rate), "-i", "-", "-c:v", "libx264", "-crf", "18", "-pix_fmt",
                        "yuv420p", str(made)], input=np.ascontiguousarray(clip).tobytes(), check=True)
        atomic_write(path, made.read_bytes())


def gif(clip: np.ndarray, rate: int = RATE) -> bytes:
    """A GIF of uint8 [T, H, W, C] that is shown again and again, with each frame as it is.

    Pillow would leave out a frame that equals the one before. So each frame is one of its pictures, whose table of
    colours and compressed pixels become those of a frame (GIF89a, sections 20 to 23).
    """
    height, width = clip.shape[1:3]
    parts = [b"GIF89a", struct.pack("<HHBBB", width, height, 0x70, 0, 0), b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"]
    for frame in clip:
        image, one = images.picture(images.visible(frame)), io.BytesIO()
        image = image if image.mode == "L" else image.quantize(256)
        image.save(one, "GIF", optimize=False)
        content = one.getvalue()
        bits = content[10] & 7                     # the global table has 2^(bits + 1) colours
        table, rest = content[13:13 + 6 * 2**bits], content[13 + 6 * 2**bits:]
        while rest[0] == 0x21:                     # an extension: its label, and blocks until an empty one
            rest = rest[2:]
            while rest[0]:
                rest = rest[1 + rest[0]:]
            rest = rest[1:]
        parts += [b"!\xf9\x04\0", struct.pack("<H", round(100 / rate)), b"\0\0",
                  rest[:9], bytes([rest[9] & 0x40 | 0x80 | bits]), table, rest[10:-1]]
    return b"".join([*parts, b";"])


def taken(found: Iterator, first: int, count: int, every: int) -> list:
    """`count` entries of an iterator, from `first` on, every so many; fewer if it ends before."""
    return list(itertools.islice(found, first, first + (count - 1) * every + 1, every))
