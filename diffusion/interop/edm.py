"""Reads models of EDM (Karras et al. 2022): DhariwalUNet, its version of ADM, and SongUNet, of DDPM++ and NCSN++.

c_noise of our networks is their `noise_labels`. The class around the network scales its input and output, with the
standard deviation sigma of the noise in x = data + sigma eps ("Elucidating the Design Space of Diffusion-Based
Generative Models", Table 1): EDMPrecond is our prediction `edm` on the process `edm`; VPPrecond is `eps` on the process
`vp`, whose x_t is theirs divided by sqrt(sigma^2 + 1) and whose 999 t is their c_noise; VEPrecond is `edm_ve` on `ve`.
"""
import difflib
import re
from typing import Any

import numpy as np

from diffusion.errors import CheckpointError
from diffusion.interop import fields, matching
from diffusion.interop.matching import Slot

# The arguments of the networks and of the classes around them, with their defaults.
_COUNT = fields.whole(None, 1, fields.CHANNELS)
REQUIRED = {"img_resolution": fields.whole(None, 1, fields.SIDE), "in_channels": _COUNT, "out_channels": _COUNT}
SHARED = REQUIRED | {
    "label_dim": fields.whole(0, 0, fields.LABELS), "augment_dim": fields.whole(0, 0, fields.CHANNELS),
    "channel_mult_emb": fields.whole(4, 1, fields.CHANNELS), "dropout": fields.number(0.1, 0, 1)}
FIELDS = {
    "DhariwalUNet": SHARED | {
        "model_channels": fields.whole(192, 1, fields.CHANNELS), "num_blocks": fields.whole(3, 1, fields.BLOCKS),
        "channel_mult": fields.several((1, 2, 3, 4), _COUNT, fields.LEVELS),
        "attn_resolutions": fields.several((32, 16, 8), _COUNT, fields.LEVELS, 0)},
    "SongUNet": SHARED | {
        "model_channels": fields.whole(128, 1, fields.CHANNELS), "num_blocks": fields.whole(4, 1, fields.BLOCKS),
        "channel_mult": fields.several((1, 2, 2, 2), _COUNT, fields.LEVELS),
        "attn_resolutions": fields.several((16,), _COUNT, fields.LEVELS, 0),
        "embedding_type": fields.choice("positional", ("positional", "fourier")),
        "channel_mult_noise": fields.whole(1, 1, fields.CHANNELS),
        "encoder_type": fields.choice("standard", ("standard", "skip", "residual")),
        "decoder_type": fields.choice("standard", ("standard", "skip")),
        "resample_filter": fields.several((1, 1), fields.whole(None, 0, 1000), 16, 2)},
}
IGNORED = {"label_dropout", "use_fp16", "sigma_min", "sigma_max"}  # of training and precision, and the levels allowed
# The classes around a network: the network that is their default, and their own arguments.
PRECONDITIONINGS = {
    "EDMPrecond": ("DhariwalUNet", {"sigma_data": fields.number(0.5, 1e-6)}),
    "VPPrecond": ("SongUNet", {"beta_d": fields.number(19.9, 1e-6), "beta_min": fields.number(0.1, 1e-6),
                               "M": fields.only(1000, "c_noise of our process is 999 t"),
                               "epsilon_t": fields.number(1e-5, 1e-9, 0.1)}),
    "VEPrecond": ("SongUNet", {"sigma_min": fields.number(0.02, 1e-9), "sigma_max": fields.number(100.0, 1e-6)})}
GROUPS, CHANNELS_PER_GROUP, CHANNELS_PER_HEAD = 32, 4, 64


# ---- settings ------------------------------------------------------------------------------------------------------

def read_settings(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Arguments of a network, or of the class around it -> our config sections "network", "data", "process", "loss" and
    "sample", and "prediction", "sigma_data" and "learned_range".

    settings: {"img_resolution": 64, "in_channels": 3, "out_channels": 3, ...} or, as for EDMPrecond, "img_channels"
    for both; "class_name" and "model_type" are optional. learned_range is true if the network has twice as many
    output channels as input channels. Raises CheckpointError that names an unknown or unsupported argument.
    """
    kind, around, s = parse(settings, where)
    if s["out_channels"] not in (s["in_channels"], 2 * s["in_channels"]):
        raise CheckpointError(f"{where}: out_channels = {s['out_channels']} is not supported: only in_channels = "
                              f"{s['in_channels']} or twice that.")
    heights = [s["img_resolution"] >> level for level in range(len(s["channel_mult"]))]
    network = dict(
        channels=s["model_channels"], multipliers=s["channel_mult"], blocks=s["num_blocks"], dropout=s["dropout"],
        attention_resolutions=tuple(h for h in heights if h in s["attn_resolutions"]),
        embedding_channels=s["model_channels"] * s["channel_mult_emb"], num_classes=s["label_dim"])
    network |= of_dhariwal(s, where) if kind == "DhariwalUNet" else dict(
        name="song_unet", resample_filter=s["resample_filter"], encoder=s["encoder_type"], decoder=s["decoder_type"],
        noise_embedding=s["embedding_type"], noise_multiplier=s["channel_mult_noise"])
    return {"network": network, "data": dict(size=s["img_resolution"], channels=s["in_channels"]),
            "learned_range": s["out_channels"] != s["in_channels"]} | of_process(around, s)


def of_process(around: str, s: dict[str, Any]) -> dict[str, Any]:
    """The sections that the class around the network stands for, with the sampler that EDM's README recommends: Heun's
    method in sigma, of 18 steps or, from 64 pixels on, 40."""
    sample = dict(solver="heun", spacing="karras", steps=18 if s["img_resolution"] < 64 else 40, clip=False)
    if around == "EDMPrecond":
        return {"process": dict(name="edm", sigma_min=0.002, sigma_max=80.0), "prediction": "edm",
                "sigma_data": s["sigma_data"],
                "loss": dict(weighting="edm", space="x0", density="log_normal", density_mean=-1.2, density_std=1.2),
                "sample": sample}
    sample |= dict(schedule="linear")
    if around == "VPPrecond":
        return {"process": dict(name="vp", beta_min=s["beta_min"], beta_max=s["beta_min"] + s["beta_d"],
                                t_min=s["epsilon_t"]), "prediction": "eps", "sample": sample}
    return {"process": dict(name="ve", sigma_min=s["sigma_min"], sigma_max=s["sigma_max"], t_min=1e-5),
            "prediction": "edm_ve", "sample": sample}


def of_dhariwal(s: dict[str, Any], where: str) -> dict[str, Any]:
    """The keys that only our U-Net has. Raises CheckpointError for a DhariwalUNet that it cannot be."""
    multipliers = s["channel_mult"]
    widths = [s["model_channels"] * m for m in multipliers]
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
    return dict(
        name="unet", heads=1, head_channels=CHANNELS_PER_HEAD, groups=GROUPS, norm_epsilon=1e-5, activation="swish",
        scale_shift=True, downsample=("resblock",), upsample=("resblock",), middle="attention", embedding="positional",
        freq_shift=0.0, cos_first=True)


def parse(settings: dict[str, Any], where: str) -> tuple[str, str, dict[str, Any]]:
    """The class of the network, the class around it and all arguments. Raises CheckpointError that names an unknown,
    missing or wrong argument."""
    given, kind, around = dict(settings), None, "EDMPrecond"
    for key, allowed in (("class_name", (*FIELDS, *PRECONDITIONINGS)), ("model_type", FIELDS)):
        if key in given:
            name = str(given.pop(key)).split(".")[-1][:60]
            if name not in allowed:
                raise CheckpointError(f"{where}: {key} = {name} is not supported. It can be one of: "
                                      f"{', '.join(allowed)}.")
            kind, around = (name, around) if name in FIELDS else (kind, name)
    kind = kind or PRECONDITIONINGS[around][0]
    if "img_channels" in given:
        given["in_channels"] = given["out_channels"] = given.pop("img_channels")
    table = FIELDS[kind] | PRECONDITIONINGS[around][1]
    if unknown := sorted(given.keys() - table.keys() - IGNORED):
        match = difflib.get_close_matches(unknown[0], list(table), n=1, cutoff=0.5)
        other = [name for name, known in FIELDS.items() if unknown[0] in known]
        hint = f" It is one of {other[0]}: give model_type = {other[0]}." if other else \
            f" Did you mean {match[0]}?" if match else ""
        raise CheckpointError(f"{where}: {kind} has no argument {fields.named(', '.join(map(str, unknown)))}.{hint} "
                              f"It has: {', '.join(table)}.")
    if missing := [key for key in REQUIRED if key not in given]:
        raise CheckpointError(f"{where}: {', '.join(missing)} of the network is missing (img_channels of EDMPrecond is "
                              "both in_channels and out_channels).")
    return kind, around, fields.read_fields(given, table, where)


# ---- weights -------------------------------------------------------------------------------------------------------

TOP = {"emb1": "map_layer0", "emb2": "map_layer1", "labels": "map_label", "augment": "map_augment"}
LAYERS = {"norm1": "norm0", "conv1": "conv0", "emb": "affine", "norm2": "norm1", "conv2": "conv1", "shortcut": "skip",
          "norm": "norm2", "q": "qkv", "k": "qkv", "v": "qkv", "out": "proj"}


def read_params(abstract: dict, state: dict[str, np.ndarray], where: str, *, settings: dict[str, Any]) -> dict:
    """The state dict of a network, or of the class around one -> the parameters of ours ("params").

    settings: as for `read_settings`. Augmentation labels are zero outside training, and their layer has no bias, so
    leaving out its weights where our network has no such label changes nothing. Raises CheckpointError if names or
    shapes do not fit.
    """
    kind, _, s = parse(settings, where)
    if state and all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): value for name, value in state.items()}
    if (is_song := any("_aux_" in name for name in state)) != (kind == "SongUNet") and state:
        raise CheckpointError(f"{where} has the weights of a {'SongUNet' if is_song else 'DhariwalUNet'}, but the "
                              f"settings describe a {kind}: give model_type of the model.")
    taps = np.asarray(s.get("resample_filter", (1, 1)), np.float64)
    filters = {name: value for name, value in state.items() if name.endswith(".resample_filter")}
    if wrong := [name for name, value in filters.items() if value.shape != (1, 1, len(taps), len(taps)) or not
                 np.allclose(value[0, 0], np.outer(taps, taps) / taps.sum() ** 2, rtol=1e-6)]:
        raise CheckpointError(f"{where}: {len(wrong)} filters of resampling are not {taps.astype(int).tolist()}, as "
                              f"{kind} has by these settings: {matching.listed(sorted(wrong))}.")
    state = {name: value for name, value in state.items() if name not in filters}
    if s["augment_dim"] and "augment" not in abstract:
        noise = s["model_channels"] * s.get("channel_mult_noise", 1)
        expected, weight = (noise, s["augment_dim"]), state.pop("map_augment.weight", None)
        if weight is None or weight.shape != expected:
            raise CheckpointError(f"{where}: augment_dim = {s['augment_dim']} needs map_augment.weight "
                                  f"{list(expected)}; it is {'missing' if weight is None else list(weight.shape)}.")

    def locate(path: tuple[str, ...]) -> Slot:
        module, *layer, leaf = path
        if leaf == "frequencies":
            return Slot("map_noise.freqs", matching.vector)
        name = f"{theirs(path, s)}.{'bias' if leaf == 'bias' else 'weight'}"
        is_conv = "conv" in path[-2] or module.endswith("_input") and s["encoder_type"] == "residual"
        read = matching.conv if is_conv else matching.dense  # of labels in our U-Net, too: a table
        read = read if leaf in ("kernel", "embedding") else matching.vector
        if layer and layer[0] in ("q", "k", "v"):  # rows: each channel's q, k and v
            return Slot(name, lambda weight: read(weight["qkv".index(layer[0])::3]))
        return Slot(name, read)

    return matching.fill(abstract, state, locate, where)


def theirs(path: tuple[str, ...], s: dict[str, Any]) -> str:
    """("down0_block1", "conv1", ...) -> "enc.64x64_block1.conv0": blocks are named by their output's height."""
    module, layer, size, levels = path[0], path[1], s["img_resolution"], len(s["channel_mult"])
    if module in TOP:
        return TOP[module]
    at = lambda level: f"{size >> level}x{size >> level}"  # noqa: E731
    if module == "conv_in":
        return f"enc.{at(0)}_conv"
    if match := re.fullmatch(r"(norm|conv)_out(\d*)", module):
        return f"dec.{at(int(match[2] or 0))}_aux_{match[1]}" if "encoder_type" in s else f"out_{match[1]}"
    if module.startswith("middle"):  # the attention belongs to the first block
        block = f"dec.{at(levels - 1)}_in{int(module == 'middle_block1')}"
    else:
        way, level, kind, index = re.fullmatch(r"(down|up)(\d+)_([a-z]+)(\d*)", module).groups()
        part, level = "enc" if way == "down" else "dec", int(level)
        if kind == "input":
            return f"enc.{at(level + 1)}_aux_{s['encoder_type']}"
        if kind in ("downsample", "upsample"):
            block = f"enc.{at(level + 1)}_down" if way == "down" else f"dec.{at(level - 1)}_up"
        else:
            block = f"{part}.{at(level)}_block{index}"
    return f"{block}.{LAYERS[layer]}"
