"""diffusers' UNet2DModel: its config.json and its state dict, to and from our U-Net. NumPy alone.

The names are those of diffusers' state dicts since 0.17 (to_q, to_k, to_v, to_out.0); files written before have query,
key, value and proj_attn for them, and are read too.
"""
import re
from typing import Any

import numpy as np

from diffusion.errors import CheckpointError
from diffusion.interop import matching
from diffusion.interop.matching import Slot

# All settings of the class, with the values that diffusers takes for those that a file does not have.
DEFAULTS = dict(
    sample_size=None, in_channels=3, out_channels=3, center_input_sample=False, time_embedding_type="positional",
    time_embedding_dim=None, freq_shift=0, flip_sin_to_cos=True,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    mid_block_type="UNetMidBlock2D",
    up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(224, 448, 672, 896), layers_per_block=2, mid_block_scale_factor=1, downsample_padding=1,
    downsample_type="conv", upsample_type="conv", dropout=0.0, act_fn="silu", attention_head_dim=8, norm_num_groups=32,
    attn_norm_num_groups=None, norm_eps=1e-5, resnet_time_scale_shift="default", add_attention=True,
    class_embed_type=None, num_class_embeds=None, num_train_timesteps=None)
DOWN = {"DownBlock2D": "conv", "ResnetDownsampleBlock2D": "resblock", "AttnDownBlock2D": "attention"}
UP = {"UpBlock2D": "conv", "ResnetUpsampleBlock2D": "resblock", "AttnUpBlock2D": "attention"}
RESAMPLE = {"conv": "conv", "resnet": "resblock"}
ACTIVATIONS = {"silu": "swish", "swish": "swish", "relu": "relu", "gelu": "gelu", "mish": "mish"}
SCALE_SHIFT = {"default": False, "scale_shift": True}


# ---- settings ------------------------------------------------------------------------------------------------------

def read_settings(settings: dict[str, Any], where: str) -> dict[str, dict]:
    """config.json of a UNet2DModel -> our config sections "network", "data" and the key "learned_range".

    Raises CheckpointError that names a setting, block type or value that our U-Net does not have.
    """
    def unsupported(key: str, allowed: str):
        return CheckpointError(f"{where}: {key} = {s.get(key)!r} is not supported. It can be {allowed}.")

    def choose(key: str, table: dict):
        if s[key] not in table:
            raise unsupported(key, "one of: " + ", ".join(map(str, table)))
        return table[s[key]]

    if (name := settings.get("_class_name", "UNet2DModel")) != "UNet2DModel":
        raise CheckpointError(f"{where} describes a {name}; only a UNet2DModel (pixels, no text) can be read.")
    own = {key: value for key, value in settings.items() if not key.startswith("_")}
    if unknown := sorted(own.keys() - DEFAULTS.keys()):
        raise CheckpointError(f"{where}: a UNet2DModel has no setting {', '.join(unknown)}, or not one that is "
                              "supported.")
    s = DEFAULTS | own

    size = s["sample_size"]
    if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if not isinstance(size, int) or size < 1:
        raise unsupported("sample_size", "the height = width of the images, in pixels")
    widths = s["block_out_channels"]
    if not (len(widths) == len(s["down_block_types"]) == len(s["up_block_types"]) >= 1):
        raise CheckpointError(f"{where}: block_out_channels, down_block_types and up_block_types differ in length.")
    for key, table in (("down_block_types", DOWN), ("up_block_types", UP)):
        if strange := [kind for kind in s[key] if kind not in table]:
            raise CheckpointError(f"{where}: {key} has {', '.join(strange)}, which is not supported. The kinds are: "
                                  f"{', '.join(table)}.")
    if s["out_channels"] not in (s["in_channels"], 2 * s["in_channels"]):
        raise unsupported("out_channels", f"in_channels = {s['in_channels']}, or twice that with a learned variance")
    if s["mid_block_type"] not in ("UNetMidBlock2D", None):
        raise unsupported("mid_block_type", "UNetMidBlock2D or null")
    if s["class_embed_type"] is not None:
        raise unsupported("class_embed_type", "null, with num_class_embeds labels or none")
    if s["downsample_padding"] not in (0, 1):
        raise unsupported("downsample_padding", "0 or 1")
    if not isinstance(s["norm_num_groups"], int):
        raise unsupported("norm_num_groups", "an integer that divides all block_out_channels")
    if s["time_embedding_type"] not in ("positional", "fourier"):
        raise unsupported("time_embedding_type", "positional or fourier")

    resample_down, resample_up = choose("downsample_type", RESAMPLE), choose("upsample_type", RESAMPLE)
    scale_shift = choose("resnet_time_scale_shift", SCALE_SHIFT)
    downs = [DOWN[kind] for kind in s["down_block_types"]]
    ups = [UP[kind] for kind in reversed(s["up_block_types"])]  # by our levels, the highest first
    attends = lambda kinds: tuple(size >> i for i, kind in enumerate(kinds) if kind == "attention")  # noqa: E731
    middle_groups = s["attn_norm_num_groups"]
    if middle_groups is None and scale_shift:
        middle_groups = 0
    network = dict(
        name="unet", channels=widths[0], multipliers=tuple(ratio(w, widths[0]) for w in widths),
        blocks=s["layers_per_block"], attention_resolutions=attends(downs),
        up_attention_resolutions=None if attends(ups) == attends(downs) else attends(ups),
        heads=1, head_channels=s["attention_head_dim"] or 0, groups=s["norm_num_groups"],
        norm_epsilon=float(s["norm_eps"]), activation=choose("act_fn", ACTIVATIONS), dropout=float(s["dropout"]),
        scale_shift=scale_shift, downsample=resampling(downs, resample_down, len(downs) - 1),
        upsample=resampling(ups, resample_up, 0),
        pad_around=s["downsample_padding"] == 1,
        middle="none" if s["mid_block_type"] is None else "attention" if s["add_attention"] else "plain",
        middle_divisor=float(s["mid_block_scale_factor"]), middle_groups=middle_groups,
        embedding=s["time_embedding_type"], embedding_channels=s["time_embedding_dim"] or 0,
        freq_shift=float(s["freq_shift"]), cos_first=s["flip_sin_to_cos"] and s["time_embedding_type"] == "positional",
        center_input=s["center_input_sample"], num_classes=s["num_class_embeds"] or 0)
    return {"network": network, "data": dict(size=size, channels=s["in_channels"]),
            "learned_range": s["out_channels"] == 2 * s["in_channels"]}


def ratio(width: int, first: int) -> float:
    return width // first if width % first == 0 else width / first


def resampling(blocks: list[str], attention: str, unused: int) -> tuple[str, ...]:
    """How each level resamples, or one for all where they agree; levels with attention by the kind given for them.

    The level `unused` does not resample: it gets what its neighbour has.
    """
    kinds = [attention if block == "attention" else block for block in blocks]
    others = kinds[:unused] + kinds[unused + 1:] or ["conv"]
    if len(set(others)) == 1:
        return (others[0],)
    return tuple([others[0], *others] if unused == 0 else [*others, others[-1]])


def write_settings(network: dict[str, Any], *, size: int, channels: int, learned_range: bool) -> dict[str, Any]:
    """Our config section "network" -> config.json of the UNet2DModel that computes the same function.

    Raises CheckpointError that names what such a model cannot have.
    """
    n = network
    if n["name"] != "unet":
        raise CheckpointError(f"diffusers' UNet2DModel cannot express config.network.name = {n['name']!r}; "
                              "only 'unet'.")
    widths = [round(n["channels"] * m) for m in n["multipliers"]]
    levels = len(widths)
    if widths[0] != n["channels"]:
        raise CheckpointError(f"diffusers' UNet2DModel sizes the first convolution and the time embedding by the first "
                              f"level: config.network.multipliers[0] must be 1, not {n['multipliers'][0]}.")
    heights = [size >> level for level in range(levels)]
    up_attends = n["attention_resolutions"] if n["up_attention_resolutions"] is None else n["up_attention_resolutions"]

    def kinds(attends, resample, table, last):
        """Block types by our levels and the one type of resampling of the levels with attention."""
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
        add_attention=n["middle"] != "plain", class_embed_type=None, num_class_embeds=n["num_classes"] or None)


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
       "fourier": "time_proj", "conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}
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
