"""DINOv2's vision transformer (Oquab et al. 2023), whose class token FD-DINOv2 compares (Stein et al. 2023)."""
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion.errors import CheckpointError
from diffusion.metrics.networks.layers import checked
from diffusion.typing import Array

SIZE, PATCH = 224, 14
_NORM = {"epsilon": 1e-6}


class Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        h = nn.LayerNorm(**_NORM, name="norm1")(x)
        q, k, v = jnp.split(nn.Dense(3 * width, name="qkv")(h).reshape(*x.shape[:2], 3, self.heads, -1), 3, 2)
        h = nn.dot_product_attention(q[:, :, 0], k[:, :, 0], v[:, :, 0]).reshape(x.shape)
        x = x + self.param("scale1", nn.initializers.ones, (width,))[None, None] * nn.Dense(width, name="proj")(h)
        h = nn.gelu(nn.Dense(4 * width, name="fc1")(nn.LayerNorm(**_NORM, name="norm2")(x)), approximate=False)
        return x + self.param("scale2", nn.initializers.ones, (width,))[None, None] * nn.Dense(width, name="fc2")(h)


class DINOv2(nn.Module):
    """float32 [B, 224, 224, 3], standardised by ImageNet's mean and deviation -> {"pool" [B, width]}, the class token.
    The defaults are ViT-L/14's."""
    width: int = 1024
    depth: int = 24
    heads: int = 16

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        x = nn.Conv(self.width, (PATCH, PATCH), (PATCH, PATCH), "VALID", name="patch")(x)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], 1)
        x = x + self.param("positions", nn.initializers.zeros, (1, x.shape[1], self.width))
        for i in range(self.depth):
            x = Block(self.heads, name=f"block{i}")(x)
        return {"pool": nn.LayerNorm(**_NORM, name="norm")(x[:, 0])}


def from_torch(tensors: Mapping[str, np.ndarray], source: str, network: DINOv2 = DINOv2()) -> dict:
    """Parameters from facebookresearch/dinov2's tensors. Raises CheckpointError for other tensors."""
    def dense(name: str) -> dict:
        return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}

    def norm(name: str) -> dict:
        return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    try:
        params = {"patch": {"kernel": tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
                            "bias": tensors["patch_embed.proj.bias"]}, "norm": norm("norm"),
                  "token": tensors["cls_token"], "positions": positions(np.asarray(tensors["pos_embed"], np.float64))}
        for i in range(network.depth):
            at = f"blocks.{i}."
            params[f"block{i}"] = {
                "norm1": norm(at + "norm1"), "qkv": dense(at + "attn.qkv"), "proj": dense(at + "attn.proj"),
                "scale1": tensors[at + "ls1.gamma"], "norm2": norm(at + "norm2"), "fc1": dense(at + "mlp.fc1"),
                "fc2": dense(at + "mlp.fc2"), "scale2": tensors[at + "ls2.gamma"]}
    except KeyError as error:
        raise CheckpointError(f"{source} is not DINOv2 of depth {network.depth} in its authors' layout: it lacks "
                              f"{error}.") from error
    return checked(params, network, SIZE, source)


def positions(table: np.ndarray) -> np.ndarray:
    """[1, 1 + M^2, D] for M x M patches in training -> [1, 1 + 256, D] for ours: PyTorch's bicubic (a = -3/4, no low
    pass), by the authors' factor (16 + 0.1) / M, not 16 / M."""
    old, new = int(round((table.shape[1] - 1) ** 0.5)), SIZE // PATCH
    at = (np.arange(new) + 0.5) * old / (new + 0.1) - 0.5
    matrix = np.zeros((new, old))
    for offset in range(-1, 3):
        place = np.floor(at).astype(int) + offset
        x, a = np.abs(at - place), -0.75
        weight = np.where(x <= 1, ((a + 2) * x - (a + 3)) * x**2 + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a)
        np.add.at(matrix, (np.arange(new), np.clip(place, 0, old - 1)), weight)
    grid = np.einsum("iI,jJ,IJd->ijd", matrix, matrix, table[0, 1:].reshape(old, old, -1))
    return np.concatenate([table[:, :1], grid.reshape(1, new * new, -1)], 1)
