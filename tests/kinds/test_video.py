"""The kind `video`: clips from files of each form, what is refused, and what is written."""
import io

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion.data.files import File
from diffusion.errors import DataError, DivergedError, FieldError
from diffusion.io import clips
from diffusion.kinds.video import video

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 8, 12, 1), np.uint8)
FRAMES[3] = FRAMES[2]  # two equal frames, which Pillow would write as one


def gif(frames=FRAMES, where="a/clip.gif"):
    return File(where, clips.gif(frames))


def png(frame, where):
    file = io.BytesIO()
    Image.fromarray(frame[..., 0]).save(file, "PNG")
    return File(where, file.getvalue())


def folder(frames=FRAMES):
    return tuple(png(frame, f"clip/{i:03d}.png") for i, frame in enumerate(frames))


def spec(**keys):
    return video(**{"size": (8, 12), "channels": 1, "frames": 4, "crop": "none"} | keys)


def load(file, rng=None, **keys):
    return spec(**keys).load({"file": file, "label": 3, "speed": 2.0}, rng)


@pytest.mark.parametrize("file", [gif(), folder()], ids=["gif", "folder"])
def test_a_clip_is_the_first_frames_or_in_training_any(file):
    found = load(file)
    assert {name: value for name, value in found.items() if name != "video"} == {"label": 3, "speed": 2.0}
    np.testing.assert_array_equal(found["video"], FRAMES[:4])
    starts = {next(i for i in range(3) if np.array_equal(FRAMES[i:i + 4], load(file, np.random.default_rng(seed))[
        "video"])) for seed in range(20)}
    assert starts == {0, 1, 2}
    again = load(file, np.random.default_rng(3))["video"]
    np.testing.assert_array_equal(load(file, np.random.default_rng(3))["video"], again)


@pytest.mark.parametrize("file", [gif(), folder()], ids=["gif", "folder"])
def test_every_second_frame(file):
    np.testing.assert_array_equal(load(file, every=2, frames=3)["video"], FRAMES[:5:2])
    np.testing.assert_array_equal(load(file, np.random.default_rng(0), every=5, frames=2)["video"], FRAMES[[0, 5]])
    with pytest.raises(DataError, match="has [56] frames, every 2 of which a clip takes, fewer than the 7"):
        load(file, every=2)


def test_frames_are_scaled_and_cut():
    assert load(gif(), size=4, crop="edm")["video"].shape == (4, 4, 4, 1)
    assert load(gif(), size=4, crop="box")["video"].shape == (4, 4, 4, 1)
    np.testing.assert_array_equal(load(gif(), size=4, crop="center")["video"], FRAMES[:4, 2:6, 4:8])
    one = load(folder(np.repeat(FRAMES[:1], 4, 0)), np.random.default_rng(0), size=4, crop="random")["video"]
    np.testing.assert_array_equal(one, np.repeat(one[:1], 4, 0))  # all frames at one place
    assert load(gif(), channels=3)["video"].shape == (4, 8, 12, 3)


def test_colours_and_transparency():
    colours = np.zeros((4, 8, 12, 3), np.uint8)
    colours[..., 0] = 255
    np.testing.assert_array_equal(load(gif(colours), channels=3)["video"], colours)
    file = io.BytesIO()
    clear = [Image.new("RGBA", (12, 8), (0, 0, 0, 0)) for _ in range(4)]
    clear[1].putpixel((0, 0), (0, 0, 0, 255))
    clear[3].putpixel((1, 1), (9, 0, 0, 255))
    for i, image in enumerate(clear[::2]):
        image.putpixel((i, 5), (0, 99, 0, 255))
    clear[0].save(file, "GIF", save_all=True, append_images=clear[1:], disposal=2)
    found = load(File("a.gif", file.getvalue()), background="gray")["video"]
    assert found[1, 4, 4, 0] == 128 and found[1, 0, 0, 0] == 0


def test_films():
    pytest.importorskip("imageio_ffmpeg")
    slow = np.zeros((6, 16, 24, 3), np.uint8)
    for i, frame in enumerate(slow):
        frame[:, :4 * i + 4, 1] = 200
    for ending in (".mp4", ".avi"):
        file = File(f"a{ending}", film(slow, ending))
        found = load(file, size=(16, 24), channels=3, frames=6)["video"]
        assert np.abs(found.astype(int) - slow).mean() < 8 and np.abs(found[2].astype(int) - slow[5]).mean() > 20
        assert spec().describe({"file": file}) == f"16x24 6 frames {ending[1:].upper()}"
    for content in (b"", file.content[:300], b"nonsense" * 100):
        with pytest.raises(DataError, match=r"bad\.mp4 (is not a film that can be read|has 0 frames)"):
            load(File("bad.mp4", content), size=(16, 24))


def film(frames, ending, tmp=[]):
    from pathlib import Path
    from tempfile import TemporaryDirectory
    with TemporaryDirectory() as folder:
        clips.write_film(Path(folder) / f"a{ending}", frames)
        return (Path(folder) / f"a{ending}").read_bytes()


def test_films_need_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(DataError, match=r"a.mp4 cannot be read: films need ffmpeg.*diffusion\[video\]"):
        load(File("a.mp4", b""))
    assert not clips.films_are_written()


@pytest.mark.parametrize("file, words", [
    (gif(FRAMES[:3]), "a/clip.gif has 3 frames, fewer than the 4"),
    (folder(FRAMES[:3]), "clip/000.png and what follows it has 3 frames, fewer than the 4"),
    (File("b.gif", gif().content[:-100]), "b.gif is not an animation that can be read.*no end"),
    (File("b.gif", b"GIF89a" + b"x" * 100 + b";"), "b.gif is not an animation that can be read"),
    (File("b.gif", png(FRAMES[0], "x").content), "b.gif is not an animation"),
    ((*folder()[:2], File("clip/9.png", b"no")), "clip/9.png is not a picture"),
    ((*folder()[:3], png(FRAMES[0, :4], "y")), "have different sizes: one is 8x12 .* number 3 is 4x12"),
])
def test_files_that_are_refused(file, words):
    with pytest.raises(DataError, match=words):
        load(file, frames=3 if "9.png" in words else 4)


def test_other_sizes_are_refused_without_a_crop():
    with pytest.raises(DataError, match="a/clip.gif are 8x12 .* but config.data.size is 4x4.*data.crop=edm"):
        load(gif(), size=4)
    with pytest.raises(DataError, match="a/clip.gif is 8x12 .*smaller than the 16x16"):
        load(gif(), size=16, crop="center")
    with pytest.raises(DataError, match="1, 3 or 4 channels, not the 2"):
        load(gif(), channels=2)


def test_frames_before_a_clip():
    found = load(gif(), frames=3, past=2)
    np.testing.assert_array_equal(found["frames"], FRAMES[:2])
    np.testing.assert_array_equal(found["video"], FRAMES[2:5])
    with pytest.raises(DataError, match="has 6 frames, fewer than the 7 that clips of data.frames = 4 and data.past"):
        load(gif(), past=3)
    kind = spec(frames=3, past=2, flip=True)
    record = {"video": FRAMES[2:5], "frames": FRAMES[:2], "label": 0}
    kind.check(Source([record]), "here")
    with pytest.raises(DataError, match=r"need the array frames, uint8 \[2, 8, 12, 1\]"):
        kind.check(Source([record | {"frames": FRAMES[:1]}]), "here")
    batch = {name: np.stack([record[name]] * 16) for name in record}
    example = kind.prepare(batch, lambda stream: jax.random.split(jax.random.key(0), 16))
    turned = [np.array_equal(clip, FRAMES[2:5]) for clip in kind.finish(np.asarray(example.x0))]
    assert turned == [np.array_equal(clip, FRAMES[:2]) for clip in np.asarray(example.cond["frames"])]
    assert 2 < sum(turned) < 14  # both are mirrored, or neither


class Source(list):
    num_classes, encoded = 1, False


def test_arrays_are_used_as_they_are():
    kind = spec()
    assert kind.needs_load(True) and not kind.needs_load(False)
    kind.check(Source([{"video": FRAMES[:4], "label": 0}]), "here")
    for clip, words in ((FRAMES, "6x8x12x1 .* asks for 4x8x12x1. Set --config.data.frames=6 --config.data.size=8,12"),
                        (FRAMES[:4] / 255, "must be uint8"), (FRAMES[..., 0], "must be uint8")):
        with pytest.raises(DataError, match=words):
            kind.check(Source([{"video": clip, "label": 0}]), "here")
    with pytest.raises(DataError, match="takes records that hold 'video'"):
        kind.check(Source([{"image": FRAMES[0]}]), "here")
    with pytest.raises(DataError, match="has no clips"):
        kind.check(Source(), "here")


def test_it_is_scaled_flipped_and_back():
    batch = {"video": np.stack([FRAMES[:4]] * 16), "label": np.arange(16)}
    kind = spec(flip=True)
    example = kind.prepare(batch, lambda stream: jax.random.split(jax.random.key(0), 16))
    x0 = np.asarray(example.x0)
    assert x0.shape == (16, 4, 8, 12, 1) and example.mask is None and set(example.cond) == {"label"}
    np.testing.assert_array_equal(kind.finish(np.asarray(kind.prepare(batch).x0)), batch["video"])
    found = kind.finish(x0)
    straight = np.array([np.array_equal(clip, FRAMES[:4]) for clip in found])
    turned = np.array([np.array_equal(clip, FRAMES[:4, :, ::-1]) for clip in found])
    assert (straight ^ turned).all() and 2 < straight.sum() < 14
    with pytest.raises(DivergedError, match="NaN"):
        kind.finish(np.full((1, 4, 8, 12, 1), np.nan))


def test_pooled_features_see_motion():
    kind, x = spec(size=64, frames=16, channels=3), np.zeros((2, 16, 64, 64, 3))
    x[0, :8, :, :32], x[1, 8:, :, :32] = 1, 1  # the same, at other times
    found = kind.pooled(x)
    assert found.shape == (2, 4 * 4 * 4 * 3) and np.abs(found[0] - found[1]).max() == 1
    np.testing.assert_allclose(found.mean(1), x.reshape(2, -1).mean(1))
    assert kind.pooled(np.zeros((1, 3, 2, 7, 9))).shape == (1, 3 * 2 * 4)


def test_what_is_written(tmp_path):
    kind, made = spec(), np.stack([FRAMES[:4], FRAMES[2:]] * 3)
    text = kind.write(tmp_path / "out", iter([made[:4], made[4:]]), 6, titles=[f"class {i}" for i in range(6)])
    names = {path.name for path in (tmp_path / "out").iterdir()} - {"grid.mp4"}
    assert names == {*[f"{i:06d}.gif" for i in range(6)], "grid.png", "samples.npz"} and "samples.npz" in text
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "samples.npz")["arr_0"], made)
    for i in (0, 5):  # each frame, the equal ones too, exactly
        content = (tmp_path / "out" / f"{i:06d}.gif").read_bytes()
        np.testing.assert_array_equal(load(File("x.gif", content))["video"], made[i])
    with Image.open(tmp_path / "out" / "grid.png") as plain:
        wide = plain.size
    kind.preview(tmp_path / "sheet.png", made)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert wide[0] > sheet.size[0] + 40 and wide[1] == sheet.size[1]
        tile = (sheet.size[0] - 4) // 4  # with the margin beside it: row 1, column 2 is the second clip's third frame
        at = np.asarray(sheet)[tile * 8 // 12 + 8:, 2 * tile + 6:]
    assert at[0, 0, 0] == made[1, 2, 0, 0, 0]


def test_the_film_beside_the_samples(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    kind = spec(channels=3)
    written = kind.write(tmp_path / "out", iter([np.repeat(np.stack([FRAMES[:4]] * 3), 3, axis=-1)]), 3)
    assert written == "grid.png, grid.mp4 and samples.npz"
    content = (tmp_path / "out" / "grid.mp4").read_bytes()
    assert len(list(clips.frames(content, "grid.mp4", ".mp4", channels=3))) == 4


def test_a_sheet_of_many_clips_and_frames_is_cut():
    sheet = clips.contact_sheet(np.zeros((100, 70, 4, 4, 1), np.uint8))
    assert sheet.shape[0] < 2100 and sheet.shape[1] < 2100


@pytest.mark.parametrize("keys", [{"frames": 0}, {"every": 0}, {"channels": 0}, {"size": 0}])
def test_wrong_keys(keys):
    with pytest.raises(FieldError):
        spec(**keys)
