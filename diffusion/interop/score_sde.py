"""Reads Flax checkpoints of score_sde (Song et al. 2021): the DDPM architecture, models/ddpm.py with configs/vp/ddpm/;
of model.name = ncsnpp, NCSN++ and DDPM++ (`ncsnpp.py`).

DDPM's U-Net attends once a level on the way up, after the last block, while ours attends after each block. The layers
that it lacks are filled with zeros here, which makes them exact identities.
"""
import difflib
import os
import re
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import jax
import numpy as np

from diffusion.errors import CheckpointError, shown
from diffusion.interop import fields, matching, ncsnpp
from diffusion.interop.matching import Slot

# The settings that change the computation, with the values of configs/vp/ddpm/cifar10.py.
FIELDS = {
    "data.image_size": fields.whole(32, 1, fields.SIDE), "data.num_channels": fields.whole(3, 1, fields.CHANNELS),
    "model.nf": fields.whole(128, 1, fields.CHANNELS),
    "model.ch_mult": fields.several((1, 2, 2, 2), fields.whole(None, 1, fields.CHANNELS), fields.LEVELS),
    "model.num_res_blocks": fields.whole(2, 1, fields.BLOCKS),
    "model.attn_resolutions": fields.several((16,), fields.whole(None, 1, fields.SIDE), fields.LEVELS, 0),
    "model.dropout": fields.number(0.1, 0, 1), "model.num_scales": fields.whole(1000, 1, fields.STEPS),
    "model.beta_min": fields.number(0.1, 0), "model.beta_max": fields.number(20.0, 0),
}
# Settings with only one supported value, and the reason.
FIXED = {
    "model.name": ("ddpm", "besides ncsnpp, models/ncsnpp.py, only models/ddpm.py fits a network of ours"),
    "model.normalization": ("GroupNorm", "our U-Net only has group normalisation"),
    "model.nonlinearity": ("swish", "the embedding and the output of our U-Net have swish"),
    "model.resamp_with_conv": (True, "our U-Net resamples with a convolution"),
    "model.conditional": (True, "our U-Net takes the time"),
    "model.scale_by_sigma": (False, "our U-Net does not divide its output"),
    "data.centered": (True, "our processes noise data in [-1, 1], not in [0, 1]"),
    "training.sde": ("vpsde", "our process is the discrete variance-preserving one"),
    "training.continuous": (False, "our process has discrete times"),
    "sampling.method": ("pc", "the sampler is the ancestral one"),
    "sampling.predictor": ("ancestral_sampling", "the sampler is the ancestral one"),
    "sampling.corrector": ("none", "the sampler is the ancestral one"),
    "sampling.probability_flow": (False, "the sampler is the ancestral one"),
    "sampling.noise_removal": (True, "our samplers add no noise in the last step"),
}
# Settings, and sections of settings, that do not change the function the weights compute.
IGNORED = {"seed", "model.ema_rate", "model.sigma_min", "model.sigma_max", "model.embedding_type", "sampling.snr",
           "sampling.n_steps_each", "data.dataset", "data.random_flip", "data.uniform_dequantization", "data.category",
           "data.tfrecords_path"}
IGNORED_SECTIONS = ("training.", "eval.", "optim.")


# ---- settings ------------------------------------------------------------------------------------------------------

def read_settings(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Values of their config -> our sections "network", "data", "process", "sample", and "prediction", "learned_range".

    settings: {"model.nf": 128, ...} or nested, {"model": {"nf": 128}}; missing settings have the values of
    configs/vp/ddpm/cifar10.py. Raises CheckpointError that names an unknown or unsupported setting.
    """
    if is_ncsnpp(settings, where):
        return ncsnpp.read_settings(flatten(settings, ".", where), where)
    s = parse(settings, where)
    steps, size, multipliers = s["model.num_scales"], s["data.image_size"], s["model.ch_mult"]
    network = dict(
        name="unet", channels=s["model.nf"], multipliers=multipliers, blocks=s["model.num_res_blocks"],
        attention_resolutions=tuple(h for h in (size >> i for i in range(len(multipliers)))
                                    if h in s["model.attn_resolutions"]),
        heads=1, head_channels=0, groups=32, norm_epsilon=1e-6, activation="swish", dropout=s["model.dropout"],
        scale_shift=False, downsample=("conv",), upsample=("conv",), pad_around=False, middle="attention",
        embedding="positional", freq_shift=1.0, cos_first=False, num_classes=0)
    process = dict(name="linear", steps=steps, beta_start=s["model.beta_min"] / steps,
                   beta_end=s["model.beta_max"] / steps)
    sample = dict(solver="ancestral", variance="large", steps=steps, spacing="linspace", offset=0,
                  constant_stride=False, end=0, clip=False, dynamic_threshold=0.0)
    return {"network": network, "data": dict(size=size, channels=s["data.num_channels"]), "learned_range": False,
            "process": process, "prediction": "eps", "sample": sample}


def is_ncsnpp(settings: dict[str, Any], where: str) -> bool:
    return flatten(settings, ".", where).get("model.name") == "ncsnpp"


def parse(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """All settings of FIELDS. Raises CheckpointError that names an unknown setting or an unsupported value."""
    given = flatten(settings, ".", where)
    known = [*FIELDS, *FIXED]
    for key in given.keys() - known - IGNORED:
        if not key.startswith(IGNORED_SECTIONS):
            match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f" Did you mean {match[0]}?" if match else ""
            raise CheckpointError(f"{where}: the setting {fields.named(key)} is not known.{hint} The settings "
                                  f"that define a model are: {', '.join(known)}.")
    for key, (value, why) in FIXED.items():
        if (other := given.get(key, value)) != value:
            raise CheckpointError(f"{where}: {key} = {shown(other)} is not supported, only {value!r}: {why}.")
    return fields.read_fields(given, FIELDS, where)


def flatten(tree: dict[str, Any], separator: str, where: str) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}. Raises CheckpointError for names that are not strings and too deep nesting."""
    try:
        return flax.traverse_util.flatten_dict(tree, sep=separator)
    except (TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{where} has names that are not strings, or is nested too deep: {error}.") from error


# ---- weights -------------------------------------------------------------------------------------------------------

def read_checkpoint(path: str | os.PathLike, key: str | None = None) -> dict[str, np.ndarray]:
    """The averaged parameters of a training state written by flax, {"Conv_0/kernel": ...}. Runs no code of the file.

    key: "params_ema" or None, since no other entry is a whole network. Raises CheckpointError if the file is missing,
    truncated, or not such a state.
    """
    path = Path(path)
    if key not in (None, "params_ema"):
        raise CheckpointError(f"{path} has no set of weights {key!r} that can be read; it has params_ema.")
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise CheckpointError(f"{path} cannot be read ({getattr(error, 'strerror', error)}). Name the checkpoint_N "
                              "file of score_sde.") from error
    try:
        state = flax.serialization.msgpack_restore(data)
    except Exception as error:  # damaged bytes can make the reader raise anything
        raise CheckpointError(f"{path} is not a whole msgpack file, as flax writes: it is truncated, damaged or "
                              f"another file ({len(data)} bytes; {error or type(error).__name__}). Copy it again."
                              ) from error
    params = state.get("params_ema") if isinstance(state, dict) else None
    if not isinstance(params, dict) or not params:
        has = ", ".join(map(str, list(state)[:8])) if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path} is not a training state of score_sde: it has no params_ema, but "
                              f"{has or 'nothing'}.")
    flat = flatten(params, "/", f"params_ema of {path}")
    if wrong := [name for name, value in flat.items() if not isinstance(value, np.ndarray)]:
        raise CheckpointError(f"{path}: {len(wrong)} of {len(flat)} entries of params_ema are not arrays: "
                              f"{matching.listed(wrong)}.")
    return flat


TOP = {"emb1": "Dense_0", "emb2": "Dense_1", "conv_in": "Conv_0", "conv_out": "Conv_1", "norm_out": "GroupNorm_0"}
LAYERS = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "emb": "Dense_0", "norm2": "GroupNorm_1", "conv2": "Conv_1",
          "shortcut": "NIN_0", "norm": "GroupNorm_0", "q": "NIN_0", "k": "NIN_1", "v": "NIN_2", "out": "NIN_3",
          "conv": "Conv_0"}
NIN_LEAVES = {"kernel": "W", "bias": "b"}


def read_params(abstract: dict, state: dict[str, np.ndarray], where: str, *, settings: dict[str, Any]) -> dict:
    """The arrays of `read_checkpoint` -> the parameters of our U-Net, of the shapes of `abstract` (under "params").

    settings: as for `read_settings`. Raises CheckpointError if names or shapes do not fit.
    """
    if is_ncsnpp(settings, where):
        return ncsnpp.read_params(abstract, state, where, settings=flatten(settings, ".", where), layout=layout)
    names = TOP | modules(read_settings(settings, where))
    theirs = {module: leaves for module, leaves in abstract.items() if module in names}

    def locate(path: tuple[str, ...]) -> Slot:
        module, *layer, leaf = path
        if module in TOP:
            return Slot(f"{TOP[module]}/{leaf}", layout)
        inner = LAYERS[layer[0]]
        return Slot(f"{names[module]}/{inner}/{NIN_LEAVES[leaf] if inner.startswith('NIN') else leaf}", layout)

    zeros = {module: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), leaves)
             for module, leaves in abstract.items() if module not in names}
    return matching.fill(theirs, state, locate, where) | zeros


def layout(weight: np.ndarray) -> np.ndarray:
    """Our layout of a weight, which differs only for normalisations of flax before 0.3.6: [1, 1, 1, C] -> [C]."""
    return weight.reshape(-1) if weight.ndim == 4 and weight.shape[:3] == (1, 1, 1) else weight


def modules(sections: dict[str, Any]) -> dict[str, str]:
    """Our module -> theirs. Flax counts the modules of a class in the order of the calls."""
    network, size = sections["network"], sections["data"]["size"]
    levels, blocks = len(network["multipliers"]), network["blocks"]
    attends = [size >> level in network["attention_resolutions"] for level in range(levels)]
    ours = []
    for level in range(levels):
        for block in range(blocks):
            ours += [f"down{level}_block{block}"] + [f"down{level}_attention{block}"] * attends[level]
        ours += [f"down{level}_downsample"] * (level < levels - 1)
    ours += ["middle_block0", "middle_attention", "middle_block1"]
    for level in reversed(range(levels)):
        ours += [f"up{level}_block{block}" for block in range(blocks + 1)]
        ours += [f"up{level}_attention{blocks}"] * attends[level] + [f"up{level}_upsample"] * (level > 0)
    classes = {"block": "ResnetBlockDDPM", "attention": "AttnBlock", "downsample": "Downsample", "upsample": "Upsample"}
    counts, names = dict.fromkeys(classes, 0), {}
    for module in ours:
        kind = re.fullmatch(r"[a-z]+\d*_([a-z]+)\d*", module)[1]
        names[module] = f"{classes[kind]}_{counts[kind]}"
        counts[kind] += 1
    return names
