"""The case of tests/golden/dit.npz: what the program that makes it and the test that reads it must agree on."""
import flax.traverse_util
import numpy as np
from networks.random_params import random_params, unit

from diffusion.networks.dit import DiT

NETWORK = DiT(channels=48, depth=2, heads=4, patch=2, num_classes=11, out_channels=8)  # 10 classes, and none of them
IMAGE_SHAPE = (8, 8, 4)
TIMES = (0, 1, 250, 999)
LABELS = (7, 0, 10, 3)
SEED = 20221219


def images() -> np.ndarray:
    return unit("images", (len(TIMES), *IMAGE_SHAPE), SEED)


def state_dict() -> dict[str, np.ndarray]:
    """The parameters in facebookresearch/DiT's names and shapes."""
    flat = {"/".join(path): x for path, x in flax.traverse_util.flatten_dict(
        random_params(NETWORK, IMAGE_SHAPE, SEED)).items()}
    names = {"time1": "t_embedder.mlp.0", "time2": "t_embedder.mlp.2", "pixels": "final_layer.linear",
             "modulation": "final_layer.adaLN_modulation.1"}
    for i in range(NETWORK.depth):
        names |= {f"block{i}/{ours}": f"blocks.{i}.{theirs}" for ours, theirs in {
            "modulation": "adaLN_modulation.1", "out": "attn.proj", "mlp1": "mlp.fc1", "mlp2": "mlp.fc2"}.items()}
    found = {"y_embedder.embedding_table.weight": flat["labels/embedding"]}
    for ours, theirs in names.items():
        found |= {f"{theirs}.weight": flat[f"{ours}/kernel"].T, f"{theirs}.bias": flat[f"{ours}/bias"]}
    for i in range(NETWORK.depth):
        for end, join in (("kernel", lambda x: np.concatenate(x, axis=1).T), ("bias", np.concatenate)):
            name = {"kernel": "weight", "bias": "bias"}[end]
            found[f"blocks.{i}.attn.qkv.{name}"] = join([flat[f"block{i}/{part}/{end}"] for part in "qkv"])
    p, c = NETWORK.patch, IMAGE_SHAPE[-1]  # a convolution whose stride is its size
    kernel = flat["patches/kernel"].reshape(p, p, c, NETWORK.channels)
    return found | {"x_embedder.proj.weight": kernel.transpose(3, 2, 0, 1),
                    "x_embedder.proj.bias": flat["patches/bias"]}
