"""An extractor that costs nothing, for tests of what is done with features."""
from types import SimpleNamespace

import jax
import numpy as np

from diffusion.metrics import extractors


class Pixels:
    """Its features are the pixels, and a number that stands for its weights times 0."""
    name, weights, resize, kind = "pixels", "none", "none", SimpleNamespace(limits={"pool": 256.0})
    example = jax.ShapeDtypeStruct((1, 8, 8, 3), np.uint8)
    inputs = staticmethod(extractors.as_images)

    def __init__(self, params=0.0):
        self.params = params

    def called(self, metric):
        return f"{metric}_pixels"

    def features(self, params, images):
        return {"pool": images[..., 0].reshape(len(images), -1).astype("float32") + 0 * params}
