"""Inception-v3 as FID uses it: the network of 2015-12-05 (Szegedy et al. 2016, "Rethinking the Inception
Architecture"), chosen by Heusel et al. (2017).

It differs from the paper: average pools do not count the padding, and the last block has a maximum pool instead. Its
weights are ports of TensorFlow's, in the layout of pytorch-fid and torch-fidelity.
"""
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion.errors import CheckpointError
from diffusion.metrics.networks.layers import Unit, checked, unit_params
from diffusion.typing import Array

SIZE, CLASSES, SPATIAL = 299, 1008, 7


def average(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def maximum(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), padding="SAME")


def downsample_2x(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2))


class InceptionA(nn.Module):
    pool: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        a = Unit(64, name="branch1x1")(x)
        b = Unit(64, (5, 5), name="branch5x5_2")(Unit(48, name="branch5x5_1")(x))
        c = Unit(96, (3, 3), name="branch3x3dbl_2")(Unit(64, name="branch3x3dbl_1")(x))
        c = Unit(96, (3, 3), name="branch3x3dbl_3")(c)
        return jnp.concatenate([a, b, c, Unit(self.pool, name="branch_pool")(average(x))], -1)


class InceptionB(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        a = Unit(384, (3, 3), 2, "VALID", name="branch3x3")(x)
        b = Unit(96, (3, 3), name="branch3x3dbl_2")(Unit(64, name="branch3x3dbl_1")(x))
        return jnp.concatenate([a, Unit(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(b), downsample_2x(x)], -1)


class InceptionC(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(the block's output, its first convolution before the normalisation)."""
        def chain(x, name, *kernels):
            for i, kernel in enumerate(((1, 1), *kernels), 1):
                x = Unit(192 if i == len(kernels) + 1 else self.width, kernel, name=f"{name}_{i}")(x)
            return x

        a, first = Unit(192, name="branch1x1").both(x)
        b = chain(x, "branch7x7", (1, 7), (7, 1))
        c = chain(x, "branch7x7dbl", (7, 1), (1, 7), (7, 1), (1, 7))
        return jnp.concatenate([a, b, c, Unit(192, name="branch_pool")(average(x))], -1), first


class InceptionD(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        a = Unit(320, (3, 3), 2, "VALID", name="branch3x3_2")(Unit(192, name="branch3x3_1")(x))
        b = Unit(192, (1, 7), name="branch7x7x3_2")(Unit(192, name="branch7x7x3_1")(x))
        b = Unit(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(Unit(192, (7, 1), name="branch7x7x3_3")(b))
        return jnp.concatenate([a, b, downsample_2x(x)], -1)


class InceptionE(nn.Module):
    pool: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def both(x, name, a, b):
            return [Unit(384, (1, 3), name=f"{name}_{a}")(x), Unit(384, (3, 1), name=f"{name}_{b}")(x)]

        b = both(Unit(384, name="branch3x3_1")(x), "branch3x3", "2a", "2b")
        c = Unit(384, (3, 3), name="branch3x3dbl_2")(Unit(448, name="branch3x3dbl_1")(x))
        pooled = {"average": average, "maximum": maximum}[self.pool](x)
        return jnp.concatenate([Unit(320, name="branch1x1")(x), *b, *both(c, "branch3x3dbl", "3a", "3b"),
                                Unit(192, name="branch_pool")(pooled)], -1)


class Inception(nn.Module):
    """float32 [B, 299, 299, 3] in [-1, 1) -> {"pool" [B, 2048], "logits" [B, 1008] without bias, for the Inception
    Score, "spatial" [B, 2023]: 7 channels of 17 x 17 places, for sFID (Nash et al. 2021)}."""

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        x = Unit(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = Unit(64, (3, 3), name="Conv2d_2b_3x3")(Unit(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x))
        x = Unit(80, name="Conv2d_3b_1x1")(downsample_2x(x))
        x = downsample_2x(Unit(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))
        for name, pool in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = InceptionA(pool, name=f"Mixed_{name}")(x)
        x = InceptionB(name="Mixed_6a")(x)
        for name, width in (("6b", 128), ("6c", 160)):
            x, _ = InceptionC(width, name=f"Mixed_{name}")(x)
        x, first = InceptionC(160, name="Mixed_6d")(x)  # TensorFlow's mixed_6
        x, _ = InceptionC(192, name="Mixed_6e")(x)
        x = InceptionE("average", name="Mixed_7b")(InceptionD(name="Mixed_7a")(x))
        pool = InceptionE("maximum", name="Mixed_7c")(x).mean((1, 2))
        logits = nn.Dense(CLASSES, use_bias=False, name="fc")(pool)
        return {"pool": pool, "logits": logits, "spatial": first[..., :SPATIAL].reshape(len(x), -1)}


def from_torch(tensors: Mapping[str, np.ndarray], source: str) -> dict:
    """Parameters from pytorch-fid's or torch-fidelity's tensors. Raises CheckpointError for other tensors."""
    params: dict = {}
    try:
        for name in tensors:
            if name.endswith(".conv.weight") and not name.startswith("AuxLogits"):
                *outer, inner = name.removesuffix(".conv.weight").split(".")
                at = params
                for part in outer:
                    at = at.setdefault(part, {})
                at[inner] = unit_params(tensors, name.removesuffix(".weight"), name.replace(".conv.weight", ".bn"))
        params["fc"] = {"kernel": tensors["fc.weight"].T}
    except KeyError as error:
        raise CheckpointError(f"{source} is not Inception-v3 in the layout of pytorch-fid or torch-fidelity: it lacks "
                              f"{error}.") from error
    return checked(params, Inception(), SIZE, source)
