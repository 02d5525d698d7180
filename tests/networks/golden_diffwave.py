"""The case of tests/golden/diffwave.npz: what the program that makes it and the test that reads it must agree on."""
import flax.traverse_util
import numpy as np
from networks.random_params import random_params, unit

from diffusion.networks.diffwave import DiffWave

NETWORK = DiffWave(channels=16, depth=5, dilation_cycle=3)  # dilations 1, 2, 4, 1, 2
SHAPE = (40, 1)
TIMES = (0, 1, 50, 199)
SEED = 20200921


def clips() -> np.ndarray:
    return unit("clips", (len(TIMES), *SHAPE), SEED)


def state_dict() -> dict[str, np.ndarray]:
    """The parameters in diffwave-sashimi's names and shapes."""
    flat = {"/".join(path): x for path, x in flax.traverse_util.flatten_dict(
        random_params(NETWORK, SHAPE, SEED)).items()}
    found = {}

    def dense(ours: str, theirs: str) -> None:
        found.update({f"{theirs}.weight": flat[f"{ours}/kernel"].T, f"{theirs}.bias": flat[f"{ours}/bias"]})

    def convolution(ours: str, theirs: str) -> None:
        found.update({f"{theirs}.weight_v": flat[f"{ours}/kernel"].transpose(2, 1, 0),
                      f"{theirs}.weight_g": flat[f"{ours}/scale"][:, None, None],
                      f"{theirs}.bias": flat[f"{ours}/bias"]})
    convolution("conv_in", "init_conv.0.conv")
    convolution("conv_skip", "final_conv.0.conv")
    dense("time1", "residual_layer.fc_t1")
    dense("time2", "residual_layer.fc_t2")
    for i in range(NETWORK.depth):
        theirs = f"residual_layer.residual_blocks.{i}"
        dense(f"block{i}/time", f"{theirs}.fc_t")
        convolution(f"block{i}/dilated", f"{theirs}.dilated_conv_layer.conv")
        convolution(f"block{i}/residual", f"{theirs}.res_conv")
        convolution(f"block{i}/skip", f"{theirs}.skip_conv")
    return found | {"final_conv.2.conv.weight": flat["conv_out/kernel"].T[:, :, None],
                    "final_conv.2.conv.bias": flat["conv_out/bias"]}
