"""The case of tests/golden/unet.npz: what the program that makes it and the test that reads it must agree on."""
import numpy as np
from random_params import unit

from diffusion.networks.unet import UNet

# A bit of everything: three levels of which two are equal, attention at two resolutions, heads, labels, dropout off.
NETWORK = UNet(channels=32, multipliers=(1, 2, 2), blocks=2, attention_resolutions=(8, 4), heads=4, groups=8,
               num_classes=10, out_channels=3)
IMAGE_SHAPE = (16, 16, 3)
TIMES = (0, 1, 250, 999)
LABELS = (7, 0, 9, 3)
SEED = 20200619


def images() -> np.ndarray:
    return unit("images", (len(TIMES), *IMAGE_SHAPE), SEED)
