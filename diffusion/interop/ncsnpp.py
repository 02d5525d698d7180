"""Reads NCSN++ and DDPM++ of score_sde (Song et al. 2021), models/ncsnpp.py, in continuous time, as our SongUNet.

Their VE is for data in [0, 1], which the network centres: in [-1, 1] the noise is twice theirs. Its score h / sigma is
our prediction `edm_ve`; the networks of VP and sub-VP predict eps.
"""
import difflib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion.errors import CheckpointError, shown
from diffusion.interop import fields, matching
from diffusion.interop.matching import Slot

SDES = {"vesde": "ve", "vpsde": "vp", "subvpsde": "sub_vp"}
# The settings that change the computation, with the values of configs/ve/cifar10_ncsnpp_continuous.py.
_COUNT = fields.whole(None, 1, fields.CHANNELS)
FIELDS = {
    "training.sde": fields.choice("vesde", tuple(SDES)), "data.image_size": fields.whole(32, 1, fields.SIDE),
    "data.num_channels": fields.whole(3, 1, fields.CHANNELS), "model.nf": fields.whole(128, 1, fields.CHANNELS),
    "model.ch_mult": fields.several((1, 2, 2, 2), _COUNT, fields.LEVELS),
    "model.num_res_blocks": fields.whole(4, 1, fields.BLOCKS),
    "model.attn_resolutions": fields.several((16,), _COUNT, fields.LEVELS, 0),
    "model.dropout": fields.number(0.1, 0, 1), "model.fir": fields.flag(True),
    "model.fir_kernel": fields.several((1, 3, 3, 1), fields.whole(None, 0, 1000), 16, 2),
    "model.progressive": fields.choice("none", {"none": "standard", "output_skip": "skip"}),
    "model.progressive_input": fields.choice("residual", {"none": "standard", "input_skip": "skip",
                                                          "residual": "residual"}),
    "model.sigma_min": fields.number(0.01, 1e-9), "model.sigma_max": fields.number(50.0, 1e-6),
    "model.num_scales": fields.whole(1000, 1, fields.STEPS),
    "model.beta_min": fields.number(0.1, 0), "model.beta_max": fields.number(20.0, 0)}
# What the configs of VP and sub-VP, cifar10_ddpmpp_continuous.py, have instead.
OF_VP = {"model.fir": False, "model.progressive_input": "none"}
# Settings with one supported value, for VE and for the others, and the reason.
FIXED = {
    "model.name": ("ncsnpp", "ncsnpp", "this is the reader of NCSN++"),
    "training.continuous": (True, True, "our processes have continuous times"),
    "model.embedding_type": ("fourier", "positional", "the networks of VE take the noise level, the others the time"),
    "model.fourier_scale": (16, 16, "so do ours"),
    "model.scale_by_sigma": (True, False, "the networks of VE are divided by the noise level, the others not"),
    "data.centered": (False, True, "their configs have it so"),
    "model.conditional": (True, True, "our network takes the time"),
    "model.resblock_type": ("biggan", "biggan", "our blocks are BigGAN's"),
    "model.skip_rescale": (True, True, "our sums are divided by sqrt(2)"),
    "model.progressive_combine": ("sum", "sum", "our inputs are added"),
    "model.normalization": ("GroupNorm", "GroupNorm", "our network only has group normalisation"),
    "model.nonlinearity": ("swish", "swish", "our network has swish"),
    "model.attention_type": ("ddpm", "ddpm", "our attention is DDPM's"), "model.conv_size": (3, 3, "so are ours"),
    "model.resamp_with_conv": (True, True, "their configs have it so")}
# Settings, and sections of settings, that do not change the function the weights compute.
IGNORED = {"seed", "model.ema_rate", "model.init_scale", "data.dataset", "data.random_flip",
           "data.uniform_dequantization", "data.category", "data.tfrecords_path"}
IGNORED_SECTIONS = ("training.", "eval.", "optim.", "sampling.")


def read_settings(given: dict[str, Any], where: str) -> dict[str, Any]:
    """Values of their config, {"model.nf": 128, ...} -> our sections "network", "data", "process", "sample", and
    "prediction", "learned_range". Missing settings have the values of cifar10_ncsnpp_continuous.py for training.sde
    vesde, and else of cifar10_ddpmpp_continuous.py. Raises CheckpointError that names an unknown or unsupported
    setting."""
    s = parse(given, where)
    process = SDES[s["training.sde"]]
    size = s["data.image_size"]
    heights = [size >> level for level in range(len(s["model.ch_mult"]))]
    network = dict(
        name="song_unet", channels=s["model.nf"], multipliers=s["model.ch_mult"], blocks=s["model.num_res_blocks"],
        attention_resolutions=tuple(h for h in heights if h in s["model.attn_resolutions"]),
        resample_filter=s["model.fir_kernel"] if s["model.fir"] else (1, 1), encoder=s["model.progressive_input"],
        decoder=s["model.progressive"], dropout=s["model.dropout"], num_classes=0,
        noise_embedding="fourier" if process == "ve" else "positional", noise_multiplier=2 if process == "ve" else 1)
    if process == "ve":
        levels = dict(sigma_min=2 * s["model.sigma_min"], sigma_max=2 * s["model.sigma_max"])
        sample = dict(solver="reverse_diffusion", corrector="langevin", corrector_snr=0.16, corrector_steps=1)
    else:
        levels = dict(beta_min=s["model.beta_min"], beta_max=s["model.beta_max"])
        sample = dict(solver="euler_maruyama", corrector="none")
    return {"network": network, "data": dict(size=size, channels=s["data.num_channels"]), "learned_range": False,
            "process": dict(name=process, t_min=1e-5, **levels), "prediction": "edm_ve" if process == "ve" else "eps",
            "sample": sample | dict(spacing="uniform", steps=s["model.num_scales"], clip=False)}


def parse(given: dict[str, Any], where: str) -> dict[str, Any]:
    """All settings of FIELDS. Raises CheckpointError that names an unknown setting or an unsupported value."""
    known = [*FIELDS, *FIXED]
    for key in given.keys() - known - IGNORED:
        if not key.startswith(IGNORED_SECTIONS):
            match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            raise CheckpointError(f"{where}: the setting {fields.named(key)} is not known."
                                  f"{f' Did you mean {match[0]}?' if match else ''} The settings that define a model "
                                  f"are: {', '.join(known)}.")
    is_ve = given.get("training.sde", "vesde") == "vesde"
    for key, (of_ve, of_others, why) in FIXED.items():
        value = of_ve if is_ve else of_others
        if (other := given.get(key, value)) != value:
            raise CheckpointError(f"{where}: {key} = {shown(other)} is not supported, only {value!r} for training.sde "
                                  f"= {shown(given.get('training.sde', 'vesde'))}: {why}.")
    s = fields.read_fields(given if is_ve else OF_VP | given, FIELDS, where)
    if s["model.progressive_input"] == "residual" and not s["model.fir"]:
        raise CheckpointError(f"{where}: model.progressive_input = 'residual' without model.fir is not supported: its "
                              "inputs then shrink by strided convolutions, ours by a filter.")
    return s


TOP = {"emb1": "Dense_0", "emb2": "Dense_1", "conv_in": "Conv_0", "fourier": "GaussianFourierProjection_0"}
LAYERS = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "emb": "Dense_0", "norm2": "GroupNorm_1", "conv2": "Conv_1",
          "shortcut": "Conv_2", "norm": "GroupNorm_0", "q": "NIN_0", "k": "NIN_1", "v": "NIN_2", "out": "NIN_3"}
NIN_LEAVES = {"kernel": "W", "bias": "b"}


def read_params(abstract: dict, state: dict[str, np.ndarray], where: str, *, settings: dict[str, Any],
                layout: Callable[[np.ndarray], np.ndarray]) -> dict:
    """Arrays by their paths, {"Conv_0/kernel": ...} -> the parameters of our SongUNet, of the shapes of `abstract`.
    layout: of a weight that both have. Raises CheckpointError if names or shapes do not fit."""
    sections = read_settings(settings, where)
    names = TOP | modules(sections, abstract)

    def flat(weight: np.ndarray) -> np.ndarray:
        """A 1x1 convolution as a matrix."""
        return weight.reshape(weight.shape[-2:]) if weight.shape[:2] == (1, 1) and weight.ndim == 4 else weight

    def locate(path: tuple[str, ...]) -> Slot:
        module, *layer, leaf = path
        if leaf == "frequencies":
            return Slot(f"{names[module]}/W", matching.vector)
        if module.endswith("_input"):
            if sections["network"]["encoder"] == "skip":
                return Slot(f"{names[module]}/Conv_0/{leaf}", flat if leaf == "kernel" else layout)
            return Slot(f"{names[module]}/Conv2d_0/{'weight' if leaf == 'kernel' else leaf}", layout)
        if not layer:
            return Slot(f"{names[module]}/{leaf}", layout)
        inner = LAYERS[layer[0]]
        read = flat if layer[0] == "shortcut" and leaf == "kernel" else layout
        return Slot(f"{names[module]}/{inner}/{NIN_LEAVES[leaf] if inner.startswith('NIN') else leaf}", read)

    return matching.fill(abstract, state, locate, where)


def modules(sections: dict[str, Any], abstract: dict) -> dict[str, str]:
    """Our module -> theirs. Flax counts the modules of a class in the order of the calls."""
    levels, blocks = len(sections["network"]["multipliers"]), sections["network"]["blocks"]
    ours = []
    for level in range(levels):
        for block in range(blocks):
            ours += [f"down{level}_block{block}", f"down{level}_attention{block}"]
        ours += [f"down{level}_downsample", f"down{level}_input"]
    ours += ["middle_block0", "middle_attention", "middle_block1"]
    for level in reversed(range(levels)):
        ours += [f"up{level}_block{block}" for block in range(blocks + 1)]
        ours += [f"up{level}_attention{blocks}", f"norm_out{level or ''}", f"conv_out{level or ''}",
                 f"up{level}_upsample"]
    resblock = "ResnetBlockBigGANpp"
    classes = {"block": resblock, "downsample": resblock, "upsample": resblock, "attention": "AttnBlockpp",
               "input": "Combine" if sections["network"]["encoder"] == "skip" else "Downsample",
               "norm_out": "GroupNorm", "conv_out": "Conv"}
    counts, names = {"Conv": 1}, {}
    for module in ours:
        if module in abstract:
            kind = classes[re.sub(r"^(down|up|middle)\d*_|\d+$", "", module)]
            names[module] = f"{kind}_{counts.get(kind, 0)}"
            counts[kind] = counts.get(kind, 0) + 1
    return names
