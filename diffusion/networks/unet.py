"""The U-Net of Ho et al. (2020) in its exact structure, and its published variants as options of it."""
import functools
import itertools
import operator
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from diffusion.core.conditions import Declared, labels
from diffusion.errors import require
from diffusion.networks.layers import (
    Attention,
    BlockConfig,
    Downsample,
    FourierEmbedding,
    ResBlock,
    Upsample,
    check_channels,
    downsample,
    fold,
    rematerialised,
    sinusoidal_embedding,
    unfold,
    upsample,
)
from diffusion.typing import NO_COND, Array, Cond, Keys

# How parameters are cut over a mesh, by their paths: in a pair of layers the first is cut over its outputs and the
# second over its inputs, so that one sum over the tensor axis serves both (Shoeybi et al. 2019, "Megatron-LM").
SHARDING = (
    (r"/(conv1|emb|emb1|q|k|v)/kernel$", ("fsdp", "tensor")),
    (r"/(conv2|emb2|out)/kernel$", ("tensor", "fsdp")),
)


RESAMPLERS = ("conv", "resblock")


class UNet(nn.Module):
    """The U-Net of Ho et al. (2020) and its published variants.

    `UNet1d` (networks/unet_1d.py) is the same network for waveforms: nothing here depends on the number of axes.

    F(x, c_noise, cond): [B,H,W,C_in] -> [B,H,W,out_channels], float32 at least. The defaults are "Denoising Diffusion
    Probabilistic Models", Appendix B, with the 35,746,307 parameters of its CIFAR-10 model; the options after them are
    the variants of Improved DDPM (Nichol & Dhariwal 2021), ADM (Dhariwal & Nichol 2021) and diffusers' UNet2DModel.
    Each level halves H and W; a level has `blocks` residual blocks going down and `blocks + 1` going up, each followed
    by attention where the feature map is one of `attention_resolutions` rows high. The last convolution, the second
    one of each block and the output of each attention start at zero, so that the network starts as the zero function.
    """
    channels: int = 128                         # channels of the first level
    multipliers: tuple[float, ...] = (1, 2, 2, 2)  # channels of each level / `channels`
    blocks: int = 2                             # residual blocks a level
    attention_resolutions: tuple[int, ...] = (16,)  # heights (unet_1d: lengths) of the feature maps with
                                                # attention
    up_attention_resolutions: tuple[int, ...] | None = None  # those on the way up; None: the same
    heads: int = 1                              # attention heads, if head_channels is 0
    head_channels: int = 0                      # channels per head, which sets the number of heads; 0: see heads
    groups: int = 32                            # of the group normalisations; must divide the channels of all levels
    norm_epsilon: float = 1e-6                  # of the group normalisations
    activation: Literal["swish", "relu", "gelu", "mish"] = "swish"  # in the residual blocks
    dropout: float = 0.0                        # dropout probability, in each residual block
    scale_shift: bool = False                   # the embedding scales and shifts (Improved DDPM) or only shifts
    downsample: tuple[str, ...] = ("conv",)     # per level or one for all: conv, resblock
    upsample: tuple[str, ...] = ("conv",)       # the same, by the level it starts from, highest resolution first
    pad_around: bool = False                    # conv downsampling pads all around, not only at the end
    middle: Literal["attention", "plain", "none"] = "attention"  # attention between two blocks, plain: two blocks
    middle_divisor: float = 1.0                 # divides the residual sums of the middle
    middle_groups: int | None = None            # groups of the middle attention's normalisation; None: groups, 0: none
    embedding: Literal["positional", "fourier", "learned"] = "positional"  # of the time: positional; fourier, only for
                                                # positive noise levels (F is then divided by them); learned, one table
                                                # row per whole time
    embedding_rows: int = 0                     # learned: its times are 0 .. this - 1 (diffusers: num_train_timesteps)
    embedding_channels: int = 0                 # 0: 4 * channels
    freq_shift: float = 1.0                     # positional: see `sinusoidal_embedding`
    cos_first: bool = False                     # cosines before sines
    center_input: bool = False                  # x -> 2x - 1
    patch: int = 1                              # side of a patch of x, which becomes one position of the network
    num_classes: int = 0                        # 0: unconditional; else cond["label"] is int32 [B] below it
    out_channels: int = 3
    dtype: Literal["float32", "bfloat16"] = "float32"  # computation precision; parameters are float32
    remat: Literal["none", "light", "full"] = "none"  # activations recomputed in the gradient instead of stored: light,
                                                # all but convolutions and matrix products; full, whole blocks
    sharding = SHARDING
    undecayed = (r"/(times|labels)/embedding$",)  # parameters that weight decay leaves alone, besides vectors
    untrained = (r"/frequencies$",)
    spatial = 2
    factors = (2,)  # as the key of unet_1d
    side, sides = "pixels (config.data.size)", "heights"  # of x and of its feature maps, in messages

    @property
    def cond(self) -> Declared:
        """The label, if there are classes."""
        return labels(self.num_classes)

    def check(self, size: tuple[int, ...]) -> None:
        """Raises FieldError for fields that do not fit x of these sides, such as (height, width), or each other."""
        check_channels(self.channels)
        require(self.blocks >= 1, "blocks", self.blocks, "each level needs at least one residual block.")
        require(self.patch >= 1 and not any(side % self.patch for side in size), "patch", self.patch, "must divide the "
                f"sides of x, {list(size)} {self.side}.")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "is a probability below 1.")
        require(self.norm_epsilon > 0, "norm_epsilon", self.norm_epsilon, "must be positive (Ho et al. 2020: 1e-6).")
        require(self.middle_divisor > 0, "middle_divisor", self.middle_divisor, "must be positive; 1 changes nothing.")
        require(self.embedding_channels >= 0, "embedding_channels", self.embedding_channels, "must not be negative.")
        require(self.embedding_rows >= 0 and (self.embedding_rows > 0) == (self.embedding == "learned"),
                "embedding_rows", self.embedding_rows, "is the number of times of network.embedding = 'learned', and 0 "
                "for the others.")
        require(self.freq_shift < self.channels // 2, "freq_shift", self.freq_shift, "must be below half of "
                "network.channels.")
        self.check_levels(size)

    @property
    def reductions(self) -> list[int]:
        """By how many times the feature maps of each level are shorter than those of the first."""
        factors = self.factors * (len(self.multipliers) if len(self.factors) == 1 else 1)
        return list(itertools.accumulate((1, *factors[:len(self.multipliers) - 1]), operator.mul))

    def check_levels(self, size: tuple[int, ...]) -> None:
        """The part of `check` about levels, their widths and their attention."""
        channels, multipliers, levels = self.channels, self.multipliers, len(self.multipliers)
        require(levels >= 1, "multipliers", multipliers, "needs a number for each level, at least one.")
        widths = [round(channels * m) for m in multipliers]
        require(all(abs(w - channels * m) < 1e-6 * w for w, m in zip(widths, multipliers)), "multipliers", multipliers,
                f"times network.channels = {channels} must be whole numbers.")
        for key in ("downsample", "upsample"):
            kinds = getattr(self, key)
            require(len(kinds) in (1, levels), key, kinds, f"needs one kind, or one for each of {levels} levels.")
            for kind in kinds:
                require(kind in RESAMPLERS, key, kind, f"is not known. It can be one of: {', '.join(RESAMPLERS)}.")
        for n in size:
            shortest = self.patch * self.reductions[-1]
            require(n % shortest == 0, "multipliers", multipliers, f"{levels} levels make feature maps {shortest} "
                    f"times shorter, which {n} {self.side} do not allow. Use fewer levels or another size.")
        maps, attended = [size[0] // (self.patch * times) for times in self.reductions], set()
        for key in ("attention_resolutions", "up_attention_resolutions"):
            chosen = getattr(self, key) or ()
            require(set(chosen) <= set(maps), key, chosen, f"is not the size of any level's feature maps; their "
                    f"{self.sides} are {maps}.")
            attended |= {w for w, of_level in zip(widths, maps) if of_level in chosen}
        attended |= {widths[-1]} if self.middle == "attention" else set()
        require(self.groups >= 1 and all(w % self.groups == 0 for w in widths), "groups", self.groups,
                f"must divide the channels of all levels, {widths}.")
        require(self.heads >= 1 and all(w % self.heads == 0 for w in attended), "heads", self.heads,
                f"must divide the channels of all levels with attention, {sorted(attended)}.")
        require(0 <= self.head_channels <= min(attended, default=self.head_channels), "head_channels",
                self.head_channels, "must be 0 or at most the channels of any level with attention, "
                f"{sorted(attended)}.")
        require(self.middle_groups is None or (self.middle_groups >= 0 and widths[-1] % (self.middle_groups or 1) == 0),
                "middle_groups", self.middle_groups, f"must divide the {widths[-1]} channels of the middle, or be 0.")

    def check_times(self, *, whole: bool, largest: float, positive: bool) -> None:
        """Raises FieldError if the embedding cannot take this range of c_noise: `whole` numbers or not, `positive` or
        not, up to `largest`."""
        require(self.embedding != "fourier" or positive, "embedding", "fourier", "takes the logarithm of the noise "
                "level, which only process.name=ve gives to the network; the times of others begin at 0.")
        require(self.embedding != "learned" or whole and largest < self.embedding_rows, "embedding", "learned", "has a "
                f"row for each of {self.embedding_rows} whole times (network.embedding_rows): it needs a table of "
                "betas of no more steps, without process.rescale_times and sample.between_times.")

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Cond = NO_COND, keys: Keys | None = None) -> Array:
        return self.applied(x, c_noise, cond, keys, self.out_channels)

    def applied(self, x: Array, c_noise: Array, cond: Cond, keys: Keys | None, out_channels: int) -> Array:
        """The network: x [B, ..., C_in] -> [B, ..., out_channels]."""
        spatial = x.ndim - 2
        style = BlockConfig(dtype=self.dtype, groups=self.groups, epsilon=self.norm_epsilon, activation=self.activation,
                            dropout=self.dropout, scale_shift=self.scale_shift, spatial=spatial)
        widths = [round(self.channels * m) for m in self.multipliers]
        levels = len(widths)
        downs, ups, factors = (of_levels * levels if len(of_levels) == 1 else of_levels
                               for of_levels in (self.downsample, self.upsample, self.factors))
        down_attends = self.attention_resolutions
        up_attends = down_attends if self.up_attention_resolutions is None else self.up_attention_resolutions

        res_block, attention = (rematerialised(block, self.remat) for block in (ResBlock, Attention))

        def attend(h, name, **kwargs):
            heads = h.shape[-1] // self.head_channels if self.head_channels else self.heads
            return attention(heads, style, head_channels=self.head_channels, **kwargs, name=name)(h)

        emb = self.embed(c_noise, cond, style)
        h = fold((2 * x - 1 if self.center_input else x).astype(self.dtype), self.patch)
        h = style.conv(self.channels, "conv_in")(h)
        skips = [h]
        for level, width in enumerate(widths):
            for block in range(self.blocks):
                h = res_block(width, style, name=f"down{level}_block{block}")(h, emb, keys)
                if h.shape[1] in down_attends:
                    h = attend(h, f"down{level}_attention{block}")
                skips.append(h)
            if level < levels - 1:
                if downs[level] == "resblock":
                    shorten = functools.partial(downsample, factor=factors[level])
                    h = res_block(width, style, shorten, name=f"down{level}_downsample")(h, emb, keys)
                else:
                    h = Downsample(style, self.pad_around, factors[level], name=f"down{level}_downsample")(h)
                skips.append(h)

        if self.middle != "none":
            h = res_block(widths[-1], style, divisor=self.middle_divisor, name="middle_block0")(h, emb, keys)
            if self.middle == "attention":
                h = attend(h, "middle_attention", groups=self.middle_groups, divisor=self.middle_divisor)
            h = res_block(widths[-1], style, divisor=self.middle_divisor, name="middle_block1")(h, emb, keys)

        for level, width in reversed(list(enumerate(widths))):
            for block in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res_block(width, style, name=f"up{level}_block{block}")(h, emb, keys)
                if h.shape[1] in up_attends:
                    h = attend(h, f"up{level}_attention{block}")
            if level > 0:
                if ups[level] == "resblock":
                    lengthen = functools.partial(upsample, factor=factors[level - 1])
                    h = res_block(width, style, lengthen, name=f"up{level}_upsample")(h, emb, keys)
                else:
                    h = Upsample(style, factors[level - 1], name=f"up{level}_upsample")(h)

        h = style.group_norm("norm_out")(h, nn.swish)
        h = style.conv(self.patch**spatial * out_channels, "conv_out", scale=0.0)(h)
        h = unfold(h, self.patch)
        h = h.astype(jnp.promote_types(h.dtype, jnp.float32))
        return h / jnp.expand_dims(c_noise, tuple(range(1, h.ndim))) if self.embedding == "fourier" else h

    def embed(self, c_noise: Array, cond: Cond, style: BlockConfig) -> Array:
        """[B] c_noise and conditions -> [B, embedding_channels]."""
        channels = self.embedding_channels or 4 * self.channels
        if self.embedding == "fourier":
            emb = FourierEmbedding(self.channels, self.cos_first, name="fourier")(c_noise)
        elif self.embedding == "learned":
            emb = nn.Embed(self.embedding_rows, self.channels, name="times")(c_noise.round().astype(jnp.int32))
        else:
            emb = sinusoidal_embedding(c_noise, self.channels, freq_shift=self.freq_shift, cos_first=self.cos_first)
        emb = nn.swish(style.dense(channels, "emb1")(emb.astype(self.dtype)))
        emb = style.dense(channels, "emb2")(emb)
        if self.num_classes:
            emb += nn.Embed(self.num_classes, channels, dtype=self.dtype, name="labels")(cond["label"])
        return emb


NETWORKS = {"unet": UNet}
