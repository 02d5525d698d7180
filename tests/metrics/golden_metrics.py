"""The cases of metrics.npz, for make_metrics.py and the tests: weights, images and features from seeds."""
import numpy as np
from networks.random_params import unit

SIZES = (32, 75, 299, 400)  # of images, beside the 299 that Inception sees
EXTRACTOR_SEED = 6


def images(size: int, count: int = 2) -> np.ndarray:
    """uint8 [count, size, size, 3], smooth and rough parts."""
    rng = np.random.RandomState(size)
    rough = rng.randint(0, 256, (count, size, size, 3))
    ramp = np.arange(size)[:, None, None] * 255 // size
    half = size // 2
    rough[:, :half] = (rough[:, :half] + 3 * ramp[:half]) // 4
    return rough.astype(np.uint8)


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of Inception-v3 in PyTorch's layout: kernels keep the variance behind a ReLU, norms are not trivial."""
    u = unit(name, shape, EXTRACTOR_SEED)
    if name.endswith("conv.weight"):
        return u * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if name.endswith("fc.weight"):
        return u / np.float32(np.sqrt(shape[1]))
    if name.endswith(("running_var", "bn.weight")):
        return 1 + np.float32(0.25) * u
    return np.float32(0.1) * u


DINO = dict(width=48, depth=2, heads=4)


def dino_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of DINOv2 in PyTorch's layout."""
    u = unit(f"dinov2 {name}", shape, EXTRACTOR_SEED)
    if "norm" in name and name.endswith("weight") or name.endswith("gamma"):
        return 1 + np.float32(0.25) * u
    return u / np.float32(np.sqrt(np.prod(shape[1:]))) if name.endswith("weight") else np.float32(0.25) * u


def features(seed: int, count: int, dimension: int = 48) -> np.ndarray:
    """float32 [count, dimension]: correlated, positive, as pooled features are."""
    mix = np.random.RandomState(0).random_sample((6, dimension))
    x = np.random.RandomState(seed).standard_normal((count, 6)) @ mix
    return np.maximum(0.3 * x + 0.1 * np.random.RandomState(seed + 9).random_sample(x.shape) + 0.05 * seed, 0).astype(
        np.float32)


def logits(count: int = 500, classes: int = 40) -> np.ndarray:
    return (np.random.RandomState(9).random_sample((count, classes)) * 6).astype(np.float32)


FAKE, REAL, SUBSETS, SUBSET = 1200, 1500, 20, 300
