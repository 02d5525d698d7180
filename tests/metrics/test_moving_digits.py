"""The law of moving digits, read from pixels: real clips follow it, changed ones do not."""
import moving_digits
import numpy as np
import pytest

from diffusion.data.moving_digits import moving_mnist
from diffusion.metrics.moving_digits import centroids, follows_law, speeds

SETTINGS = {"size": 32, "frames": 8, "digits": 1, "digit": 20}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = moving_digits.write_idx(tmp_path_factory.mktemp("digits") / "idx")
    made = {deterministic: moving_mnist(split="test", dir=folder, deterministic=deterministic, **SETTINGS)
            for deterministic in (True, False)}
    return {name: np.stack([of[i]["video"] for i in range(100)])[..., 0] for name, of in made.items()} | {
        "places": np.stack([made[True].trajectory(i).places[0] for i in range(100)])}


def test_centroids_are_the_places(clips):
    found = centroids(clips[True])
    away = found - clips["places"]
    assert np.abs(away - 9.5).max() < 1.5                # the middle of 20 pixels
    assert np.ptp(away, axis=1).max() < 1e-9             # constantly so
    assert 3.99 < speeds(clips[True]).max() < 4.01


@pytest.mark.parametrize("deterministic", [True, False])
def test_real_clips_follow_the_law_and_shuffled_frames_do_not(clips, deterministic):
    rng, real = np.random.default_rng(0), clips[deterministic]
    shuffled = np.stack([clip[rng.permutation(len(clip))] for clip in real])
    assert follows_law(real, digit=20, deterministic=deterministic).mean() == 1
    assert follows_law(shuffled, digit=20, deterministic=deterministic).mean() < 0.08


def test_noise_is_tolerated_and_random_bounces_are_no_reflections(clips):
    noisy = np.clip(clips[True] + np.random.default_rng(0).normal(0, 12, clips[True].shape), 0, 255).astype(np.uint8)
    assert follows_law(noisy, digit=20).mean() == 1
    assert follows_law(clips[True], digit=20, deterministic=False).mean() == 1  # a reflection may also be drawn
    assert follows_law(clips[False], digit=20, deterministic=True).mean() < 0.4


def test_what_breaks_the_law(clips):
    real = clips[True]
    gone = real.copy()
    gone[:, 3] = 0
    assert not follows_law(gone, digit=20).any() and np.isnan(speeds(gone)).all()
    assert follows_law(real[:, ::2], digit=20).mean() < 0.4         # twice as fast
    assert follows_law(np.roll(real, 6, axis=2), digit=20).mean() < 0.3  # through the lower wall
    assert follows_law(np.repeat(real[:, :1], 8, axis=1), digit=20).all()  # standing still is a velocity, too
    with pytest.raises(ValueError, match="uint8"):
        centroids(real.astype(float))


def test_what_is_no_digit_follows_no_law():
    """The centroid of noise stands still, as a digit of velocity 0 does."""
    rng = np.random.default_rng(0)
    for clips in (rng.integers(0, 256, (20, 8, 32, 32), np.uint8), np.full((2, 8, 32, 32), 200, np.uint8),
                  np.zeros((2, 8, 32, 32), np.uint8)):
        assert not follows_law(clips, digit=20).any()
