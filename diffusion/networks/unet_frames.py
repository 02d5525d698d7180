"""The U-Net of images on clips: the frames are its channels, the cheapest network of video."""
import flax.linen as nn

from diffusion.networks.unet import UNet
from diffusion.typing import NO_COND, Array, Cond, Keys


class FramesUNet(UNet):
    """The U-Net of images on clips whose frames are its channels (Voleti et al. 2022, "MCVD", Section 3.4).

    F(x, c_noise, cond): [B,T,H,W,C_in] -> [B,T,H,W,out_channels]. Options, parameters and their names are those of
    `unet` for images of T C_in channels; T is fixed by the training.
    """
    spatial = 3

    def check(self, size: tuple[int, int, int]) -> None:
        """Raises FieldError for fields that do not fit clips of these frames, height and width, or each other."""
        super().check(size[1:])

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Cond = NO_COND, keys: Keys | None = None) -> Array:
        b, t, height, width, _ = x.shape
        images = x.transpose(0, 2, 3, 1, 4).reshape(b, height, width, -1)
        found = self.applied(images, c_noise, cond, keys, t * self.out_channels)
        return found.reshape(b, height, width, t, -1).transpose(0, 3, 1, 2, 4)


NETWORKS = {"unet_frames": FramesUNet}
