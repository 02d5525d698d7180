import resource

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion.errors import CheckpointError, ConfigError, DivergedError
from diffusion.io.images import grid, save_png, save_samples, to_uint8, visible
from diffusion.io.sample_set import SHOWN, check_samples_folder


def random(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_to_uint8_inverts_the_normalisation_and_rounds_to_the_nearest():
    u = np.arange(256)
    np.testing.assert_array_equal(to_uint8(u / 127.5 - 1), u)
    np.testing.assert_array_equal(to_uint8(jnp.asarray(u, jnp.float32) / 127.5 - 1), u)
    np.testing.assert_array_equal(to_uint8((u + 0.49) / 127.5 - 1), u)
    np.testing.assert_array_equal(to_uint8((u - 0.49) / 127.5 - 1), u)
    assert to_uint8(np.array([-7.0, -np.inf, 3.0, np.inf])).tolist() == [0, 0, 255, 255]
    assert to_uint8(u / 127.5 - 1).dtype == np.uint8


def test_nan_is_no_colour():
    x = np.zeros((4, 2, 2, 1))
    x[1:3, 0] = np.nan
    with pytest.raises(DivergedError, match="2 of 4 sampled images contain NaN.*float32"):
        to_uint8(x)


def test_grid_places_enlarged_tiles_with_a_light_margin():
    images = random(5, 8, 8, 1)
    out = grid(images, columns=3, margin=2, min_tile=64)
    assert out.shape == (2 * 66 + 2, 3 * 66 + 2, 3) and out.dtype == np.uint8
    for i in range(5):
        y, x = 2 + 66 * (i // 3), 2 + 66 * (i % 3)
        tile = out[y:y + 64, x:x + 64]
        np.testing.assert_array_equal(tile, images[i].repeat(8, 0).repeat(8, 1).repeat(3, 2))
        assert (out[y - 2:y, x - 2:x + 66] > 200).all() and (out[y:y + 66, x + 64:x + 66] > 200).all()
    assert (out[68:, 134:] > 200).all(), "the empty place"


def test_grid_sizes():
    assert grid(random(4, 32, 32, 3)).shape == (2 * 68 + 4,) * 2 + (3,)
    assert grid(random(1, 256, 256, 3)).shape == (264, 264, 3)  # large ones stay as they are
    assert grid(random(2, 8, 8, 1), columns=9).shape == (48, 92, 3)  # no empty columns
    assert grid(random(3, 7, 9, 3), margin=2, min_tile=20).shape == (2 * 23 + 2, 2 * 29 + 2, 3)
    assert max(grid(random(1600, 32, 32, 1)).shape) == 40 * 36 + 4  # would be 2724 if enlarged twice
    assert grid(random(9, 8, 8, 3), margin=0, min_tile=1).shape == (24, 24, 3)
    for bad in (np.zeros((0, 8, 8, 1), np.uint8), np.zeros((8, 8, 1), np.uint8), np.zeros((1, 8, 8, 1))):
        with pytest.raises(ValueError, match="expected uint8"):
            grid(bad)


def test_any_number_of_channels_can_be_looked_at():
    """RGBA was trained on, and died at the first grid."""
    rgba = random(3, 8, 8, 4)
    rgba[0, ..., 3], rgba[1, ..., 3] = 0, 255
    tiles = visible(rgba)
    assert (tiles[0] == 255).all()
    np.testing.assert_array_equal(tiles[1], rgba[1, ..., :3])
    np.testing.assert_array_equal(tiles[2], Image.alpha_composite(
        Image.new("RGBA", (8, 8), "white"), Image.fromarray(rgba[2])).convert("RGB"))
    np.testing.assert_array_equal(grid(rgba), grid(tiles))
    for channels in (2, 5, 8):
        images = random(3, 8, 8, channels)
        np.testing.assert_array_equal(visible(images)[1, :, 8:16, 0], images[1, ..., 1])
        assert grid(images).shape == grid(random(3, 8, 8 * channels, 1)).shape


def test_png_keeps_every_value(tmp_path):
    for image in (random(5, 7, 3), random(5, 7, 1), random(5, 7), random(5, 7, 4)):
        save_png(tmp_path / "a" / "x.png", image)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "x.png")), np.squeeze(image))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_samples_as_files_as_one_array_and_as_a_grid(tmp_path, channels):
    images = random(120, 4, 4, channels)
    save_samples(tmp_path / "whole", images, first_index=7)
    save_samples(tmp_path / "batches", (images[i:i + 50] for i in range(0, 120, 50)), first_index=7,
                 count=120)
    for folder in (tmp_path / "whole", tmp_path / "batches"):
        with np.load(folder / "samples.npz") as archive:
            assert archive.files == ["arr_0"]
            np.testing.assert_array_equal(archive["arr_0"], images)
        names = sorted(p.name for p in folder.glob("0*.png"))
        assert names == [f"{i:06d}.png" for i in range(7, 127)]
        np.testing.assert_array_equal(np.asarray(Image.open(folder / names[3])), np.squeeze(
            images[3] if channels != 2 else visible(images[3])))
        np.testing.assert_array_equal(np.asarray(Image.open(folder / "grid.png")), grid(images[:SHOWN]))


def test_two_sets_of_samples_are_not_mixed(tmp_path):
    check_samples_folder(tmp_path)
    check_samples_folder(tmp_path / "new")
    (tmp_path / "notes.txt").write_text("mine")
    save_samples(tmp_path, random(2, 4, 4, 1))
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}

    def batches():
        pytest.fail("sampled before the folder was checked")
        yield

    with pytest.raises(ConfigError, match=r"holds samples already \(000000\.png, \.\.\.\)\. Give another --out"):
        save_samples(tmp_path, batches(), count=2)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    with pytest.raises(ConfigError, match="is a file"):
        check_samples_folder(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match="below a file"):
        check_samples_folder(tmp_path / "notes.txt" / "x")


def test_a_full_disk(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, before[1]))
        with pytest.raises(CheckpointError, match="000000.png could not be written: a file grew over the limit"):
            save_samples(tmp_path, random(1, 64, 64, 3))
        with pytest.raises(CheckpointError, match="samples.npz could not be written"):
            save_samples(tmp_path / "b", np.zeros((1, 64, 64, 3), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "b" / "samples.npz").exists()
