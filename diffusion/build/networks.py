"""The network of config.network."""
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion.build.rules import choose, need
from diffusion.networks import unet
from diffusion.networks.layers import ACTIVATIONS, REMATS

NETWORKS = {"unet": unet.UNet}
SHARDING = {"unet": unet.SHARDING}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
RESAMPLERS = {"conv", "resblock"}
MIDDLES = {"attention", "plain", "none"}
EMBEDDINGS = {"positional", "fourier"}


def network(c: ConfigDict, size: int, out_channels: int):
    """For images of `size` pixels. Raises ConfigError for one that cannot be."""
    kwargs = c.to_dict()
    label_dropout = kwargs.pop("label_dropout")
    make = choose(NETWORKS, "network.name", kwargs.pop("name"))
    dtype = choose(DTYPES, "network.dtype", kwargs.pop("dtype"))
    need(c.channels >= 4 and c.channels % 2 == 0, "network.channels", c.channels,
         "must be even and at least 4: the time embedding is that many sines and cosines.")
    need(len(c.multipliers) >= 1 and min(c.multipliers) > 0, "network.multipliers", c.multipliers,
         "needs one positive number for each level.")
    need(c.blocks >= 1, "network.blocks", c.blocks, "each level needs at least one residual block.")
    need(0 <= c.dropout < 1, "network.dropout", c.dropout, "is a probability below 1.")
    need(c.num_classes >= 0, "network.num_classes", c.num_classes, "is 0 (unconditional) or the number of labels.")
    need(0 <= label_dropout < 1, "network.label_dropout", label_dropout, "is a probability below 1 (Ho & Salimans "
         "2022: 0.1).")
    need(c.num_classes > 0 or not label_dropout, "network.label_dropout", label_dropout, "hides labels, and the "
         "network has none: set network.num_classes.")
    kwargs["num_classes"] += label_dropout > 0
    need(c.norm_epsilon > 0, "network.norm_epsilon", c.norm_epsilon, "must be positive (Ho et al. 2020: 1e-6).")
    need(c.middle_divisor > 0, "network.middle_divisor", c.middle_divisor, "must be positive; 1 changes nothing.")
    need(c.embedding_channels >= 0, "network.embedding_channels", c.embedding_channels, "must not be negative.")
    need(c.freq_shift < c.channels // 2, "network.freq_shift", c.freq_shift, "must be below half of network.channels.")
    choose(REMATS, "network.remat", c.remat)
    choose(ACTIVATIONS, "network.activation", c.activation)
    choose(EMBEDDINGS, "network.embedding", c.embedding)
    choose(MIDDLES, "network.middle", c.middle)
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
    for key, least in (("heads", 1), ("head_channels", 0)):
        need(c[key] >= least and all(w % (c[key] or 1) == 0 for w in attended), f"network.{key}", c[key],
             f"must divide the channels of all levels with attention, {sorted(attended)}.")
    need(c.middle_groups is None or (c.middle_groups >= 0 and widths[-1] % (c.middle_groups or 1) == 0),
         "network.middle_groups", c.middle_groups, f"must divide the {widths[-1]} channels of the middle, or be 0.")
    return make(**kwargs, out_channels=out_channels, dtype=dtype)
