"""Reads networks of EDM (Karras et al. 2022) from plain state dicts: only DhariwalUNet, its version of ADM.

c_noise of our U-Net is their `noise_labels`. The class around the network computes this number and scales the input
and output. In EDMPrecond, with the standard deviation sigma of the noise in x = data + sigma eps and
sigma_data = 0.5:

    c_noise = ln(sigma) / 4
    D(x; sigma) = c_skip x + c_out F(c_in x, c_noise),  c_in = 1 / sqrt(sigma^2 + sigma_data^2),
    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2),  c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)

("Elucidating the Design Space of Diffusion-Based Generative Models", Table 1). c_noise is not a discrete time.
"""
import difflib
import re
from typing import Any

import numpy as np

from diffusion.errors import CheckpointError
from diffusion.interop import fields, matching
from diffusion.interop.matching import Slot

# The arguments of DhariwalUNet and of EDMPrecond around it, with their defaults.
_COUNT = fields.whole(None, 1, fields.CHANNELS)
REQUIRED = {"img_resolution": fields.whole(None, 1, fields.SIDE), "in_channels": _COUNT, "out_channels": _COUNT}
FIELDS = REQUIRED | {
    "label_dim": fields.whole(0, 0, fields.LABELS), "augment_dim": fields.whole(0, 0, fields.CHANNELS),
    "model_channels": fields.whole(192, 1, fields.CHANNELS),
    "channel_mult": fields.several((1, 2, 3, 4), _COUNT, fields.LEVELS),
    "channel_mult_emb": fields.whole(4, 1, fields.CHANNELS), "num_blocks": fields.whole(3, 1, fields.BLOCKS),
    "attn_resolutions": fields.several((32, 16, 8), _COUNT, fields.LEVELS, 0), "dropout": fields.number(0.1, 0, 1)}
IGNORED = {"label_dropout", "use_fp16", "sigma_min", "sigma_max", "sigma_data"}  # of training, precision and process
CLASSES = ("DhariwalUNet", "EDMPrecond")
GROUPS, CHANNELS_PER_GROUP, CHANNELS_PER_HEAD = 32, 4, 64
SONG = "SongUNet (DDPM++, NCSN++) divides the sum of each block by sqrt(2) and attends once a level on the way up"


# ---- settings ------------------------------------------------------------------------------------------------------

def read_settings(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Arguments of DhariwalUNet or EDMPrecond -> our config sections "network" and "data", and "learned_range".

    settings: {"img_resolution": 64, "in_channels": 3, "out_channels": 3, ...} or, as for EDMPrecond, "img_channels"
    for both; "class_name" and "model_type" are optional. learned_range is true if the network has twice as many
    output channels as input channels. Raises CheckpointError that names an unknown or unsupported argument.
    """
    s = parse(settings, where)
    channels, multipliers = s["model_channels"], s["channel_mult"]
    widths = [channels * m for m in multipliers]
    heights = [s["img_resolution"] >> level for level in range(len(widths))]
    if multipliers[0] != 1:
        raise CheckpointError(f"{where}: channel_mult begins with {multipliers[0]}, so that the first convolution is "
                              "wider than the noise embedding; our U-Net has one size for both.")
    if min(widths) < GROUPS * CHANNELS_PER_GROUP or any(w % GROUPS for w in widths):
        raise CheckpointError(
            f"{where}: levels of {widths} channels (model_channels x channel_mult) are not supported: below "
            f"{GROUPS * CHANNELS_PER_GROUP} the normalisation groups differ from layer to layer, but our U-Net has one "
            f"number, {GROUPS}, which must divide all.")
    attended = {w for w, h in zip(widths, heights) if h in s["attn_resolutions"]} | {widths[-1]}
    if any(w % CHANNELS_PER_HEAD for w in attended):
        raise CheckpointError(f"{where}: levels with attention have {sorted(attended)} channels; heads of "
                              f"{CHANNELS_PER_HEAD} channels must divide them.")
    if s["out_channels"] not in (s["in_channels"], 2 * s["in_channels"]):
        raise CheckpointError(f"{where}: out_channels = {s['out_channels']} is not supported: only in_channels = "
                              f"{s['in_channels']} or twice that.")
    network = dict(
        name="unet", channels=channels, multipliers=multipliers, blocks=s["num_blocks"],
        attention_resolutions=tuple(h for h in heights if h in s["attn_resolutions"]), heads=1,
        head_channels=CHANNELS_PER_HEAD, groups=GROUPS, norm_epsilon=1e-5, activation="swish",
        dropout=s["dropout"], scale_shift=True, downsample=("resblock",), upsample=("resblock",),
        middle="attention", embedding="positional", embedding_channels=channels * s["channel_mult_emb"],
        freq_shift=0.0, cos_first=True, num_classes=s["label_dim"])
    return {"network": network, "data": dict(size=s["img_resolution"], channels=s["in_channels"]),
            "learned_range": s["out_channels"] != s["in_channels"]}


def parse(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """All arguments of DhariwalUNet. Raises CheckpointError that names an unknown, missing or wrong argument."""
    given = dict(settings)
    for key in ("class_name", "model_type"):
        name = str(given.pop(key, CLASSES[0])).split(".")[-1][:60]
        if name not in CLASSES:
            why = f": {SONG}, unlike our U-Net" if name == "SongUNet" else ""
            raise CheckpointError(f"{where}: {key} = {name} is not supported{why}. It can be one of: "
                                  f"{', '.join(CLASSES)}.")
    if "img_channels" in given:
        given["in_channels"] = given["out_channels"] = given.pop("img_channels")
    known = list(FIELDS)
    if unknown := sorted(given.keys() - FIELDS.keys() - IGNORED):
        match = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        raise CheckpointError(f"{where}: DhariwalUNet has no argument {fields.named(', '.join(map(str, unknown)))}."
                              f"{f' Did you mean {match[0]}?' if match else ''} It has: {', '.join(known)}.")
    if missing := [key for key in REQUIRED if key not in given]:
        raise CheckpointError(f"{where}: {', '.join(missing)} of the network is missing (img_channels of EDMPrecond is "
                              "both in_channels and out_channels).")
    return fields.read_fields(given, FIELDS, where)


# ---- weights -------------------------------------------------------------------------------------------------------

TOP = {"emb1": "map_layer0", "emb2": "map_layer1", "labels": "map_label", "norm_out": "out_norm",
       "conv_out": "out_conv"}
LAYERS = {"norm1": "norm0", "conv1": "conv0", "emb": "affine", "norm2": "norm1", "conv2": "conv1", "shortcut": "skip",
          "norm": "norm2", "q": "qkv", "k": "qkv", "v": "qkv", "out": "proj"}


def read_params(abstract: dict, state: dict[str, np.ndarray], where: str, *, settings: dict[str, Any]) -> dict:
    """The state dict of a DhariwalUNet, or of the EDMPrecond around one -> the parameters of our U-Net ("params").

    settings: as for `read_settings`. Augmentation labels are zero outside training, and their layer has no bias, so
    leaving out its weights changes nothing. Raises CheckpointError if names or shapes do not fit.
    """
    s = parse(settings, where)
    if state and all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): value for name, value in state.items()}
    if any("_aux_" in name for name in state):
        raise CheckpointError(f"{where} has the weights of a SongUNet, which is not supported: {SONG}.")
    filters = {name: value for name, value in state.items() if name.endswith(".resample_filter")}
    if wrong := [name for name, value in filters.items() if value.shape != (1, 1, 2, 2) or np.any(value != 0.25)]:
        raise CheckpointError(f"{where}: {len(wrong)} filters of resampling are not the mean of 2 x 2 that "
                              f"DhariwalUNet has: {matching.listed(sorted(wrong))}.")
    state = {name: value for name, value in state.items() if name not in filters}
    if s["augment_dim"]:
        expected = (s["model_channels"], s["augment_dim"])
        weight = state.pop("map_augment.weight", None)
        if weight is None or weight.shape != expected:
            raise CheckpointError(f"{where}: augment_dim = {s['augment_dim']} needs map_augment.weight "
                                  f"{list(expected)}; it is {'missing' if weight is None else list(weight.shape)}.")

    def locate(path: tuple[str, ...]) -> Slot:
        module, *layer, leaf = path
        name = f"{theirs(path, s['img_resolution'], len(s['channel_mult']))}.{'bias' if leaf == 'bias' else 'weight'}"
        if module == "labels":  # a dense layer of one-hot labels
            return Slot(name, matching.dense)
        read = matching.vector if leaf != "kernel" else matching.conv if "conv" in path[-2] else matching.dense
        if layer and layer[0] in ("q", "k", "v"):  # rows: each channel's q, k and v
            return Slot(name, lambda weight: read(weight["qkv".index(layer[0])::3]))
        return Slot(name, read)

    return matching.fill(abstract, state, locate, where)


def theirs(path: tuple[str, ...], size: int, levels: int) -> str:
    """("down0_block1", "conv1", ...) -> "enc.64x64_block1.conv0": blocks are named by their output's height."""
    module, layer = path[0], path[1]
    if module in TOP:
        return TOP[module]
    at = lambda level: f"{size >> level}x{size >> level}"  # noqa: E731
    if module == "conv_in":
        return f"enc.{at(0)}_conv"
    if module.startswith("middle"):  # the attention belongs to the first block
        block = f"dec.{at(levels - 1)}_in{int(module == 'middle_block1')}"
    else:
        way, level, kind, index = re.fullmatch(r"(down|up)(\d+)_([a-z]+)(\d*)", module).groups()
        part, level = "enc" if way == "down" else "dec", int(level)
        if kind in ("downsample", "upsample"):
            block = f"enc.{at(level + 1)}_down" if way == "down" else f"dec.{at(level - 1)}_up"
        else:
            block = f"{part}.{at(level)}_block{index}"
    return f"{block}.{LAYERS[layer]}"
