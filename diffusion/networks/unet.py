"""The U-Net of Ho et al. (2020), "Denoising Diffusion Probabilistic Models", Appendix B, in its exact structure."""
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffusion.networks.layers import (Attention, Downsample, ResBlock, Upsample, ddpm_init, group_norm,
                                       sinusoidal_embedding)
from diffusion.typing import Array, Cond, Image, Keys


class UNet(nn.Module):
    """F(x, c_noise, cond): [B,H,W,C_in] -> [B,H,W,out_channels], float32 at least.

    With the defaults of `configs/cifar10.py` it has the paper's 35,746,307 parameters. Each level halves H and W;
    a level has `blocks` residual blocks going down and `blocks + 1` going up, each followed by attention where
    the feature map is one of `attention_resolutions` rows high. The last convolution, the second one of each block
    and the output of each attention start at zero, so that the network starts as the zero function.
    """
    channels: int = 128                         # of the first level
    multipliers: tuple[int, ...] = (1, 2, 2, 2)  # channels of each level / `channels`
    blocks: int = 2                             # residual blocks a level
    attention_resolutions: tuple[int, ...] = (16,)  # heights of the feature maps with attention
    heads: int = 1                              # attention heads
    groups: int = 32                            # of the group normalisation; must divide the channels of all levels
    dropout: float = 0.0                        # probability of dropping, in each residual block
    num_classes: int = 0                        # 0: unconditional; else cond is [B] int32 labels below it
    out_channels: int = 3
    dtype: Any = jnp.float32                    # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: Image, c_noise: Array, cond: Cond = None, keys: Keys | None = None) -> Array:
        res_block = lambda channels, name: ResBlock(  # noqa: E731
            channels, self.groups, self.dropout, self.dtype, name=name)
        attention = lambda name: Attention(self.heads, self.groups, self.dtype, name=name)  # noqa: E731
        dense = lambda name: nn.Dense(  # noqa: E731
            4 * self.channels, dtype=self.dtype, kernel_init=ddpm_init(), name=name)

        emb = sinusoidal_embedding(c_noise, self.channels).astype(self.dtype)
        emb = dense("emb2")(nn.swish(dense("emb1")(emb)))
        if self.num_classes:
            emb += nn.Embed(self.num_classes, 4 * self.channels, dtype=self.dtype, name="labels")(cond)

        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=ddpm_init(), name="conv_in")(
            x.astype(self.dtype))
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            for block in range(self.blocks):
                h = res_block(self.channels * multiplier, f"down{level}_block{block}")(h, emb, keys)
                if h.shape[1] in self.attention_resolutions:
                    h = attention(f"down{level}_attention{block}")(h)
                skips.append(h)
            if level < len(self.multipliers) - 1:
                h = Downsample(self.dtype, name=f"down{level}_downsample")(h)
                skips.append(h)

        h = res_block(h.shape[-1], "middle_block0")(h, emb, keys)
        h = attention("middle_attention")(h)
        h = res_block(h.shape[-1], "middle_block1")(h, emb, keys)

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for block in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res_block(self.channels * multiplier, f"up{level}_block{block}")(h, emb, keys)
                if h.shape[1] in self.attention_resolutions:
                    h = attention(f"up{level}_attention{block}")(h)
            if level > 0:
                h = Upsample(self.dtype, name=f"up{level}_upsample")(h)

        h = nn.swish(group_norm(self.groups, self.dtype, "norm_out")(h))
        h = nn.Conv(self.out_channels, (3, 3), dtype=self.dtype, kernel_init=ddpm_init(0.0), name="conv_out")(h)
        return h.astype(jnp.promote_types(h.dtype, jnp.float32))
