"""Reads DiT (facebookresearch/DiT), SiT (willisma/SiT) and JiT (LTH14/JiT) from their authors' state dicts.

Settings are the flags of their programs, such as --model DiT-XL/2 --image-size 256, or the arguments of their classes
for other sizes. A state dict tells its sizes by names and shapes (`recognised`); DiT's and SiT's are the same.
"""
import math
import re
from typing import Any

import numpy as np

from diffusion.errors import CheckpointError
from diffusion.interop import fields, matching
from diffusion.interop.matching import Slot

# hidden_size, depth, num_heads, and of JiT bottleneck_dim and in_context_start
LATENT_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
JIT_SIZES = {"B": (768, 12, 12, 128, 4), "L": (1024, 24, 16, 128, 8), "H": (1280, 32, 16, 256, 10),
             "G": (1664, 40, 16, 256, 10)}
MODELS = {
    **{f"{kind}-{size}/{patch}": dict(zip(("hidden_size", "depth", "num_heads"), sizes), patch_size=patch)
       for kind in ("DiT", "SiT") for size, sizes in LATENT_SIZES.items() for patch in (2, 4, 8)},
    **{f"JiT-{size}/{patch}": dict(zip(("hidden_size", "depth", "num_heads", "bottleneck_dim", "in_context_start"),
                                       sizes), patch_size=patch, in_context_len=32)
       for size, sizes in JIT_SIZES.items() for patch in (16, 32, 64)}}
DEFAULTS = {"DiT": "DiT-XL/2", "SiT": "SiT-XL/2", "JiT": "JiT-B/16"}
SCALE = 0.18215  # of Stable Diffusion's latents, in the authors' code
_COUNT = fields.whole(None, 1, fields.CHANNELS)
SIZES = {"hidden_size": _COUNT, "depth": fields.whole(None, 1, 1000), "num_heads": _COUNT,
         "patch_size": fields.whole(None, 1, fields.SIDE), "mlp_ratio": fields.number(4.0, 0.01, 100)}
LATENT = SIZES | {
    "image_size": fields.whole(256, 8, fields.SIDE), "num_classes": fields.whole(1000, 1, fields.LABELS),
    "in_channels": fields.whole(4, 1, fields.CHANNELS), "cfg_scale": fields.number(1.0, 0)}
FIELDS = {
    "DiT": LATENT | {"num_sampling_steps": fields.whole(250, 2, 1000)},
    "SiT": LATENT | {"path_type": fields.only("Linear", "the process flow"),
                     "prediction": fields.only("velocity", "as the published weights")},
    "JiT": SIZES | {
        "img_size": fields.whole(256, 1, fields.SIDE), "class_num": fields.whole(1000, 1, fields.LABELS),
        "in_channels": fields.whole(3, 1, fields.CHANNELS), "bottleneck_dim": _COUNT,
        "in_context_len": fields.whole(None, 0, fields.CHANNELS), "in_context_start": fields.whole(None, 0, 1000),
        "noise_scale": fields.number(1.0, 1e-3, 1e3), "t_eps": fields.number(0.05, 0, 0.99),
        "sampling_method": fields.choice("heun", ("heun", "euler")), "cfg": fields.number(1.0, 0),
        "num_sampling_steps": fields.whole(50, 2, fields.STEPS), "interval_min": fields.number(0.0, 0, 1),
        "interval_max": fields.number(1.0, 0, 1)}}
# Flags of their programs that do not change the function that the weights compute, or the chain.
IGNORED = {"ckpt", "vae", "seed", "global_seed", "mode", "data_path", "results_dir", "epochs", "global_batch_size",
           "resume", "output_dir", "batch_size", "blr", "lr", "P_mean", "P_std", "proj_dropout", "attn_dropout",
           "gen_bsz", "num_images", "label_drop_prob", "ema_decay1", "ema_decay2", "warmup_epochs", "num_workers"}


# ---- settings ------------------------------------------------------------------------------------------------------

def read_settings(settings: dict[str, Any], where: str, *, kind: str) -> dict[str, Any]:
    """Flags -> our config sections "network", "data", "process" and "sample", "prediction" and "learned_range".

    settings: {"model": "JiT-L/32", "img_size": 512, "noise_scale": 2.0, ...}; sizes of no published model as the
    arguments of their class, such as hidden_size. kind: DiT, SiT or JiT. Latents are arrays in the autoencoder's units.
    Raises CheckpointError for an unknown model or flag, or a value that is not supported.
    """
    s = parse(settings, where, kind)
    network = dict(name="jit" if kind == "JiT" else "dit", channels=s["hidden_size"], depth=s["depth"],
                   heads=s["num_heads"], patch=s["patch_size"], mlp_ratio=s["mlp_ratio"], label_dropout=0.1)
    scale = s["cfg"] if kind == "JiT" else s["cfg_scale"]
    guidance = {} if scale == 1 else {"guidance": dict(name="classifier_free", scale=scale)}
    if kind == "JiT":
        low, high = (s["noise_scale"] * (1 - t) / t if t else math.inf for t in (s["interval_max"], s["interval_min"]))
        if guidance:
            guidance["guidance"] |= dict(interval_low=low, interval_high=high * (1 - 1e-3))  # their bounds are left out
        return {"network": network | dict(num_classes=s["class_num"], bottleneck=s["bottleneck_dim"], class_tokens=s[
                    "in_context_len"], class_tokens_from=s["in_context_start"]),
                "data": dict(kind="image", size=s["img_size"], channels=s["in_channels"]), "prediction": "x0",
                "process": dict(name="flow", noise_scale=s["noise_scale"], network_time="data", t_min=1e-5),
                "sample": dict(solver=s["sampling_method"], spacing="uniform", steps=s["num_sampling_steps"],
                               clip=False, least_noise=s["t_eps"], **guidance)}
    side = s["image_size"] // 8
    found = {"network": network | dict(num_classes=s["num_classes"], unread_outputs=kind == "SiT"),
             "data": dict(kind="array", name="file", shape=(side, side, s["in_channels"]), mean=(0.0,),
                          deviation=(1 / SCALE,))}
    if kind == "SiT":
        return found | {"process": dict(name="flow", network_time="data", t_min=1e-5), "prediction": "velocity",
                        "sample": dict(solver="heun", spacing="uniform", steps=125, **guidance)}
    sample = dict(solver="ancestral", variance="learned_range", steps=s["num_sampling_steps"], spacing="linspace")
    return found | {"process": dict(name="linear", steps=1000, beta_start=1e-4, beta_end=0.02), "prediction": "eps",
                    "learned_range": True, "sample": sample | guidance}


def parse(settings: dict[str, Any], where: str, kind: str) -> dict[str, Any]:
    """All settings. Raises CheckpointError that names a wrong flag, value or model."""
    given = {key.replace("-", "_"): value for key, value in settings.items()}
    name = given.pop("model", DEFAULTS[kind])
    models = [model for model in MODELS if model.startswith(kind)]
    if name not in models:
        raise CheckpointError(f"{where}: model = {fields.named(name)} is not a {kind}. It can be one of: "
                              f"{', '.join(models)}; give other sizes by hidden_size, depth, num_heads and patch_size.")
    if unknown := sorted(given.keys() - FIELDS[kind].keys() - IGNORED):
        raise CheckpointError(f"{where}: {kind} has no setting {fields.named(', '.join(unknown))}. It has: model, "
                              f"{', '.join(FIELDS[kind])}.")
    return fields.read_fields(MODELS[name] | {key: value for key, value in given.items() if key in FIELDS[kind]},
                              FIELDS[kind], where)


# ---- weights -------------------------------------------------------------------------------------------------------

def recognised(state: dict[str, np.ndarray], where: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """(kinds, settings) of a state dict: ("JiT",) or ("DiT", "SiT"), whose names and shapes are the same, and the
    settings that the shapes tell. Raises CheckpointError if it is none of them."""
    state = unwrapped(state)
    jit = "x_embedder.proj1.weight" in state
    first = state.get("x_embedder.proj1.weight" if jit else "x_embedder.proj.weight", np.zeros(()))
    last, labels = state.get("final_layer.linear.weight", np.zeros(())), state.get("y_embedder.embedding_table.weight")
    if first.ndim != 4 or last.ndim != 2 or labels is None or labels.ndim != 2:
        names = "x_embedder.proj.weight (DiT, SiT) or x_embedder.proj1.weight (JiT), final_layer.linear.weight and " \
                "y_embedder.embedding_table.weight"
        raise CheckpointError(f"{where} is not a state dict of DiT, SiT or JiT, which have {names}. Its first names: "
                              f"{matching.listed(sorted(state))}.")
    found = {"hidden_size": last.shape[1], "patch_size": first.shape[2], "in_channels": first.shape[1],
             "depth": len({m[1] for name in state if (m := re.match(r"blocks\.(\d+)\.", name))})}
    heads = {sizes[:2]: sizes[2] for sizes in (*LATENT_SIZES.values(), *JIT_SIZES.values())}
    found["num_heads"] = heads.get((found["hidden_size"], found["depth"]))
    if jit:
        tokens, width = state.get("in_context_posemb"), state.get("blocks.0.attn.q_norm.weight", np.zeros(0)).size
        start = {sizes[:2]: sizes[4] for sizes in JIT_SIZES.values()}.get((found["hidden_size"], found["depth"]))
        found |= {"class_num": len(labels) - 1, "bottleneck_dim": first.shape[0], "in_context_len": 0 if tokens is None
                  else tokens.shape[1], "in_context_start": 0 if tokens is None else start}
        found["num_heads"] = found["hidden_size"] // width if width else None
    else:
        found["num_classes"] = len(labels) - 1
    if "pos_embed" in state and state["pos_embed"].ndim == 3:
        side = math.isqrt(state["pos_embed"].shape[1]) * found["patch_size"]
        found |= {"img_size": side} if jit else {"image_size": 8 * side}
    return ("JiT",) if jit else ("DiT", "SiT"), {key: value for key, value in found.items() if value is not None}


def read_params(abstract: dict, state: dict[str, np.ndarray], where: str, *, settings: dict[str, Any],
                kind: str) -> dict:
    """The state dict of `kind` -> the parameters of our DiT or JiT, of the shapes of `abstract` (under "params").

    SiT's last layer changes its sign: its velocity points to the data, ours to the noise. Raises CheckpointError for
    weights of another network or size, which names what they are, and for names or shapes that do not fit.
    """
    s, state = parse(settings, where, kind), unwrapped(state)
    kinds, sizes = recognised(state, where)
    named = [name for name, of in MODELS.items() if name[:3] in kinds and all(
        of[key] == sizes[key] for key in ("hidden_size", "depth", "patch_size"))]
    if kind not in kinds:
        raise CheckpointError(f"{where} has the weights of {' or '.join(named or kinds)}, but its layout is said to be "
                              f"{kind}: use layout={' or '.join(kinds)}.")
    if wrong := [key for key, value in sizes.items() if s[key] != value]:
        raise CheckpointError(f"{where} has the weights of {' or '.join(named) or 'no published size'}, and not of "
                              f"these settings: {', '.join(f'{key} is {sizes[key]}, not {s[key]}' for key in wrong)}.")
    if (places := state.pop("pos_embed", None)) is not None:
        side = math.isqrt(places.shape[1])
        if places.shape[1] != side**2 or not np.allclose(places, fixed_positions(places.shape[2], side), atol=1e-4):
            raise CheckpointError(f"{where}: pos_embed is not the table of sines and cosines that our network has: it "
                                  "was trained.")
    return matching.fill(abstract, state, lambda path: slot(path, kind), where)


def unwrapped(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict of the network, of the Denoiser around JiT's (net.) or DDP's (module.)."""
    for prefix in ("module.", "net."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


TOP = {"time1": "t_embedder.mlp.0", "time2": "t_embedder.mlp.2", "pixels": "final_layer.linear",
       "modulation": "final_layer.adaLN_modulation.1", "norm_out": "final_layer.norm_final",
       "bottleneck": "x_embedder.proj1", "patches": "x_embedder.proj"}
LAYERS = {"modulation": "adaLN_modulation.1", "out": "attn.proj", "q_norm": "attn.q_norm", "k_norm": "attn.k_norm",
          "norm1": "norm1", "norm2": "norm2", "mlp1": "mlp.fc1", "mlp2": "mlp.fc2"}
# Those of JiT that have other names, and layers of which several are stacked in one.
OF_JIT = {"patches": "x_embedder.proj2", "mlp2": "mlp.w3"}
STACKED = {"q": ("attn.qkv", 0, 3), "k": ("attn.qkv", 1, 3), "v": ("attn.qkv", 2, 3)}
STACKED_IN_JIT = STACKED | {"gate": ("mlp.w12", 0, 2), "mlp1": ("mlp.w12", 1, 2)}


def slot(path: tuple[str, ...], kind: str) -> Slot:
    """The place of one of our leaves, and its conversion."""
    if path == ("class_positions",):
        return Slot("in_context_posemb", lambda weight: weight[0])
    module, *layer, leaf = path
    jit, end = kind == "JiT", "bias" if leaf == "bias" else "weight"
    read = matching.dense if leaf == "kernel" else matching.vector
    if module == "labels":
        return Slot("y_embedder.embedding_table.weight", read)
    if (module == "bottleneck" or module == "patches" and not jit) and end == "weight":
        read = patches
    if module == "pixels" and kind == "SiT":
        return Slot(f"{TOP[module]}.{end}", lambda weight: -read(weight))
    of_jit = OF_JIT if jit else {}
    if not layer:
        return Slot(f"{(TOP | of_jit)[module]}.{end}", read)
    block, name, stacked = f"blocks.{module.removeprefix('block')}", layer[0], STACKED_IN_JIT if jit else STACKED
    if name not in stacked:
        return Slot(f"{block}.{(LAYERS | of_jit)[name]}.{end}", read)
    whole, index, parts = stacked[name]
    return Slot(f"{block}.{whole}.{end}", lambda weight: read(np.split(weight, parts)[index]))


def patches(weight: np.ndarray) -> np.ndarray:
    """A convolution [out, in, patch, patch] whose stride is its size -> [patch^2 in, out], by row, column, channel."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def fixed_positions(channels: int, side: int) -> np.ndarray:
    """[1, side^2, channels], the authors' table: sines and cosines of the column, then of the row."""
    angles = np.arange(side)[:, None] / 10_000.0 ** (np.arange(channels // 4) / (channels / 4))
    one = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return np.concatenate([np.tile(one, (side, 1)), np.repeat(one, side, axis=0)], axis=1)[None]
