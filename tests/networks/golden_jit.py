"""The cases of tests/golden/sit.npz and jit.npz: what the program that makes them and the tests that read them must
agree on."""
import flax.traverse_util
import numpy as np
from networks.random_params import random_params, unit

from diffusion.networks.dit import DiT, JiT

SIT = DiT(channels=48, depth=2, heads=4, patch=2, num_classes=11, out_channels=4, unread_outputs=True)
# Every option; the SwiGLU's width is rounded down, as in the sizes that are published.
JIT = JiT(channels=40, depth=4, heads=2, patch=4, bottleneck=8, class_tokens=3, class_tokens_from=1, num_classes=11,
          out_channels=3)
SHAPES = {"sit": (8, 8, 4), "jit": (16, 16, 3)}
NETWORKS = {"sit": SIT, "jit": JIT}
TIMES = (0.0, 0.05, 0.5, 0.97)  # the share of the data
LABELS = (7, 0, 10, 3)
SEED = 20251117
# A chain and a loss of JiT, with noise of twice the standard deviation, as for 512 pixels.
NOISE_SCALE, STEPS, SCALE, INTERVAL, CHAIN_LABELS, T_EPS = 2.0, 25, 2.2, (0.1, 1.0), (7, 3), 0.05



def images(name: str, role: str = "images") -> np.ndarray:
    return unit(role, (len(TIMES), *SHAPES[name]), SEED)


def state_dict(name: str) -> dict[str, np.ndarray]:
    """The parameters in the names and shapes of willisma/SiT or LTH14/JiT."""
    network, shape = NETWORKS[name], SHAPES[name]
    flat = {"/".join(path): x for path, x in flax.traverse_util.flatten_dict(
        random_params(network, shape, SEED)).items()}
    names = {"time1": "t_embedder.mlp.0", "time2": "t_embedder.mlp.2", "pixels": "final_layer.linear",
             "modulation": "final_layer.adaLN_modulation.1"}
    rms = {"norm_out": "final_layer.norm_final"}
    fused = {}
    for i in range(network.depth):
        ours, theirs = f"block{i}", f"blocks.{i}"
        names |= {f"{ours}/modulation": f"{theirs}.adaLN_modulation.1", f"{ours}/out": f"{theirs}.attn.proj",
                  f"{ours}/mlp2": f"{theirs}.mlp.{'w3' if name == 'jit' else 'fc2'}"}
        fused |= {f"{theirs}.attn.qkv": [f"{ours}/{part}" for part in "qkv"]}
        rms |= {f"{ours}/norm{n}": f"{theirs}.norm{n}" for n in (1, 2)}
        rms |= {f"{ours}/{part}_norm": f"{theirs}.attn.{part}_norm" for part in "qk"}
        fused |= ({f"{theirs}.mlp.w12": [f"{ours}/gate", f"{ours}/mlp1"]} if name == "jit" else
                  {f"{theirs}.mlp.fc1": [f"{ours}/mlp1"]})
    found = {"y_embedder.embedding_table.weight": flat["labels/embedding"]}
    for ours, theirs in names.items():
        found |= {f"{theirs}.weight": flat[f"{ours}/kernel"].T, f"{theirs}.bias": flat[f"{ours}/bias"]}
    for theirs, parts in fused.items():
        found |= {f"{theirs}.weight": np.concatenate([flat[f"{part}/kernel"] for part in parts], axis=1).T,
                  f"{theirs}.bias": np.concatenate([flat[f"{part}/bias"] for part in parts])}
    p, c = network.patch, shape[-1]  # a convolution whose stride is its size
    first = "bottleneck" if name == "jit" else "patches"
    kernel = flat[f"{first}/kernel"].reshape(p, p, c, -1).transpose(3, 2, 0, 1)
    if name == "sit":
        return found | {"x_embedder.proj.weight": kernel, "x_embedder.proj.bias": flat["patches/bias"]}
    found |= {f"{theirs}.weight": flat[f"{ours}/scale"] for ours, theirs in rms.items()}
    return found | {"x_embedder.proj1.weight": kernel, "in_context_posemb": flat["class_positions"][None],
                    "x_embedder.proj2.weight": flat["patches/kernel"].T[:, :, None, None],
                    "x_embedder.proj2.bias": flat["patches/bias"]}
