"""The U-Net for waveforms and other sequences of real numbers."""
from diffusion.errors import require
from diffusion.networks.unet import UNet


class UNet1d(UNet):
    """The U-Net of Ho et al. (2020) with convolutions, attention and resampling along one axis, for waveforms.

    F(x, c_noise, cond): [B,L,C_in] -> [B,L,out_channels], float32 at least. The blocks and keys are those of unet.
    As in audio-diffusion-pytorch's UNet1d (Schneider et al. 2023, "Moûsai"), `patch` neighbouring samples can be one
    position of several channels, and levels can be shortened by more than 2. A change by f has 2 f - 1 taps (there:
    2 f + 1).
    """
    attention_resolutions: tuple[int, ...] = ()
    out_channels: int = 1
    factors: tuple[int, ...] = (2,)             # how many times shorter each level is than the one before; one for all
    spatial = 1
    side, sides = "samples (config.data)", "lengths"

    def check(self, size: tuple[int]) -> None:
        """Raises FieldError for fields that do not fit sequences of this length, or each other."""
        require(len(self.factors) in (1, len(self.multipliers) - 1) and min(self.factors) >= 1, "factors", self.factors,
                f"is one number of 1 or more, or one for each change between {len(self.multipliers)} levels.")
        super().check(size)


NETWORKS = {"unet_1d": UNet1d}
