"""The U-Net of images on clips: the frames are its channels, the cheapest network of video."""
import flax.linen as nn
import jax.numpy as jnp

from diffusion.core.conditions import Condition, Declared, labels
from diffusion.networks.unet import UNet
from diffusion.typing import NO_COND, Array, Cond, Keys


def first_frames(shape: tuple[int, ...]) -> Declared:
    """The conditions of a network that is told the frames before a clip: "frames", uint8 [K, H, W, C], and
    "frames_mask" [K], 1 for those that are given; all by default, none for what training hides. () for no such frames.
    """
    return {"frames": Condition(shape=shape, dtype="uint8"),
            "frames_mask": Condition(shape=shape[:1], null=0.0, default=1.0)} if shape else {}


def told_frames(cond: Cond) -> Array:
    """The frames before a clip in [-1, 1], 0 where they are hidden, and their mask as one more channel:
    [B, K, H, W, C + 1]."""
    frames, mask = cond["frames"], jnp.expand_dims(cond["frames_mask"], (2, 3, 4))
    return jnp.concatenate([(frames.astype(mask.dtype) / 127.5 - 1) * mask,
                            jnp.broadcast_to(mask, (*frames.shape[:-1], 1))], axis=-1)


class FramesUNet(UNet):
    """The U-Net of images on clips whose frames are its channels (Voleti et al. 2022, "MCVD", Section 3.4).

    F(x, c_noise, cond): [B,T,H,W,C_in] -> [B,T,H,W,out_channels]. Options, parameters and their names are those of
    `unet` for images of T C_in channels; T is fixed by the training. Frames before the clip, if it is told any, are
    further channels.
    """
    past: tuple[int, ...] = ()
    spatial = 3

    @property
    def cond(self) -> Declared:
        """The label, if there are classes, and the frames before the clip."""
        return {**labels(self.num_classes), **first_frames(self.past)}

    def check(self, size: tuple[int, int, int]) -> None:
        """Raises FieldError for fields that do not fit clips of these frames, height and width, or each other."""
        super().check(size[1:])

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Cond = NO_COND, keys: Keys | None = None) -> Array:
        b, t, height, width, _ = x.shape
        images = folded(x)
        if self.past:
            images = jnp.concatenate([images, folded(told_frames(cond)).astype(x.dtype)], axis=-1)
        found = self.applied(images, c_noise, cond, keys, t * self.out_channels)
        return found.reshape(b, height, width, t, -1).transpose(0, 3, 1, 2, 4)


def folded(x: Array) -> Array:
    """[B, T, H, W, C] -> [B, H, W, T C]."""
    b, _, height, width, _ = x.shape
    return x.transpose(0, 2, 3, 1, 4).reshape(b, height, width, -1)


NETWORKS = {"unet_frames": FramesUNet}
