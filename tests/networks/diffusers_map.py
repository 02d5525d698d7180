"""Our U-Net's parameters under the names and in the layouts of diffusers' `UNet2DModel`. NumPy alone.

The names are those of diffusers' state dict since 0.17 (to_q, to_k, to_v, to_out.0); files written before have query,
key, value and proj_attn for them, which diffusers renames as it loads.
"""
import re

import numpy as np

# The module that holds a layer: {l} is our level, {r} the same level counted from the lowest resolution.
MODULES = (
    (r"down(?P<l>\d+)_block(?P<b>\d+)", "down_blocks.{l}.resnets.{b}."),
    (r"down(?P<l>\d+)_attention(?P<b>\d+)", "down_blocks.{l}.attentions.{b}."),
    (r"down(?P<l>\d+)_downsample", "down_blocks.{l}.downsamplers.0."),
    (r"middle_block(?P<b>\d+)", "mid_block.resnets.{b}."),
    (r"middle_attention", "mid_block.attentions.0."),
    (r"up(?P<l>\d+)_block(?P<b>\d+)", "up_blocks.{r}.resnets.{b}."),
    (r"up(?P<l>\d+)_attention(?P<b>\d+)", "up_blocks.{r}.attentions.{b}."),
    (r"up(?P<l>\d+)_upsample", "up_blocks.{r}.upsamplers.0."),
)
LAYERS = {
    "": {"emb1": "time_embedding.linear_1", "emb2": "time_embedding.linear_2", "labels": "class_embedding",
         "conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"},
    "resnets": {"norm1": "norm1", "conv1": "conv1", "emb": "time_emb_proj", "norm2": "norm2", "conv2": "conv2",
                "shortcut": "conv_shortcut"},
    "attentions": {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"},
    "downsamplers": {"conv": "conv"},
    "upsamplers": {"conv": "conv"},
}
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def to_diffusers(params: dict) -> dict[str, np.ndarray]:
    """The tree under "params" of `diffusion.networks.unet.UNet` -> the state dict of the same UNet2DModel.

    Convolutions HWIO -> OIHW, dense layers [in, out] -> [out, in], the shortcut's dense layer -> a 1x1 convolution.
    Raises KeyError on a module or layer that the U-Net does not have.
    """
    levels = 1 + max(int(name[4:].split("_")[0]) for name in params if name.startswith("down"))
    out = {}
    for module, layers in params.items():
        prefix = module_prefix(module, levels)
        kind = prefix.split(".")[-3] if prefix else ""
        for layer, leaves in (layers.items() if prefix else {module: layers}.items()):
            for leaf, value in leaves.items():
                out[f"{prefix}{LAYERS[kind][layer]}.{LEAVES[leaf]}"] = to_torch_layout(layer, leaf, np.asarray(value))
    return out


def module_prefix(module: str, levels: int) -> str:
    """"down0_block1" -> "down_blocks.0.resnets.1."; "" for a layer that stands at the top, as "conv_in" does."""
    if module in LAYERS[""]:
        return ""
    for pattern, name in MODULES:
        if match := re.fullmatch(pattern, module):
            fields = match.groupdict()
            return name.format(**fields, r=levels - 1 - int(fields.get("l", 0)))
    raise KeyError(module)


def to_torch_layout(layer: str, leaf: str, value: np.ndarray) -> np.ndarray:
    if leaf != "kernel":
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    return value.T[:, :, None, None] if layer == "shortcut" else value.T


def diffusers_config(network, image_shape: tuple[int, int, int]) -> dict:
    """The arguments of the UNet2DModel that has the structure of `network` (our UNet) on images [H,W,C].

    Two structures have none, and raise ValueError: diffusers fixes the channels of a head and ours the number of heads,
    which agree only where every level with attention is as wide as the middle; and diffusers sizes the first
    convolution and the time embedding by the first level.
    """
    height, _, in_channels = image_shape
    widths = [network.channels * m for m in network.multipliers]
    attends = [height >> level in network.attention_resolutions for level in range(len(widths))]
    attended = {widths[-1]} | {width for width, attend in zip(widths, attends) if attend}
    if network.heads > 1 and len(attended) > 1:
        raise ValueError(f"{network.heads} heads on feature maps of {sorted(attended)} channels: not a UNet2DModel")
    if widths[0] != network.channels:
        raise ValueError(f"a first level of {widths[0]} channels and a first convolution to {network.channels}: "
                         "not a UNet2DModel")
    return dict(
        sample_size=height, in_channels=in_channels, out_channels=network.out_channels,
        block_out_channels=tuple(widths),
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        layers_per_block=network.blocks, dropout=network.dropout, norm_num_groups=network.groups, norm_eps=1e-6,
        attention_head_dim=None if network.heads == 1 else widths[-1] // network.heads,
        num_class_embeds=network.num_classes or None, flip_sin_to_cos=False, freq_shift=1, downsample_padding=0,
        mid_block_scale_factor=1, act_fn="silu")
