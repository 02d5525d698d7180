"""The case of tests/golden/edm2.npz: what the program that makes it and the test that reads it must agree on."""
import flax.traverse_util
import numpy as np
from networks.random_params import random_params, unit

from diffusion.networks.edm2 import EDM2UNet

# Every option is another than the default. About one activation in ten is clipped.
NETWORK = EDM2UNet(channels=8, multipliers=(1, 2), blocks=2, attention_resolutions=(8,), head_channels=4,
                   noise_features=16, embedding_width=40, label_balance=0.6, concat_balance=0.4,
                   residual_balance=0.25, attention_balance=0.35, clip_activations=1.5, num_classes=5, out_channels=3)
IMAGE_SHAPE = (8, 8, 3)
SIGMAS = np.array([0.002, 0.3, 1.7, 80.0], np.float32)
LABELS = (4, 0, 1, 3)
SEED = 20231205
LOGVAR_CHANNELS = 128


def images() -> np.ndarray:
    return unit("images", (len(SIGMAS), *IMAGE_SHAPE), SEED)


def target() -> np.ndarray:
    """The loss of the gradients is the sum of the output times this."""
    return unit("target", (len(SIGMAS), *IMAGE_SHAPE), SEED)


def params() -> dict:
    return random_params(NETWORK, IMAGE_SHAPE, SEED)


def direction(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of the parameter at this path is stored as its product with this, and its norm."""
    return unit(f"direction/{path}", shape, SEED)


def their_name(path: str) -> str:
    """Our path of a parameter -> its name in NVlabs/edm2; of queries, keys and values the joint layer's."""
    *block, layer, kind = path.split("/")
    if not block:
        return {"conv_in": f"enc.{IMAGE_SHAPE[0]}x{IMAGE_SHAPE[0]}_conv.weight", "noise": "emb_noise.weight",
                "labels": "emb_label.weight", "fourier": "emb_fourier." + {"frequencies": "freqs"}.get(kind, kind),
                "conv_out": "out_gain" if kind == "gain" else "out_conv.weight"}[layer]
    where, part = block[0].split("_")
    level = len(NETWORK.multipliers) - 1 if where == "middle" else int(where[-1])
    side = IMAGE_SHAPE[0] >> level
    part = part.removesuffix("sample") if where != "middle" else part.replace("block", "in")
    name = {"conv1": "conv_res0", "conv2": "conv_res1", "shortcut": "conv_skip", "out": "attn_proj",
            "emb": "emb_linear"}.get(layer, "attn_qkv")
    leaf = "emb_gain" if kind == "gain" else f"{name}.weight"
    return f"{'enc' if where.startswith('down') else 'dec'}.{side}x{side}_{part}.{leaf}"


def in_their_form(tree: dict) -> dict[str, np.ndarray]:
    """Parameters, or others of their shapes, by NVlabs/edm2's names, in its shapes."""
    found, parts = {}, {}
    for path, x in flax.traverse_util.flatten_dict(tree, sep="/").items():
        x = np.asarray(x)
        if path.endswith("/kernel"):
            x = x.transpose(x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))
        name = their_name(path)
        if "attn_qkv" in name:  # [heads, channels of a head, queries | keys | values] in one axis
            parts.setdefault(name, {})[path.split("/")[-2]] = x
        elif name.endswith(("conv_skip.weight", "attn_proj.weight")):
            found[name] = x[:, :, None, None]
        else:
            found[name] = x
    for name, of in parts.items():
        found[name] = np.stack([of[part] for part in "qkv"], axis=1).reshape(-1, of["q"].shape[1], 1, 1)
    return found
