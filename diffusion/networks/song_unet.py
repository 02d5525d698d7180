"""DDPM++ and NCSN++, the U-Nets of Song et al. (2021), in the version of EDM (Karras et al. 2022): one network."""
import functools
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.core.conditions import Condition, Declared, labels
from diffusion.errors import require
from diffusion.networks.fir import fir_downsample, fir_upsample, margin
from diffusion.networks.layers import (
    Attention,
    BlockConfig,
    FourierEmbedding,
    ResBlock,
    check_channels,
    ddpm_init,
    rematerialised,
    sinusoidal_embedding,
)
from diffusion.networks.unet import SHARDING
from diffusion.typing import NO_COND, Array, Cond, Keys

GROUPS, GROUP_CHANNELS = 32, 4  # at most, at least
ROOT = math.sqrt(2)             # by which each residual sum is divided


class SongUNet(nn.Module):
    """DDPM++ and NCSN++ of Song et al. (2021), "Score SDE", Appendix H, as EDM (Karras et al. 2022) has them.

    F(x, c_noise, cond): [B,H,W,C_in] -> [B,H,W,out_channels], float32 at least. Each level halves H and W, within
    residual blocks (BigGAN's) and by a short filter; a level has `blocks` blocks going down, each followed by attention
    where the feature map is one of `attention_resolutions` rows high, and `blocks + 1` going up, with attention after
    the last. Every residual sum is divided by sqrt(2). The defaults are DDPM++ (deep: 8 blocks). NCSN++ has
    resample_filter (1, 3, 3, 1), encoder residual, noise_embedding fourier and noise_multiplier 2. EDM's networks of
    CIFAR-10 have multipliers (2, 2, 2).
    """
    channels: int = 128                         # channels of the first level
    multipliers: tuple[float, ...] = (1, 2, 2, 2)  # channels of each level / `channels`
    blocks: int = 4                             # residual blocks a level
    attention_resolutions: tuple[int, ...] = (16,)  # heights (unet_1d: lengths) of the feature maps with
                                                # attention
    resample_filter: tuple[float, ...] = (1, 1)  # taps of the filter of down- and upsampling, an even number of them
    encoder: Literal["standard", "skip", "residual"] = "standard"  # the input at each resolution: not used; added by a
                                                # 1x1 convolution; or carried on from level to level by 3x3 ones
    decoder: Literal["standard", "skip"] = "standard"  # skip: the output is a sum over all resolutions
    noise_embedding: Literal["positional", "fourier"] = "positional"  # of c_noise: sines and cosines of frequencies
                                                # 1 .. 1e-4, or of random ones of standard deviation 2 pi 16
    noise_multiplier: int = 1                   # channels of that embedding / `channels`
    embedding_channels: int = 0                 # 0: 4 * channels
    dropout: float = 0.0                        # dropout probability, in each residual block
    num_classes: int = 0                        # 0: unconditional; else cond["label"] is int32 [B] below it
    augment: int = 0                            # numbers of the augmentation label cond["augment"]; 0: none
    out_channels: int = 3
    dtype: Literal["float32", "bfloat16"] = "float32"  # computation precision; parameters are float32
    remat: Literal["none", "light", "full"] = "none"  # activations recomputed in the gradient instead of stored: light,
                                                # all but convolutions and matrix products; full, whole blocks
    sharding = SHARDING
    undecayed = (r"/(labels|augment)/kernel$",)  # parameters that weight decay leaves alone, besides vectors
    untrained = (r"/frequencies$",)
    spatial = 2

    @property
    def cond(self) -> Declared:
        """The label, if there are classes, and the augmentation label, zero where there is no augmentation."""
        return {**labels(self.num_classes),
                **({"augment": Condition(shape=(self.augment,), default=0)} if self.augment else {})}

    @property
    def widths(self) -> list[int]:
        """The channels of each level."""
        return [round(self.channels * m) for m in self.multipliers]

    def check(self, size: tuple[int, ...]) -> None:
        """Raises FieldError for fields that do not fit x of these sides, (height, width), or each other."""
        check_channels(self.channels)
        require(self.blocks >= 1, "blocks", self.blocks, "each level needs at least one residual block.")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "is a probability below 1.")
        require(self.embedding_channels >= 0, "embedding_channels", self.embedding_channels, "must not be negative.")
        taps = self.resample_filter
        require(len(taps) >= 2 and len(taps) % 2 == 0 and sum(taps) > 0, "resample_filter", taps, "needs an even "
                "number of taps with a positive sum (DDPM++: 1, 1; NCSN++: 1, 3, 3, 1).")
        noise = self.channels * self.noise_multiplier
        require(self.noise_multiplier >= 1 and noise % 2 == 0 and noise >= 4, "noise_multiplier", self.noise_multiplier,
                f"times network.channels = {self.channels} must be even and at least 4: half of that embedding are "
                "sines.")
        multipliers, widths = self.multipliers, self.widths
        require(len(multipliers) >= 1, "multipliers", multipliers, "needs a number for each level, at least one.")
        require(all(w > 0 and abs(w - self.channels * m) < 1e-6 * w for w, m in zip(widths, multipliers)),
                "multipliers", multipliers, f"times network.channels = {self.channels} must be whole numbers.")
        for n in size:
            shortest = 2 ** (len(widths) - 1)
            require(n % shortest == 0, "multipliers", multipliers, f"{len(widths)} levels make feature maps {shortest} "
                    f"times shorter, which {n} pixels (config.data.size) do not allow. Use fewer levels or another "
                    "size.")
        maps = [size[0] >> level for level in range(len(widths))]
        require(set(self.attention_resolutions) <= set(maps), "attention_resolutions", self.attention_resolutions,
                f"is not the size of any level's feature maps; their heights are {maps}.")
        wrong = [n for n in self.normalised() if n < GROUP_CHANNELS or n % min(GROUPS, n // GROUP_CHANNELS)]
        require(not wrong, "channels", self.channels, "times network.multipliers makes arrays of "
                f"{', '.join(map(str, wrong[:1]))} channels, which groups of {GROUP_CHANNELS}, or {GROUPS} groups, do "
                f"not divide. Multiples of {GROUPS} fit.")

    def normalised(self) -> list[int]:
        """The channels of the arrays that are normalised."""
        widths, skips = self.widths, [self.channels]
        for level, width in enumerate(widths):
            skips += ([widths[level - 1]] if level else []) + self.blocks * [width]
        found, last = {*skips}, widths[-1]
        for width in reversed(widths):
            for _ in range(self.blocks + 1):
                found.add(last + skips.pop())
                last = width
        return sorted(found)

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Cond = NO_COND, keys: Keys | None = None) -> Array:
        style = BlockConfig(dtype=self.dtype, groups=GROUPS, group_channels=GROUP_CHANNELS, dropout=self.dropout)
        widths, taps = self.widths, self.resample_filter
        shorten, lengthen = (functools.partial(resample, taps=taps) for resample in (fir_downsample, fir_upsample))
        res_block, attention = (rematerialised(block, self.remat) for block in (ResBlock, Attention))

        def block(h, width, name, resample=None):
            made = res_block(width, style, resample, divisor=ROOT, project=resample is not None, name=name)
            return made(h, emb, keys)

        def attend(h, name):
            return attention(1, style, divisor=ROOT, scale=0.1, name=name)(h)

        def attends(h):
            return h.shape[1] in self.attention_resolutions

        emb = self.embed(c_noise, cond, style)
        h = aux = x.astype(self.dtype)
        h = style.conv(self.channels, "conv_in")(h)
        skips = [h]
        for level, width in enumerate(widths):
            if level > 0:
                h = block(h, h.shape[-1], f"down{level - 1}_downsample", shorten)
                if self.encoder == "skip":
                    aux = shorten(aux)
                    h = h + style.dense(h.shape[-1], f"down{level - 1}_input")(aux)
                elif self.encoder == "residual":  # the filter sees all that the convolution makes of the zeros around
                    around = ((1 + margin(taps),) * 2,) * self.spatial
                    aux = style.conv(h.shape[-1], f"down{level - 1}_input", padding=around)(aux)
                    h = aux = (h + shorten(aux, pad=False)) / ROOT
                skips.append(h)
            for index in range(self.blocks):
                h = block(h, width, f"down{level}_block{index}")
                if attends(h):
                    h = attend(h, f"down{level}_attention{index}")
                skips.append(h)

        h = attend(block(h, widths[-1], "middle_block0"), "middle_attention")
        h = block(h, widths[-1], "middle_block1")

        out = None
        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                h = block(h, h.shape[-1], f"up{level + 1}_upsample", lengthen)
            for index in range(self.blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), width, f"up{level}_block{index}")
            if attends(h):
                h = attend(h, f"up{level}_attention{self.blocks}")
            if self.decoder == "skip" or level == 0:
                end = style.group_norm(f"norm_out{level or ''}", style.groups_of(width))(h, nn.swish)
                end = style.conv(self.out_channels, f"conv_out{level or ''}", scale=0.0)(end)
                out = end if out is None else lengthen(out) + end
        return out.astype(jnp.promote_types(out.dtype, jnp.float32))

    def embed(self, c_noise: Array, cond: Cond, style: BlockConfig) -> Array:
        """[B] c_noise and conditions -> [B, embedding_channels], before the activation that each block begins with."""
        channels = self.channels * self.noise_multiplier
        if self.noise_embedding == "fourier":
            emb = FourierEmbedding(channels // 2, logarithm=False, name="fourier")(c_noise)
        else:
            emb = sinusoidal_embedding(c_noise, channels)
        emb = emb.astype(self.dtype)
        if self.num_classes:
            one_hot = jax.nn.one_hot(cond["label"], self.num_classes, dtype=self.dtype)
            emb = emb + style.dense(channels, "labels")(one_hot * math.sqrt(self.num_classes))
        if self.augment:
            emb = emb + nn.Dense(channels, use_bias=False, dtype=self.dtype, kernel_init=ddpm_init(), name="augment")(
                cond["augment"])
        width = self.embedding_channels or 4 * self.channels
        emb = nn.swish(style.dense(width, "emb1")(emb))
        return style.dense(width, "emb2")(emb)


NETWORKS = {"song_unet": SongUNet}
