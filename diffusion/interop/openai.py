"""Reads models of OpenAI's improved-diffusion (Nichol & Dhariwal 2021) and guided-diffusion (Dhariwal & Nichol 2021).

Their `.pt` files are plain state dicts of `UNetModel`; the READMEs give the command line for each. Both are read here
without PyTorch: the flags become our config sections, the state dict our parameters.
"""
import difflib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion.errors import CheckpointError, shown
from diffusion.interop import fields, matching
from diffusion.interop.matching import Slot
from diffusion.interop.unet2d import count_levels

# The flags that change the computation, with the defaults of both codebases' model_and_diffusion_defaults().
_ON, _OFF = fields.flag(True), fields.flag(False)
_CHANNELS = fields.whole(-1, -1, fields.CHANNELS)
SHARED = {
    "image_size": fields.whole(64, 1, fields.SIDE), "num_channels": fields.whole(128, 1, fields.CHANNELS),
    "num_res_blocks": fields.whole(2, 1, fields.BLOCKS), "num_heads": fields.whole(4, 1, fields.CHANNELS),
    "num_heads_upsample": _CHANNELS, "attention_resolutions": fields.text("16,8"), "dropout": fields.number(0.0, 0, 1),
    "class_cond": _OFF, "use_scale_shift_norm": _ON, "learn_sigma": _OFF,
    "diffusion_steps": fields.whole(1000, 1, fields.STEPS),
    "noise_schedule": fields.choice("linear", ("linear", "cosine")), "timestep_respacing": fields.text(""),
    "predict_xstart": _OFF, "use_ddim": _OFF, "clip_denoised": _ON}
FIELDS = {
    "improved-diffusion": SHARED | {"sigma_small": _OFF, "rescale_timesteps": _ON},
    "guided-diffusion": SHARED | {"num_head_channels": _CHANNELS, "channel_mult": fields.text(""),
                                  "resblock_updown": _OFF, "use_new_attention_order": _OFF, "rescale_timesteps": _OFF},
}
# The default channels of each level, by image_size.
MULTIPLIERS = {
    "improved-diffusion": {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)},
    "guided-diffusion": {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4),
                         512: (0.5, 1, 1, 2, 2, 4, 4)},
}
# Flags of their scripts that do not change the function the weights compute: losses, training, precision, files.
IGNORED = {
    "use_kl", "rescale_learned_sigmas", "use_checkpoint", "use_fp16", "fp16_scale_growth", "batch_size", "num_samples",
    "model_path", "data_dir", "schedule_sampler", "lr", "weight_decay", "lr_anneal_steps", "microbatch", "ema_rate",
    "log_interval", "save_interval", "resume_checkpoint"}
UNSUPPORTED = {"large_size": "super-resolution", "small_size": "super-resolution", "base_samples": "super-resolution",
               "classifier": "guidance by a classifier"}
NUM_CLASSES = 1000  # of a model with class_cond, for any data
YES, NO = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


# ---- settings ------------------------------------------------------------------------------------------------------

def read_settings(flags: dict[str, Any], where: str, *, codebase: str) -> dict[str, Any]:
    """Their flags -> our config sections "network", "data", "process", "sample", and "prediction", "learned_range".

    flags: {"image_size": "64", ...}, strings as on the command line or values; missing flags have the defaults of
    `codebase`, "improved-diffusion" or "guided-diffusion". The flags of training and of files are allowed and change
    nothing. Raises CheckpointError for a flag that the codebase does not have, or that ours does not support.
    """
    def unsupported(key: str, why: str) -> CheckpointError:
        return CheckpointError(f"{where}: {key} = {f[key]!r} is not supported{why}")

    if codebase not in FIELDS:
        raise CheckpointError(f"{where}: the codebase is {' or '.join(FIELDS)}, not {codebase!r}: their flags have "
                              "different defaults.")
    f = parse(flags, codebase, where)
    size, multipliers = f["image_size"], channel_multipliers(f, codebase, where)
    if multipliers[0] != 1:
        raise CheckpointError(
            f"{where}: channel_mult begins with {multipliers[0]} (the default for image_size = 512 does), so that the "
            "first convolution is narrower or wider than the time embedding; our U-Net has one size for both.")
    factors = {size // res for res in integers(f["attention_resolutions"], "attention_resolutions", where)}
    head_channels = max(f.get("num_head_channels", -1), 0)
    if f["num_heads_upsample"] not in (-1, f["num_heads"]) and not head_channels:
        raise unsupported("num_heads_upsample", f": our U-Net has num_heads = {f['num_heads']} on both paths. Use -1.")
    resample = ("resblock",) if f.get("resblock_updown") else ("conv",)
    network = dict(
        name="unet", channels=f["num_channels"], multipliers=multipliers, blocks=f["num_res_blocks"],
        attention_resolutions=tuple(size >> i for i in range(len(multipliers)) if 2**i in factors),
        heads=1 if head_channels else f["num_heads"], head_channels=head_channels, groups=32, norm_epsilon=1e-5,
        activation="swish", dropout=f["dropout"], scale_shift=f["use_scale_shift_norm"], downsample=resample,
        upsample=resample, pad_around=True, middle="attention", embedding="positional", freq_shift=0.0, cos_first=True,
        num_classes=NUM_CLASSES if f["class_cond"] else 0)
    return {"network": network, "data": dict(size=size, channels=3), "learned_range": f["learn_sigma"],
            "process": noise_process(f) | dict(rescale_times=f["rescale_timesteps"]),
            "prediction": "x0" if f["predict_xstart"] else "eps", "sample": sampler(f, where)}


def parse(flags: dict[str, Any], codebase: str, where: str) -> dict[str, Any]:
    """All flags with the types of their defaults. Raises CheckpointError that names a wrong flag or value."""
    known = FIELDS[codebase]
    for key in flags.keys() - known.keys() - IGNORED:
        for start, what in UNSUPPORTED.items():
            if key.startswith(start):
                raise CheckpointError(f"{where}: the flag {fields.named(key)} is not supported, since {what} is not.")
        match = difflib.get_close_matches(key, [*known, *IGNORED], n=1, cutoff=0.5)
        other = next((name for name, table in FIELDS.items() if key in table), None)
        hint = f" It is one of {other}." if other else f" Did you mean {match[0]}?" if match else ""
        raise CheckpointError(f"{where}: {codebase} has no flag {fields.named(key)}.{hint} The flags that define "
                              f"a model are: {', '.join(known)}.")
    return {key: typed(flags.get(key, field.default), field, key, where) for key, field in known.items()}


def typed(value: Any, field: fields.Field, key: str, where: str) -> Any:
    """A flag's value, given as text of the command line or as a value."""
    kind = type(field.default)
    try:
        if kind is bool and (text := str(value).lower()) in YES + NO:
            value = text in YES
        elif kind in (int, float) and isinstance(value, str):
            value = kind(value)
        elif kind is str and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
    except ValueError:
        pass
    return fields.read_one(value, field, f"{where}: {key}")


def integers(text: str, key: str, where: str) -> tuple[int, ...]:
    """ "16,8" -> (16, 8)."""
    if not re.fullmatch(r"\s*[1-9]\d{0,5}\s*(,\s*[1-9]\d{0,5}\s*)*", text) or text.count(",") >= fields.LEVELS:
        raise CheckpointError(f"{where}: {key} = {shown(text)} is not a list of 1 to {fields.LEVELS} whole "
                              "numbers such as '16,8'.")
    return tuple(int(part) for part in text.split(","))


def channel_multipliers(f: dict[str, Any], codebase: str, where: str) -> tuple[float, ...]:
    if f.get("channel_mult"):
        return integers(f["channel_mult"], "channel_mult", where)
    table = MULTIPLIERS[codebase]
    if f["image_size"] not in table:
        raise CheckpointError(f"{where}: {codebase} has no model for image_size = {f['image_size']}"
                              + (" without the flag channel_mult" if "channel_mult" in f else "")
                              + f". It can be one of: {', '.join(map(str, table))}.")
    return table[f["image_size"]]


def noise_process(f: dict[str, Any]) -> dict[str, Any]:
    """Our process section. Their linear schedule has Ho et al.'s continuous limit: its betas are scaled by 1000/T."""
    steps = f["diffusion_steps"]
    if f["noise_schedule"] == "linear":
        return dict(name="linear", steps=steps, beta_start=1000 / steps * 0.0001, beta_end=1000 / steps * 0.02)
    return dict(name="cosine", steps=steps, offset=0.008, max_beta=0.999)


def sampler(f: dict[str, Any], where: str) -> dict[str, Any]:
    """Our sampler: timestep_respacing "" is all T steps, "N" is N evenly spaced ones, "ddimN" every (T/N)-th."""
    text, total = f["timestep_respacing"], f["diffusion_steps"]
    if not (match := re.fullmatch(r"(ddim)?([1-9]\d{0,5})|", text)):
        raise CheckpointError(f"{where}: timestep_respacing = {shown(text)} is not supported. It can be "
                              "empty, a number of steps, or ddimN with a number N; not a list of sections.")
    steps = int(match[2] or total)
    if steps > total or (steps == 1 < total):
        raise CheckpointError(f"{where}: timestep_respacing = {text!r}: the model has {total} steps (diffusion_steps), "
                              "and a chain takes from 2 to all of them.")
    if match[1] and total % steps:
        raise CheckpointError(f"{where}: timestep_respacing = {text!r} is not supported: the number must divide "
                              f"diffusion_steps = {total}.")
    variance = "learned_range" if f["learn_sigma"] else "small" if f.get("sigma_small") else "large"
    return dict(solver="ddim" if f["use_ddim"] else "ancestral", variance=variance, steps=steps,
                spacing="leading" if match[1] else "linspace", offset=0, constant_stride=False, end=0,
                clip=f["clip_denoised"], clip_range=1.0, dynamic_threshold=0.0, rederive_eps=True)


# ---- weights -------------------------------------------------------------------------------------------------------

TOP = {"emb1": "time_embed.0", "emb2": "time_embed.2", "labels": "label_emb", "conv_in": "input_blocks.0.0",
       "norm_out": "out.0", "conv_out": "out.2"}
MIDDLE = {"middle_block0": "middle_block.0.", "middle_attention": "middle_block.1.", "middle_block1": "middle_block.2."}
LAYERS = {"norm1": "in_layers.0", "conv1": "in_layers.2", "emb": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "shortcut": "skip_connection", "norm": "norm", "q": "qkv", "k": "qkv", "v": "qkv",
          "out": "proj_out"}


def read_params(abstract: dict, state: dict[str, np.ndarray], where: str, *, settings: dict[str, Any]) -> dict:
    """The state dict of a UNetModel -> the parameters of our U-Net, of the shapes of `abstract` (under "params").

    settings: the flags; the attention flags set the order of the rows of its weights. Raises CheckpointError if names
    or shapes do not fit.
    """
    known = FIELDS["guided-diffusion"]
    heads, head_channels, split_first = (
        typed(settings.get(key, known[key].default), known[key], key, where)
        for key in ("num_heads", "num_head_channels", "use_new_attention_order"))
    prefix = prefixes(abstract)

    def locate(path: tuple[str, ...]) -> Slot:
        module, *layer, leaf = path
        suffix = "bias" if leaf == "bias" else "weight"
        if module in TOP:
            return Slot(f"{TOP[module]}.{suffix}", reader(path))
        if module.endswith("sample") and layer == ["conv"]:
            return Slot(f"{prefix(module)}{'op' if module.startswith('down') else 'conv'}.{suffix}", reader(path))
        name = f"{prefix(module)}{LAYERS[layer[0]]}.{suffix}"
        if layer[0] not in ("q", "k", "v"):
            return Slot(name, reader(path))

        def read(weight: np.ndarray) -> np.ndarray:
            """Rows in the order (q, k, v), head, channel if `split_first`, else head, (q, k, v), channel."""
            channels = weight.shape[0] // 3
            count = channels // head_channels if head_channels > 0 else heads
            rows = weight.reshape(*((3, count) if split_first else (count, 3)), -1, *weight.shape[1:])
            part = np.take(rows, "qkv".index(layer[0]), axis=0 if split_first else 1)
            return reader(path)(part.reshape(channels, *weight.shape[1:]))

        return Slot(name, read)

    return matching.fill(abstract, state, locate, where)


def reader(path: tuple[str, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """The conversion to the layout of our leaf, by its name."""
    if path[-1] != "kernel":
        return matching.vector
    return matching.conv if "conv" in path[-2] else matching.dense


def prefixes(abstract: dict) -> Callable[[str], str]:
    """"down0_block1" -> "input_blocks.2.0.", by the order of their lists of blocks."""
    levels = count_levels(abstract)
    blocks = sum(re.fullmatch(r"down0_block\d+", name) is not None for name in abstract)

    def prefix(module: str) -> str:
        if module in MIDDLE:
            return MIDDLE[module]
        way, level, kind, block = re.fullmatch(r"(down|up)(\d+)_([a-z]+)(\d*)", module).groups()
        level = int(level)
        if kind == "downsample":
            return f"input_blocks.{(level + 1) * (blocks + 1)}.0."
        if kind == "upsample":  # in the level's last block, behind its attention if it has one
            place = 1 + (f"up{level}_attention{blocks}" in abstract)
            return f"output_blocks.{(levels - level) * (blocks + 1) - 1}.{place}."
        place = int(kind == "attention")
        if way == "down":
            return f"input_blocks.{1 + level * (blocks + 1) + int(block)}.{place}."
        return f"output_blocks.{(levels - 1 - level) * (blocks + 1) + int(block)}.{place}."

    return prefix
