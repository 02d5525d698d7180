"""Durations with a unit: what each form stands for, and what each mistake is told."""
import pytest

from diffusion.errors import ConfigError
from diffusion.train.durations import to_images, to_steps

KNOWN = dict(key="train.duration", batch_size=128, epoch_size=50_000)


@pytest.mark.parametrize("text, images", [
    ("2000 steps", 256_000), ("1 step", 128), ("0 steps", 0), ("800k steps", 102_400_000),
    ("10M images", 10_000_000), ("1 image", 1), ("887184 images", 887_184), ("2.5B images", 2_500_000_000),
    ("5 epochs", 250_000), ("1 epoch", 50_000), ("0.5 epochs", 25_000), ("1.5k images", 1500), ("2. epochs", 100_000),
    ("1e6 images", 1_000_000), ("2.5e3 steps", 320_000), ("1e3k images", 1_000_000),
    ("10Mimages", 10_000_000), ("  10 M  images ", 10_000_000), ("5epochs", 250_000)])
def test_every_form(text, images):
    assert to_images(text, **KNOWN) == images
    assert to_steps(text, **KNOWN) == -(-images // 128)


@pytest.mark.parametrize("text, steps", [
    ("1 image", 1), ("128 images", 1), ("129 images", 2), ("255.5 images", 2), ("1 epoch", 391), ("3 epochs", 1172),
    ("0.1 steps", 1)])
def test_steps_are_rounded_up_to_a_whole_one(text, steps):
    assert to_steps(text, **KNOWN) == steps
    assert isinstance(to_steps(text, **KNOWN), int)


@pytest.mark.parametrize("text, batch_size, epoch_size, steps", [
    ("0.7 epochs", 1, 10, 7),                        # 0.7 * 10 = 7.000000000000001 in floating point
    ("2.3 epochs", 1, 100, 230), ("1.1 epochs", 10, 100_000_000, 11_000_000),
    ("2.2 epochs", 1, 100_000_000, 220_000_000), ("1.1 epochs", 1, 100_000_000, 110_000_000),
    ("4.35M steps", 64, None, 4_350_000), ("0.57B steps", 3, None, 570_000_000)])
def test_a_whole_number_of_steps_is_not_rounded_up_for_a_rounding_error(text, batch_size, epoch_size, steps):
    assert to_steps(text, key="train.duration", batch_size=batch_size, epoch_size=epoch_size) == steps


@pytest.mark.parametrize("text", ["", "2000", "steps", "-5 steps", "five epochs", "5 seconds", "5K steps", "5m images",
                                  "5G images", "1,000 steps", "1_000 steps", "5 steps 3 images", "inf steps",
                                  "nan images", "1e-3 steps", "5 stepss", None, 2000, 2.5])
def test_anything_else_is_refused_with_the_key_the_value_and_examples(text):
    for convert in (to_images, to_steps):
        with pytest.raises(ConfigError) as error:
            convert(text, **KNOWN)
        message = str(error.value)
        assert message.startswith(f"config.train.duration = {text!r} is not a duration.")
        for example in ("'2000 steps'", "'10M images'", "'5 epochs'"):
            assert example in message


@pytest.mark.parametrize("text", ["1e400 steps", "1e999 images", "1" + "0" * 400 + " epochs"])
def test_a_duration_without_end_is_refused(text):
    """It is infinite in floating point."""
    with pytest.raises(ConfigError, match=r"^config\.train\.duration = '1"):
        to_steps(text, **KNOWN)


def test_epochs_need_a_known_size():
    with pytest.raises(ConfigError) as error:
        to_steps("5 epochs", key="train.log_every", batch_size=8, epoch_size=None)
    assert str(error.value) == ("config.train.log_every = '5 epochs' needs a data set of known size. "
                                "Use steps or images.")
    assert to_steps("5 steps", key="train.log_every", batch_size=8, epoch_size=None) == 5
    assert to_steps("17 images", key="train.log_every", batch_size=8, epoch_size=None) == 3
