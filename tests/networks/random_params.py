"""Random weights and inputs by a rule that needs NumPy alone, so that two libraries, and a test years from now, get the
same ones: legacy RandomState streams are frozen (NEP 19), and each tensor's stream depends on its own path alone.
"""
import zlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.conditions import examples


def unit(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Uniform with mean 0 and variance 1, float32, by (seed, name). Not normal: that would rest on libm."""
    stream = np.random.RandomState([seed, zlib.crc32(name.encode())])
    return ((2.0 * stream.random_sample(shape) - 1.0) * np.sqrt(3.0)).astype(np.float32)


def random_params(network, image_shape: tuple[int, ...], seed: int) -> dict:
    """The tree under "params" for images [H,W,C]; every tensor random, those initialised to zero too.

    Kernels have variance 1/fan-in, which keeps activations near one; norms' scales lie around one, biases around zero.
    """
    cond = examples(network.cond, 1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image_shape)), jnp.zeros((1,)), cond)

    def draw(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        u = unit("/".join(path), shape, seed)
        match path[-1]:
            case "kernel":
                return u / np.float32(np.sqrt(np.prod(shape[:-1])))
            case "scale":
                return 1 + np.float32(0.25) * u
            case "bias":
                return np.float32(0.25) * u
            case "embedding" | "frequencies" | "phases" | "class_positions":
                return u
            case "gain":
                return np.float32(0.5) + np.float32(0.25) * u
        raise KeyError("/".join(path))

    flat = flax.traverse_util.flatten_dict(shapes["params"])
    return flax.traverse_util.unflatten_dict({path: draw(path, leaf.shape) for path, leaf in flat.items()})
