"""The case of tests/golden/video_unet.npz: what the program that makes it and the test that reads it must agree on."""
import flax.traverse_util
import numpy as np
from networks.random_params import random_params, unit

from diffusion.networks.video_unet import VideoUNet

NETWORK = VideoUNet(channels=8, multipliers=(1, 2), heads=2, out_channels=3)
SHAPE = (14, 8, 4, 3)  # frames, height, width, channels; more frames than the relative positions have exact distances
TIMES = (3, 700)
ALONE = (True, False)  # of the second output: the clips whose frames attend to none but themselves
SEED = 20220407


def clips() -> np.ndarray:
    return unit("clips", (len(TIMES), *SHAPE), SEED)


def state_dict() -> dict[str, np.ndarray]:
    """The parameters in video-diffusion-pytorch's names and shapes, without the frequencies of its rotary positions."""
    flat = {"/".join(path): x for path, x in flax.traverse_util.flatten_dict(
        random_params(NETWORK, SHAPE, SEED)).items()}
    found = {"time_rel_pos_bias.relative_attention_bias.weight": flat["relative/embedding"]}

    def layer(theirs: str, ours: str, bias: bool = True, axes: int = 3) -> None:
        kernel = flat[f"{ours}/kernel"]
        if kernel.ndim == 2:
            kernel = kernel.T.reshape(*kernel.shape[::-1], *[1] * axes)
        else:
            kernel = kernel.transpose(3, 2, 0, 1)[:, :, None]
        found[f"{theirs}.weight"] = kernel
        if bias:
            found[f"{theirs}.bias"] = flat[f"{ours}/bias"]

    def block(theirs: str, ours: str) -> None:
        for i in (1, 2):
            layer(f"{theirs}.block{i}.proj", f"{ours}/conv{i}")
            found[f"{theirs}.block{i}.norm.gamma"] = flat[f"{ours}/norm{i}/scale"].reshape(-1, 1, 1, 1)
        if f"{ours}/emb/kernel" in flat:
            layer(f"{theirs}.mlp.1", f"{ours}/emb", axes=0)
        if f"{ours}/shortcut/kernel" in flat:
            layer(f"{theirs}.res_conv", f"{ours}/shortcut")

    def attention(theirs: str, ours: str, linear: bool = False) -> None:
        found[f"{theirs}.fn.norm.gamma"] = flat[f"{ours}/norm/scale"].reshape(1, -1, 1, 1, 1)
        inside, axes = f"{theirs}.fn.fn" if linear else f"{theirs}.fn.fn.fn", 2 * linear
        kernels = np.concatenate([flat[f"{ours}/{part}/kernel"] for part in "qkv"], axis=1).T
        found[f"{inside}.to_qkv.weight"] = kernels.reshape(*kernels.shape, *[1] * axes)
        layer(f"{inside}.to_out", f"{ours}/out", bias=linear, axes=axes)

    layer("time_mlp.1", "emb1", axes=0)
    layer("time_mlp.3", "emb2", axes=0)
    layer("init_conv", "conv_in")
    attention("init_temporal_attn", "in_temporal")
    levels = len(NETWORK.multipliers)
    for level in range(levels):
        for theirs, ours in ((f"downs.{level}", f"down{level}"), (f"ups.{levels - 1 - level}", f"up{level}")):
            block(f"{theirs}.0", f"{ours}_block0")
            block(f"{theirs}.1", f"{ours}_block1")
            attention(f"{theirs}.2", f"{ours}_spatial", linear=True)
            attention(f"{theirs}.3", f"{ours}_temporal")
        if level < levels - 1:
            layer(f"downs.{level}.4", f"down{level}_downsample")
        if level > 0:  # transposed in PyTorch: inputs before outputs, and turned around
            name = f"up{level}_upsample"
            found[f"ups.{levels - 1 - level}.4.weight"] = flat[f"{name}/kernel"][::-1, ::-1].transpose(
                2, 3, 0, 1)[:, :, None]
            found[f"ups.{levels - 1 - level}.4.bias"] = flat[f"{name}/bias"]
    block("mid_block1", "middle_block0")
    attention("mid_spatial_attn", "middle_spatial")
    attention("mid_temporal_attn", "middle_temporal")
    block("mid_block2", "middle_block1")
    block("final_conv.0", "out_block")
    layer("final_conv.1", "conv_out")
    return found
