"""Convolutions with inference-time batch normalisation, as in the published classifiers, and their weights."""
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import CheckpointError
from diffusion.typing import Array

EPSILON = 1e-3  # of the batch normalisations of both families


class Unit(nn.Module):
    """act(scale conv(x) + bias): [B,H,W,C] -> [B,H',W',features]."""
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"
    act: Callable[[Array], Array] = nn.relu
    depthwise: bool = False

    def __call__(self, x: Array) -> Array:
        return self.both(x)[0]

    @nn.compact
    def both(self, x: Array) -> tuple[Array, Array]:
        """(the unit's output, the output of the convolution only)."""
        inputs = 1 if self.depthwise else x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (*self.kernel, inputs, self.features))
        raw = (depthwise if self.depthwise else convolution)(x, kernel, self.stride, self.padding)
        scale = self.param("scale", nn.initializers.ones, (self.features,))[None, None, None]
        bias = self.param("bias", nn.initializers.zeros, (self.features,))[None, None, None]
        return self.act(raw * scale + bias), raw


def convolution(x: Array, kernel: Array, stride: int, padding: str) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding,
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))


def depthwise(x: Array, kernel: Array, stride: int, padding: str) -> Array:
    """Each channel with its own kernel, [h, w, 1, C], as a sum of shifted pictures: XLA's grouped convolutions are slow
    on the CPU."""
    height, width = kernel.shape[:2]
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (height, width), (stride, stride), padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = (x.shape[1] - height) // stride + 1, (x.shape[2] - width) // stride + 1
    total = 0.0
    for i in range(height):
        for j in range(width):
            total += kernel[i:i + 1, j:j + 1] * jax.lax.slice(
                x, (0, i, j, 0), (x.shape[0], i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, x.shape[3]),
                (1, stride, stride, 1))
    return total


def unit_params(tensors: Mapping[str, np.ndarray], conv: str, norm: str) -> dict[str, np.ndarray]:
    """A Unit's parameters from PyTorch's convolution `conv` and batch normalisation `norm`. KeyError if one is missing.
    """
    scale = tensors[f"{norm}.weight"] / np.sqrt(tensors[f"{norm}.running_var"] + EPSILON)
    kernel = tensors[f"{conv}.weight"].transpose(2, 3, 1, 0)
    return {"kernel": kernel, "scale": scale, "bias": tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale}


def checked(params: Any, network: nn.Module, size: int, source: str) -> Any:
    """`params` as float32. Raises CheckpointError if they do not fit the network for images of size x size."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    found, wanted = (dict(jax.tree_util.tree_flatten_with_path(tree)[0]) for tree in (params, shapes))
    for path in {*found, *wanted}:
        a, b = (getattr(tree.get(path), "shape", "nothing") for tree in (found, wanted))
        if a != b:
            raise CheckpointError(f"{source} does not hold this network: {jax.tree_util.keystr(path)} is {a} and not "
                                  f"{b}.")
    return jax.tree.map(lambda x: np.asarray(x, np.float32), params)
