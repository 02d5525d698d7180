"""The arguments of diffusers' UNet2DModel that has the structure of a network of ours."""
import dataclasses

from diffusion.interop import unet2d
from diffusion.networks.unet import UNet


def diffusers_config(network: UNet, image_shape: tuple[int, int, int]) -> dict:
    """`network` on images [H,W,C]. Raises CheckpointError where there is no such UNet2DModel."""
    fields = {field.name: getattr(network, field.name) for field in dataclasses.fields(network)}
    size, _, channels = image_shape
    settings = unet2d.write_settings(fields | {"name": "unet"}, size=size, channels=channels, learned_range=False)
    return {key: value for key, value in settings.items() if key != "_class_name"} | {
        "out_channels": network.out_channels}
