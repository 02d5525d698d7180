"""Reading the pictures and masks that a user gives, good and bad."""
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
    np.testing.assert_array_equal(pictures.read(folder / "000001.png", SHAPE), ARRAY[1:2])
    np.testing.assert_array_equal(pictures.read(folder, SHAPE), ARRAY)
    np.savez(folder / "samples.npz", ARRAY)
    np.testing.assert_array_equal(pictures.read(folder / "samples.npz", SHAPE), ARRAY)


def test_colours_become_those_of_the_model(tmp_path):
    Image.fromarray(ARRAY[0, :, :, 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(pictures.read(tmp_path / "grey.png", SHAPE)[0], ARRAY[0, :, :, :1].repeat(3, -1))
    np.testing.assert_array_equal(pictures.read(tmp_path / "grey.png", (4, 6, 1))[0], ARRAY[0, :, :, :1])
    Image.fromarray(np.concatenate([ARRAY[0], ARRAY[0, :, :, :1]], -1), "RGBA").save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(pictures.read(tmp_path / "alpha.png", SHAPE)[0], ARRAY[0])


def test_what_is_no_picture(folder):
    whole = (folder / "000000.png").read_bytes()
    for name, content in [("text.png", b"hello"), ("cut.png", whole[:60]), ("a.png", b"")]:
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is not a picture that can be read, or is damaged"):
            pictures.read(folder / name, SHAPE)
    with pytest.raises(DataError, match="There is no file"):
        pictures.read(folder / "absent.png", SHAPE)
    with pytest.raises(DataError, match="There is no file"):
        pictures.read(folder / "absent.npz", SHAPE)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="There are no pictures in"):
        pictures.read(folder / "empty", SHAPE)


def test_another_size(folder):
    with pytest.raises(DataError, match="000000.png is 4x6x3 .* of this model are 8x8x3. Crop or scale"):
        pictures.read(folder / "000000.png", (8, 8, 3))
    np.savez(folder / "a.npz", ARRAY)
    with pytest.raises(DataError, match="a.npz is 4x6x3 .* this model are 4x6x1"):
        pictures.read(folder / "a.npz", (4, 6, 1))


def test_archives_of_something_else(folder):
    np.savez(folder / "names.npz", images=ARRAY)
    with pytest.raises(DataError, match="has no array arr_0, but images"):
        pictures.read(folder / "names.npz", SHAPE)
    np.savez(folder / "floats.npz", ARRAY.astype(np.float32))
    with pytest.raises(DataError, match=r"must be uint8 \[N, H, W, C\] with N > 0, got float32"):
        pictures.read(folder / "floats.npz", SHAPE)
    np.savez(folder / "objects.npz", np.array([{}], object))
    (folder / "text.npz").write_bytes(b"hello")
    for name in ("objects.npz", "text.npz"):
        with pytest.raises(DataError, match="is not a .npz of plain arrays, or is damaged"):
            pictures.read(folder / name, SHAPE)


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
