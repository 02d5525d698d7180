"""EDM's non-leaking augmentation: images transformed at random, and the label that tells the network how.

Karras et al. (2022), "EDM", Appendix F.1 and Table 6, after Karras et al. (2020), "Training GANs with limited data". A
network that sees the label learns the distribution of the images without augmentation as that of the label zero.
"""
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.typing import Array, Keys

LABELS = 9           # flips in x and y, scale, rotation (2), stretch (2), shift (2)
SCALE_STD = 0.2      # of log2 of the scale and of the stretch
SHIFT_STD = 0.125    # of the shift / width and height
# Low-pass filter of the wavelet sym6 (Daubechies 1992, Table 6.3), with which images are resampled by 2.
SYM6 = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148])
HIGHEST = jax.lax.Precision.HIGHEST
MARGIN = len(SYM6) // 4  # pixels around the result that its filter sees


class Draws(NamedTuple):
    """What is drawn for an image; of a batch, with B in front."""
    chosen: Array     # [7] uniform in [0, 1): a transform is made where this is below its probability; in the order of
                      # the other fields, and last for the direction of a stretch
    flips: Array      # [2] 0 or 1, in x and in y
    scale: Array      # normal
    rotation: Array   # uniform in [-1, 1), half turns
    stretch: Array    # normal
    direction: Array  # uniform in [-1, 1), half turns
    shift: Array      # [2] normal, in x and in y


def drawn(keys: Keys) -> Draws:
    """The draws of each image, by its own key."""
    def one(key: Array) -> Draws:
        chosen, flips, normal, turns = jax.random.split(key, 4)
        normal = jax.random.normal(normal, (4,))
        turns = jax.random.uniform(turns, (2,), minval=-1)
        return Draws(jax.random.uniform(chosen, (7,)), jax.random.bernoulli(flips, 0.5, (2,)).astype(float), normal[0],
                     turns[0], normal[1], turns[1], normal[2:])
    return jax.vmap(one)(keys)


def augmented(images: Array, draws: Draws, probability: float) -> tuple[Array, Array]:
    """The images [B, H, W, C] transformed, and their labels [B, 9].

    Each transform is made with `probability`, but for the flip in x, which is made or not with equal chances. The image
    is flipped, sampled twice as densely, read bilinearly where the geometry says, and sampled back; beyond its edges it
    is reflected. EDM's code (training/augment.py) reflects only as far as its batch needs: here an image does not
    depend on the others of its batch.
    """
    return jax.vmap(lambda image, draws: _augmented(image, draws, probability))(images, draws)


def _augmented(image: Array, draws: Draws, probability: float) -> tuple[Array, Array]:
    made = draws.chosen < jnp.array([1, *[probability] * 5, 0.5])
    flips = jnp.where(made[:2], draws.flips, 0)
    log_scale = jnp.where(made[2], draws.scale, 0)
    rotation = jnp.where(made[3], math.pi * draws.rotation, 0)
    stretch = jnp.where(made[4], draws.stretch, 0)
    direction = jnp.where(made[6], math.pi * draws.direction, 0)
    shift = jnp.where(made[5], draws.shift, 0)
    label = jnp.stack([*flips, log_scale, jnp.cos(rotation) - 1, jnp.sin(rotation), stretch * jnp.cos(direction),
                       stretch * jnp.sin(direction), *shift])
    for flip, axis in zip(flips, (1, 0)):
        image = jnp.where(flip == 1, jnp.flip(image, axis), image)
    height, width, _ = image.shape
    # From a place in the result to one in the image, both (x, y) from the centre: linear (place - shift).
    along = jnp.exp2(-SCALE_STD * stretch)
    linear = _product(turn(rotation), turn(-direction), jnp.diag(jnp.stack([along, 1 / along])), turn(direction))
    return resampled(image, jnp.exp2(-SCALE_STD * log_scale) * linear,
                     SHIFT_STD * shift * jnp.array([width, height])), label


def turn(angle: Array) -> Array:
    """[2, 2]: a rotation."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])


def resampled(image: Array, linear: Array, shift: Array) -> Array:
    """The image [H, W, C] whose value at (x, y), from the centre in pixels, is that of `image` at linear ((x, y) -
    shift)."""
    height, width, _ = image.shape
    fine = _both(image, enlarging(height), enlarging(width))
    # Places in the finer grid of the result, from its centre; both grids have twice the pixels.
    y, x = jnp.indices((2 * (height + 2 * MARGIN), 2 * (width + 2 * MARGIN)), float)
    places = jnp.stack([x - (x.shape[1] - 1) / 2, y - (y.shape[0] - 1) / 2])
    there = 2 * jnp.tensordot(linear, (places + 0.5) / 2 - shift[:, None, None], 1, precision=HIGHEST) - 0.5
    at = [there[1] + (fine.shape[0] - 1) / 2, there[0] + (fine.shape[1] - 1) / 2]
    found = jax.vmap(lambda channel: jax.scipy.ndimage.map_coordinates(channel, at, order=1), -1, -1)(fine)
    return _both(found, reducing(height), reducing(width))


def enlarging(length: int) -> np.ndarray:
    """[2 (3 length - 2), length]: a row reflected at both ends and then sampled twice as densely."""
    reflected = np.pad(np.arange(length), length - 1, mode="reflect")
    found = np.zeros((2 * len(reflected), length), np.float32)
    for row in range(len(found)):
        for k, tap in enumerate(SYM6[::-1]):
            place, between = divmod(row + k - len(SYM6) // 2, 2)
            if not between and 0 <= place < len(reflected):
                found[row, reflected[place]] += tap
    return found


def reducing(length: int) -> np.ndarray:
    """[length, 2 (length + 2 MARGIN)]: a row sampled half as densely, without the margin."""
    found = np.zeros((length, 2 * (length + 2 * MARGIN)), np.float32)
    for row in range(length):
        first = 2 * (row + MARGIN) - (len(SYM6) - 1) // 2
        found[row, first:first + len(SYM6)] = SYM6
    return found


def _both(image: Array, of_rows: np.ndarray, of_columns: np.ndarray) -> Array:
    return jnp.einsum("yh,hwc,xw->yxc", of_rows, image, of_columns, precision=HIGHEST)


def _product(*matrices: Array) -> Array:
    return jnp.linalg.multi_dot(matrices, precision=HIGHEST)
