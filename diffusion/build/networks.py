"""The network of config.network."""
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion.build.rules import choose, need
from diffusion.networks import dit, unet
from diffusion.networks.layers import ACTIVATIONS, REMATS

NETWORKS = {"unet": unet.UNet, "dit": dit.DiT}
SHARDING = {"unet": unet.SHARDING, "dit": dit.SHARDING}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
RESAMPLERS = {"conv", "resblock"}
MIDDLES = {"attention", "plain", "none"}
EMBEDDINGS = {"positional", "fourier", "learned"}


def network(c: ConfigDict, size: int, out_channels: int):
    """For images of `size` pixels. Raises ConfigError for one that cannot be."""
    make = choose(NETWORKS, "network.name", c.name)
    kwargs = {key: value for key, value in c.items() if key in make.__dataclass_fields__ and key != "name"}
    need(c.channels >= 2, "network.channels", c.channels, "must be at least 2: embeddings are half sines and half "
         "cosines.")
    need(c.num_classes >= 0, "network.num_classes", c.num_classes, "is 0 (unconditional) or the number of labels.")
    need(0 <= c.label_dropout < 1, "network.label_dropout", c.label_dropout, "is a probability below 1 (Ho & Salimans "
         "2022: 0.1).")
    need(c.num_classes > 0 or not c.label_dropout, "network.label_dropout", c.label_dropout, "hides labels, and the "
         "network has none: set network.num_classes.")
    choose(REMATS, "network.remat", c.remat)
    {"unet": check_unet, "dit": check_dit}[c.name](c, size)
    return make(**kwargs | {"num_classes": c.num_classes + (c.label_dropout > 0), "out_channels": out_channels,
                            "dtype": choose(DTYPES, "network.dtype", c.dtype)})


def check_dit(c: ConfigDict, size: int) -> None:
    need(c.channels % 4 == 0, "network.channels", c.channels, "must be a multiple of 4: a position is sines and "
         "cosines of its row and column.")
    need(c.depth >= 1, "network.depth", c.depth, "must be 1 or more.")
    need(c.heads >= 1 and c.channels % c.heads == 0, "network.heads", c.heads,
         f"must divide network.channels = {c.channels}.")
    need(c.patch >= 1 and size % c.patch == 0, "network.patch", c.patch,
         f"must divide the {size} pixels of an image's side (config.data.size).")
    need(c.dropout == 0, "network.dropout", c.dropout, "must be 0: DiT has none.")
    need(c.mlp_ratio > 0, "network.mlp_ratio", c.mlp_ratio, "must be positive (Peebles & Xie 2023: 4).")


def check_unet(c: ConfigDict, size: int) -> None:
    need(c.blocks >= 1, "network.blocks", c.blocks, "each level needs at least one residual block.")
    need(0 <= c.dropout < 1, "network.dropout", c.dropout, "is a probability below 1.")
    need(c.norm_epsilon > 0, "network.norm_epsilon", c.norm_epsilon, "must be positive (Ho et al. 2020: 1e-6).")
    need(c.middle_divisor > 0, "network.middle_divisor", c.middle_divisor, "must be positive; 1 changes nothing.")
    need(c.embedding_channels >= 0, "network.embedding_channels", c.embedding_channels, "must not be negative.")
    need(c.embedding_rows >= 0 and (c.embedding_rows > 0) == (c.embedding == "learned"), "network.embedding_rows",
         c.embedding_rows, "is the number of times of network.embedding = 'learned', and 0 for the others.")
    need(c.freq_shift < c.channels // 2, "network.freq_shift", c.freq_shift, "must be below half of network.channels.")
    choose(ACTIVATIONS, "network.activation", c.activation)
    choose(EMBEDDINGS, "network.embedding", c.embedding)
    choose(MIDDLES, "network.middle", c.middle)
    need(len(c.multipliers) >= 1, "network.multipliers", c.multipliers, "needs a number for each level, at least one.")
    levels = len(c.multipliers)
    widths = [round(c.channels * m) for m in c.multipliers]
    need(all(abs(w - c.channels * m) < 1e-6 * w for w, m in zip(widths, c.multipliers)), "network.multipliers",
         c.multipliers, f"times network.channels = {c.channels} must be whole numbers.")
    for key in ("downsample", "upsample"):
        need(len(c[key]) in (1, levels), f"network.{key}", c[key],
             f"needs one kind, or one for each of {levels} levels.")
        for kind in c[key]:
            choose(RESAMPLERS, f"network.{key}", kind)
    need(size % 2**(levels - 1) == 0, "network.multipliers", c.multipliers,
         f"{levels} levels halve the image {levels - 1} times, which {size} pixels (config.data.size) do not "
         "allow. Use fewer levels or another size.")

    heights = [size // 2**i for i in range(levels)]
    attended = set()
    for key in ("attention_resolutions", "up_attention_resolutions"):
        need(set(c[key] or ()) <= set(heights), f"network.{key}", c[key],
             f"no level has feature maps of that height; they are {heights}.")
        attended |= {w for w, height in zip(widths, heights) if height in (c[key] or ())}
    attended |= {widths[-1]} if c.middle == "attention" else set()
    need(c.groups >= 1 and all(w % c.groups == 0 for w in widths), "network.groups", c.groups,
         f"must divide the channels of all levels, {widths}.")
    need(c.heads >= 1 and all(w % c.heads == 0 for w in attended), "network.heads", c.heads,
         f"must divide the channels of all levels with attention, {sorted(attended)}.")
    need(0 <= c.head_channels <= min(attended, default=c.head_channels), "network.head_channels", c.head_channels,
         f"must be 0 or at most the channels of any level with attention, {sorted(attended)}.")
    need(c.middle_groups is None or (c.middle_groups >= 0 and widths[-1] % (c.middle_groups or 1) == 0),
         "network.middle_groups", c.middle_groups, f"must divide the {widths[-1]} channels of the middle, or be 0.")
