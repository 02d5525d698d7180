"""Reading the pictures and masks that a user gives, good and bad."""
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from diffusion.errors import DataError
from diffusion.io import pictures

ARRAY = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), np.uint8)
SHAPE = ARRAY.shape[1:]


@pytest.fixture
def folder(tmp_path):
    for i, image in enumerate(ARRAY):
        Image.fromarray(image).save(tmp_path / f"{i:06d}.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "grid.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_a_picture_a_folder_and_an_archive(folder):
    np.testing.assert_array_equal(pictures.read_picture(folder / "000001.png", SHAPE), ARRAY[1:2])
    np.testing.assert_array_equal(pictures.read_picture(folder, SHAPE), ARRAY)
    np.savez(folder / "samples.npz", ARRAY)
    np.testing.assert_array_equal(pictures.read_picture(folder / "samples.npz", SHAPE), ARRAY)


def test_colours_become_those_of_the_model(tmp_path):
    Image.fromarray(ARRAY[0, :, :, 0]).save(tmp_path / "grey.png")
    found = pictures.read_picture(tmp_path / "grey.png", SHAPE)[0]
    np.testing.assert_array_equal(found, ARRAY[0, :, :, :1].repeat(3, -1))
    np.testing.assert_array_equal(pictures.read_picture(tmp_path / "grey.png", (4, 6, 1))[0], ARRAY[0, :, :, :1])


RAMP = np.tile(np.linspace(0, 255, 8).round().astype(np.uint8), (8, 1))  # from black on the left to white
GREY = Image.fromarray(RAMP)
UPPER_HIDDEN = np.dstack([RAMP] * 3 + [np.repeat(np.uint8([0, 255]), 4)[:, None].repeat(8, 1)])
SHOWN = np.where(UPPER_HIDDEN[..., 3] == 0, 255, RAMP)
EXIF = Image.Exif()
EXIF[274] = 6  # to be turned by 90 degrees
KINDS = {  # name -> (picture, how it is saved, what a viewer shows)
    "grey.png": (GREY, {}, RAMP),
    "grey_16.png": (Image.fromarray(RAMP.astype(np.uint16) * 257), {}, RAMP),
    "ten_bits.png": (Image.fromarray(RAMP.astype(np.uint16) * 4), {}, np.rint(RAMP * (4 / 257)).astype(np.uint8)),
    "transparent.png": (Image.fromarray(UPPER_HIDDEN), {}, SHOWN),
    "transparent.webp": (Image.fromarray(UPPER_HIDDEN), {"lossless": True}, SHOWN),
    "opaque.png": (Image.merge("LA", (GREY, Image.new("L", (8, 8), 255))), {}, RAMP),
    "one_colour_hidden.png": (GREY, {"transparency": 0}, np.where(RAMP == 0, 255, RAMP)),
    "one_colour_hidden_16.png": (Image.fromarray(RAMP.astype(np.uint16) * 257), {"transparency": 0}, np.where(
        RAMP == 0, 255, RAMP)),
    "turned.png": (GREY, {"exif": EXIF}, np.rot90(RAMP, -1)),
    "palette.png": (GREY.convert("P"), {}, RAMP),
    "palette_hidden.png": (GREY.convert("P"), {"transparency": 255}, RAMP),
    "bits.png": (Image.fromarray(RAMP > 127), {}, np.where(RAMP > 127, 255, 0)),
    "lossless.webp": (GREY.convert("RGB"), {"lossless": True}, RAMP),
    "grey.bmp": (GREY, {}, RAMP),
}


def test_pictures_of_every_kind_become_what_a_viewer_shows(tmp_path):
    seen = Counter()
    for name, (image, how, shown) in KINDS.items():
        image.save(tmp_path / name, **how)
        for channels in (1, 3):
            found = pictures.decode(tmp_path / name, channels=channels, seen=seen)
            np.testing.assert_array_equal(found, np.repeat(shown[..., None], channels, -1), err_msg=name)
    assert set(seen) == {"of 16 bits, which are now 8", "with transparent parts, which are now white"}
    np.testing.assert_array_equal(pictures.decode(tmp_path / "transparent.png", channels=4), UPPER_HIDDEN)
    GREY.convert("RGB").save(tmp_path / "turned.jpg", quality=100, exif=EXIF)
    GREY.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    for name, shown in (("turned.jpg", np.rot90(RAMP, -1)), ("cmyk.jpg", RAMP)):
        found = pictures.decode(tmp_path / name, channels=1)[..., 0]
        assert np.abs(found.astype(int) - shown).max() < 12, name


@pytest.mark.parametrize(("name", "image", "how", "message"), [
    ("float.tif", Image.fromarray(RAMP / np.float32(255)), {}, "floating-point levels, whose white is unknown"),
    ("ints.tif", Image.fromarray(RAMP.astype(np.int32)), {}, "32-bit levels"),
    ("moves.png", GREY, {"save_all": True, "append_images": [GREY.rotate(90)]}, "an animation of 2 pictures"),
    ("huge.png", Image.new("1", (9_000, 8_000)), {}, "9,000 x 8,000 pixels, more than"),
])
def test_pictures_without_a_meaning_here(tmp_path, name, image, how, message):
    image.save(tmp_path / name, **how)
    with pytest.raises(DataError, match=message):
        pictures.decode(tmp_path / name, channels=3)


def test_what_is_no_picture(folder):
    whole = (folder / "000000.png").read_bytes()
    for name, content in [("text.png", b"hello"), ("cut.png", whole[:60]), ("a.png", b"")]:
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is not a picture that can be read, or is damaged"):
            pictures.read_picture(folder / name, SHAPE)
    with pytest.raises(DataError, match="There is no file"):
        pictures.read_picture(folder / "absent.png", SHAPE)
    with pytest.raises(DataError, match="There is no file"):
        pictures.read_picture(folder / "absent.npz", SHAPE)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="There are no pictures in"):
        pictures.read_picture(folder / "empty", SHAPE)


def test_another_size(folder):
    with pytest.raises(DataError, match="000000.png is 4x6 .* of this model are 8x8. Crop or scale"):
        pictures.read_picture(folder / "000000.png", (8, 8, 3))
    np.savez(folder / "a.npz", ARRAY)
    with pytest.raises(DataError, match="a.npz is 4x6x3 .* model's images are 4x6x1"):
        pictures.read_picture(folder / "a.npz", (4, 6, 1))


def test_archives_of_something_else(folder):
    np.savez(folder / "names.npz", images=ARRAY)
    with pytest.raises(DataError, match="has no array arr_0, but images"):
        pictures.read_picture(folder / "names.npz", SHAPE)
    np.savez(folder / "floats.npz", ARRAY.astype(np.float32))
    with pytest.raises(DataError, match=r"must be uint8 \[N, H, W, C\] with N > 0, got float32"):
        pictures.read_picture(folder / "floats.npz", SHAPE)
    np.savez(folder / "objects.npz", np.array([{}], object))
    (folder / "text.npz").write_bytes(b"hello")
    for name in ("objects.npz", "text.npz"):
        with pytest.raises(DataError, match="holds Python objects|cannot be read as an npz of plain arrays"):
            pictures.read_picture(folder / name, SHAPE)


def test_masks(tmp_path):
    mask = np.zeros((4, 6), np.uint8)
    mask[1:, 2:4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(pictures.read_mask(tmp_path / "mask.png", SHAPE)[..., 0], mask > 0)
    Image.fromarray(mask > 0).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(pictures.read_mask(tmp_path / "bits.png", SHAPE)[..., 0], mask > 0)
    with pytest.raises(DataError, match="is 4x6 .* of this model are 8x8"):
        pictures.read_mask(tmp_path / "mask.png", (8, 8, 3))
    Image.fromarray(mask // 2).save(tmp_path / "greys.png")
    with pytest.raises(DataError, match="has greys in it"):
        pictures.read_mask(tmp_path / "greys.png", SHAPE)
