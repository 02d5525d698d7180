"""Cuts and scales of pictures: the authors' pixels, sizes that are no squares, and pictures in every mode."""
import io
from pathlib import Path

import numpy as np
import pytest
from golden.make_crops import SHAPES, SIZE, picture
from PIL import Image

from diffusion.data import crops
from diffusion.data.files import File
from diffusion.errors import DataError
from diffusion.kinds.image import image

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "crops.npz")


class Drawn:
    """An rng that draws given numbers."""

    def __init__(self, numbers):
        self.numbers = list(numbers)

    def integers(self, *bounds):
        number = self.numbers.pop(0)
        assert (bounds[0] if len(bounds) > 1 else 0) <= number < bounds[-1]
        return number


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", ["adm", "adm_random", "edm", "box"])
def test_the_authors_pixels(way, shape):
    """To the bit: all use Pillow's resampling in whole numbers."""
    rng = Drawn(GOLDEN[f"drawn_{shape}"]) if way == "adm_random" else None
    found = crops.CROPS[way](Image.fromarray(picture(shape)), (SIZE, SIZE), rng)
    np.testing.assert_array_equal(found, GOLDEN[f"{way}_{shape}"])


@pytest.mark.parametrize("way", ["adm", "adm_random", "edm", "box"])
@pytest.mark.parametrize("size", [(12, 20), (20, 12), (9, 9)])
def test_any_size_is_reached_without_distortion(way, size):
    """The gradient of the picture, equal along both axes, stays so, except where it is stretched."""
    y, x = np.mgrid[:90, :110]
    ramp = Image.fromarray(np.stack([y, x, 0 * x], axis=-1).astype(np.uint8))
    for seed in range(3):
        found = crops.CROPS[way](ramp, size, np.random.default_rng(seed)).astype(float)
        assert found.shape == (*size, 3)
        down, across = np.median(np.diff(found[..., 0], axis=0)), np.median(np.diff(found[..., 1], axis=1))
        if way == "box":
            assert down == pytest.approx(90 / size[0], abs=1) and across == pytest.approx(110 / size[1], abs=1)
        else:
            assert down == pytest.approx(across, abs=1)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> File:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return File(f"x.{kind.lower()}", file.getvalue())


def exif_turned() -> File:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first column is the top row
    return encoded(Image.fromarray(np.repeat(np.array([[[0]], [[200]]], np.uint8), 3, axis=2).repeat(8, 0).repeat(
        8, 1)), "JPEG", exif=exif, quality=100)


RED = Image.new("RGB", (8, 8), (200, 0, 0))
MODES = {  # a file, and the colour that its middle has when it is seen as RGB on white
    "palette": (encoded(RED.convert("P", palette=Image.Palette.ADAPTIVE)), (200, 0, 0)),
    "grey with alpha": (encoded(Image.new("LA", (8, 8), (100, 0))), (255, 255, 255)),
    "16 bits": (encoded(Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))), (100, 100, 100)),
    "CMYK": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
    "RGBA": (encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), (255, 255, 255)),
    "progressive": (encoded(RED, "JPEG", progressive=True, quality=100), (200, 0, 0)),
    "1 bit": (encoded(Image.new("1", (8, 8), 1)), (255, 255, 255)),
    "webp": (encoded(RED, "WEBP", lossless=True), (200, 0, 0)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pictures_is_read(mode):
    file, colour = MODES[mode]
    for crop in ("none", "adm"):
        found = image(size=8, crop=crop).load({"file": file, "label": 3}, None)
        assert found["label"] == 3 and found["image"].shape == (8, 8, 3)
        np.testing.assert_allclose(found["image"][4, 4], colour, atol=2)
    assert image(size=8, channels=1, crop="edm").load({"file": file}, None)["image"].shape == (8, 8, 1)


def test_transparent_parts_show_the_background_or_stay():
    file = MODES["RGBA"][0]
    for colour, level in (("white", 255), ("gray", 128), ("black", 0)):
        assert image(size=8, background=colour).load({"file": file}, None)["image"][0, 0, 0] == level
    assert image(size=8, channels=4).load({"file": file}, None)["image"][0, 0].tolist() == [0, 0, 0, 0]


def test_a_picture_is_turned_by_its_orientation():
    found = image(size=8, crop="box").load({"file": exif_turned()}, None)["image"]
    assert found[:, 1].mean() > 150 and found[:, 6].mean() < 50  # dark was on top, and is now at the right


@pytest.mark.parametrize("spec, message", [
    (image(size=9, crop="center"), "x.png is 8x8 .*smaller than the 9x9 .*choose data.crop=adm"),
    (image(size=(9, 4)), "x.png is 8x8 .height x width., but config.data.size is .see data.crop. 9x4"),
])
def test_a_picture_of_another_size(spec, message):
    with pytest.raises(DataError, match=message):
        spec.load({"file": encoded(RED)}, None)


def test_arrays_are_cut_and_scaled_like_files():
    array = picture("wide")
    scaled = image(size=SIZE, crop="adm").load({"image": array}, None)["image"]
    np.testing.assert_array_equal(scaled, GOLDEN["adm_wide"])
    middle = image(size=10, channels=5, crop="center").load({"image": np.zeros((20, 30, 5), np.uint8)}, None)["image"]
    assert middle.shape == (10, 10, 5)
