"""Converts diffusers' UNet2DModel, its config.json and its state dict, to and from our U-Net. Needs only NumPy.

Names follow diffusers' state dicts since 0.17 (to_q, to_k, to_v, to_out.0); older files, with query, key, value and
proj_attn instead, are read too.
"""
import re
from typing import Any

import numpy as np

from diffusion.errors import CheckpointError
from diffusion.interop import fields, matching
from diffusion.interop.matching import Slot

DOWN = {"DownBlock2D": "conv", "ResnetDownsampleBlock2D": "resblock", "AttnDownBlock2D": "attention"}
UP = {"UpBlock2D": "conv", "ResnetUpsampleBlock2D": "resblock", "AttnUpBlock2D": "attention"}
OLD_PREFIX = "UNetRes"  # of block names in old files; diffusers removes it
RESAMPLE = {"conv": "conv", "resnet": "resblock"}
ACTIVATIONS = {"silu": "swish", "swish": "swish", "relu": "relu", "gelu": "gelu", "mish": "mish"}
SCALE_SHIFT = {"default": False, "scale_shift": True}
SKIP = "Skip blocks, of NCSN++, carry the image itself beside the features, which our U-Net does not."


def sides(value: Any) -> int | tuple[int, int]:
    """64 or [64, 64] -> 64, [96, 128] -> (96, 128): height and width."""
    side = fields.whole(None, 1, fields.SIDE)
    if isinstance(value, (list, tuple)) and len(value) == 2:
        height, width = (side.read(one) for one in value)
        return height if height == width else (height, width)
    return side.read(value)


def height_of(size: int | tuple[int, int]) -> int:
    """The height of images of this `sides`."""
    return size if isinstance(size, int) else size[0]


_WIDTH = fields.whole(None, 1, fields.CHANNELS)
_KINDS = lambda *names: fields.several(names, fields.text(""), fields.LEVELS)  # noqa: E731

# All settings of the class, with diffusers' defaults for settings missing in a file.
FIELDS = {
    "sample_size": fields.Field(None, sides, f"the height = width of the images, or both, each in 1 .. {fields.SIDE} "
                                 "pixels"),
    "in_channels": fields.whole(3, 1, fields.CHANNELS),
    "out_channels": fields.whole(3, 1, fields.CHANNELS),
    "center_input_sample": fields.flag(False),
    "time_embedding_type": fields.choice("positional", ("positional", "fourier", "learned")),
    "time_embedding_dim": fields.optional(_WIDTH),
    "freq_shift": fields.number(0),
    "flip_sin_to_cos": fields.flag(True),
    "down_block_types": _KINDS("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": fields.choice("UNetMidBlock2D", ("UNetMidBlock2D", None)),
    "up_block_types": _KINDS("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": fields.several((224, 448, 672, 896), _WIDTH, fields.LEVELS),
    "layers_per_block": fields.whole(2, 1, fields.BLOCKS),
    "mid_block_scale_factor": fields.number(1),
    "downsample_padding": fields.choice(1, (0, 1)),
    "downsample_type": fields.choice("conv", RESAMPLE),
    "upsample_type": fields.choice("conv", RESAMPLE),
    "dropout": fields.number(0.0, 0, 1),
    "act_fn": fields.choice("silu", ACTIVATIONS),
    "attention_head_dim": fields.optional(fields.whole(8, 1, fields.CHANNELS)),
    "norm_num_groups": fields.whole(32, 1, fields.CHANNELS),
    "attn_norm_num_groups": fields.optional(_WIDTH),
    "norm_eps": fields.number(1e-5, 0),
    "resnet_time_scale_shift": fields.choice("default", SCALE_SHIFT),
    "add_attention": fields.flag(True),
    "class_embed_type": fields.only(None, "a class is a label of num_class_embeds"),
    "num_class_embeds": fields.optional(fields.whole(None, 0, fields.LABELS)),
    "num_train_timesteps": fields.optional(fields.whole(None, 1, fields.STEPS)),  # for learned times
}


# ---- settings ------------------------------------------------------------------------------------------------------

def read_settings(settings: dict[str, Any], where: str) -> dict[str, dict]:
    """config.json of a UNet2DModel -> our config sections "network", "data" and the key "learned_range".

    Raises CheckpointError that names a setting, block type or value that our U-Net does not have.
    """
    if (name := settings.get("_class_name", "UNet2DModel")) != "UNet2DModel":
        raise CheckpointError(f"{where} describes a {fields.named(name)}; only a UNet2DModel (pixels, no text) can be "
                              "read.")
    s = fields.read_fields(fields.own(settings, FIELDS, where, "UNet2DModel"), FIELDS, where)

    height, widths = height_of(s["sample_size"]), s["block_out_channels"]
    if not len(widths) == len(s["down_block_types"]) == len(s["up_block_types"]):
        raise CheckpointError(f"{where}: block_out_channels, down_block_types and up_block_types differ in length.")
    for key, table in (("down_block_types", DOWN), ("up_block_types", UP)):
        s[key] = [kind.removeprefix(OLD_PREFIX) for kind in s[key]]
        if strange := [kind for kind in s[key] if kind not in table]:
            raise CheckpointError(f"{where}: {key} has {fields.named(strange[0])}, which is not supported. The kinds "
                                  f"are: {', '.join(table)}." + (f" {SKIP}" if "Skip" in strange[0] else ""))
    if s["out_channels"] not in (s["in_channels"], 2 * s["in_channels"]):
        raise CheckpointError(f"{where}: out_channels = {s['out_channels']} is not supported. It can be in_channels = "
                              f"{s['in_channels']}, or twice that with a learned variance.")

    learned = s["time_embedding_type"] == "learned"
    if learned and not s["num_train_timesteps"]:
        raise CheckpointError(f"{where}: time_embedding_type = 'learned' needs num_train_timesteps, the number of "
                              "times.")
    scale_shift = s["resnet_time_scale_shift"]
    downs = [DOWN[kind] for kind in s["down_block_types"]]
    ups = [UP[kind] for kind in reversed(s["up_block_types"])]  # by our levels, highest resolution first
    attends = lambda kinds: tuple(height >> i for i, kind in enumerate(kinds) if kind == "attention")  # noqa: E731
    middle_groups = s["attn_norm_num_groups"]
    if middle_groups is None and scale_shift:
        middle_groups = 0
    network = dict(
        name="unet", channels=widths[0], multipliers=tuple(ratio(w, widths[0]) for w in widths),
        blocks=s["layers_per_block"], attention_resolutions=attends(downs),
        up_attention_resolutions=None if attends(ups) == attends(downs) else attends(ups),
        heads=1, head_channels=s["attention_head_dim"] or 0, groups=s["norm_num_groups"],
        norm_epsilon=s["norm_eps"], activation=s["act_fn"], dropout=s["dropout"],
        scale_shift=scale_shift, downsample=resampling(downs, s["downsample_type"], len(downs) - 1),
        upsample=resampling(ups, s["upsample_type"], 0),
        pad_around=s["downsample_padding"] == 1,
        middle="none" if s["mid_block_type"] is None else "attention" if s["add_attention"] else "plain",
        middle_divisor=s["mid_block_scale_factor"], middle_groups=middle_groups,
        embedding=s["time_embedding_type"], embedding_channels=s["time_embedding_dim"] or 0,
        embedding_rows=s["num_train_timesteps"] if learned else 0, freq_shift=s["freq_shift"],
        cos_first=s["flip_sin_to_cos"] and s["time_embedding_type"] == "positional",
        center_input=s["center_input_sample"], num_classes=s["num_class_embeds"] or 0)
    return {"network": network, "data": dict(size=s["sample_size"], channels=s["in_channels"]),
            "learned_range": s["out_channels"] == 2 * s["in_channels"]}


def ratio(width: int, first: int) -> float:
    return width // first if width % first == 0 else width / first


def resampling(blocks: list[str], attention: str, unused: int) -> tuple[str, ...]:
    """How each level resamples, or one entry if all agree; levels with attention use the given kind.

    The level `unused` does not resample: it gets its neighbour's entry.
    """
    kinds = [attention if block == "attention" else block for block in blocks]
    others = kinds[:unused] + kinds[unused + 1:] or ["conv"]
    if len(set(others)) == 1:
        return (others[0],)
    return tuple([others[0], *others] if unused == 0 else [*others, others[-1]])


def write_settings(network: dict[str, Any], *, size: int | tuple[int, int], channels: int,
                   learned_range: bool) -> dict[str, Any]:
    """Our config section "network" -> config.json of the UNet2DModel that computes the same function.

    Raises CheckpointError that names a setting that such a model cannot have.
    """
    n = network
    if n["name"] != "unet":
        raise CheckpointError(f"diffusers' UNet2DModel cannot express config.network.name = {n['name']!r}; "
                              "only 'unet'.")
    if n.get("patch", 1) != 1:
        raise CheckpointError("diffusers' UNet2DModel has no patches: config.network.patch must be 1, not "
                              f"{n['patch']}.")
    widths = [round(n["channels"] * m) for m in n["multipliers"]]
    levels = len(widths)
    if widths[0] != n["channels"]:
        raise CheckpointError(f"diffusers' UNet2DModel sizes the first convolution and the time embedding by the first "
                              f"level: config.network.multipliers[0] must be 1, not {n['multipliers'][0]}.")
    heights = [height_of(size) >> level for level in range(levels)]
    up_attends = n["attention_resolutions"] if n["up_attention_resolutions"] is None else n["up_attention_resolutions"]

    def kinds(attends, resample, table, last):
        """The block types by our levels, and the common type of resampling of the levels with attention."""
        resample = list(resample) * (levels if len(resample) == 1 else 1)
        resample[last] = None  # does not resample
        attending = {resample[i] for i in range(levels) if heights[i] in attends} - {None}
        if len(attending) > 1:
            raise CheckpointError("diffusers' UNet2DModel resamples all levels with attention alike: "
                                  "config.network.downsample and upsample must not mix kinds there.")
        names = {kind: name for name, kind in table.items()}
        types = [names["attention" if heights[i] in attends else resample[i] or "conv"] for i in range(levels)]
        return types, "resnet" if attending == {"resblock"} else "conv"

    down, downsample_type = kinds(n["attention_resolutions"], n["downsample"], DOWN, levels - 1)
    up, upsample_type = kinds(up_attends, n["upsample"], UP, 0)
    attended = {w for w, h in zip(widths, heights) if h in {*n["attention_resolutions"], *up_attends}}
    attended |= {widths[-1]} if n["middle"] == "attention" else set()
    head_dim = n["head_channels"] or None
    if head_dim is None and n["heads"] > 1:
        if len(attended) > 1:
            raise CheckpointError(f"diffusers' UNet2DModel fixes the channels of an attention head, where "
                                  f"config.network.heads = {n['heads']} fixes their number: the same only where all "
                                  f"levels with attention are equally wide, and they have {sorted(attended)} channels.")
        head_dim = min(attended, default=widths[-1]) // n["heads"]
    middle_groups = n["middle_groups"]
    if middle_groups == 0:
        if not n["scale_shift"]:
            raise CheckpointError("diffusers' UNet2DModel has attention without normalisation (config.network."
                                  "middle_groups = 0) only with config.network.scale_shift.")
        middle_groups = None
    elif middle_groups is None and n["scale_shift"]:
        middle_groups = n["groups"]
    activation = {ours: theirs for theirs, ours in ACTIVATIONS.items() if theirs != "swish"}[n["activation"]]
    return dict(
        _class_name="UNet2DModel", sample_size=size, in_channels=channels,
        out_channels=channels * (1 + learned_range), center_input_sample=n["center_input"],
        time_embedding_type=n["embedding"], time_embedding_dim=n["embedding_channels"] or None,
        freq_shift=n["freq_shift"], flip_sin_to_cos=n["cos_first"], down_block_types=down,
        mid_block_type=None if n["middle"] == "none" else "UNetMidBlock2D", up_block_types=up[::-1],
        block_out_channels=widths, layers_per_block=n["blocks"], mid_block_scale_factor=n["middle_divisor"],
        downsample_padding=int(n["pad_around"]), downsample_type=downsample_type, upsample_type=upsample_type,
        dropout=n["dropout"], act_fn=activation, attention_head_dim=head_dim, norm_num_groups=n["groups"],
        attn_norm_num_groups=middle_groups, norm_eps=n["norm_epsilon"],
        resnet_time_scale_shift="scale_shift" if n["scale_shift"] else "default",
        add_attention=n["middle"] != "plain", class_embed_type=None, num_class_embeds=n["num_classes"] or None,
        num_train_timesteps=n["embedding_rows"] or None)


# ---- weights -------------------------------------------------------------------------------------------------------

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
TOP = {"emb1": "time_embedding.linear_1", "emb2": "time_embedding.linear_2", "labels": "class_embedding",
       "fourier": "time_proj", "times": "time_proj", "conv_in": "conv_in", "norm_out": "conv_norm_out",
       "conv_out": "conv_out"}
LAYERS = {"norm1": "norm1", "conv1": "conv1", "emb": "time_emb_proj", "norm2": "norm2", "conv2": "conv2",
          "shortcut": "conv_shortcut", "norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0",
          "conv": "conv"}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def state_name(path: tuple[str, ...], levels: int) -> str:
    """("down0_block1", "conv1", "kernel") -> "down_blocks.0.resnets.1.conv1.weight"."""
    module, *layer, leaf = path
    suffix = "bias" if leaf == "bias" else "weight"
    if module in TOP:
        return f"{TOP[module]}.{suffix}"
    for pattern, name in MODULES:
        if match := re.fullmatch(pattern, module):
            fields = match.groupdict()
            prefix = name.format(**fields, r=levels - 1 - int(fields.get("l", 0)))
            return f"{prefix}{LAYERS[layer[0]]}.{suffix}"
    raise KeyError(path)


def count_levels(params: dict) -> int:
    return 1 + max(int(name[2:].split("_")[0]) for name in params if re.match(r"up\d", name))


def read_params(abstract: dict, state: dict[str, np.ndarray], where: str) -> dict:
    """The state dict of a UNet2DModel -> the parameters of our U-Net, of the shapes of `abstract` (under "params").

    Raises CheckpointError if names or shapes do not fit.
    """
    levels = count_levels(abstract)
    old = "|".join(OLD_ATTENTION)
    state = {re.sub(rf"(\.attentions\.\d+\.)({old})\.", lambda m: m[1] + OLD_ATTENTION[m[2]] + ".", name): value
             for name, value in state.items()}

    def locate(path):
        name = state_name(path, levels)
        if path[-1] != "kernel":
            return Slot(name, matching.vector)
        return Slot(name, matching.conv if "conv" in path[-2] else matching.dense)

    return matching.fill(abstract, state, locate, where)


def write_params(params: dict) -> dict[str, np.ndarray]:
    """The parameters of our U-Net (under "params") -> the state dict of the same UNet2DModel, float32.

    Convolutions HWIO -> OIHW, dense layers [in, out] -> [out, in], the shortcut's dense layer -> a 1x1 convolution.
    """
    levels, state = count_levels(params), {}
    for path, value in matching.leaves(params).items():
        value = np.asarray(value, np.float32)
        if path[-1] == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            value = value[:, :, None, None] if path[-2] == "shortcut" else value
        state[state_name(path, levels)] = np.ascontiguousarray(value)
    return state
