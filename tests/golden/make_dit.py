"""Makes dit.npz, the outputs of facebookresearch/DiT's `DiT` that the plain suite compares ours with.

At commit ed81ce2229091fd4ecc9a223645f95cf379d582b.

    pip install torch timm
    git clone https://github.com/facebookresearch/DiT
    python tests/golden/make_dit.py DiT

In float64, but for its embeddings of time, which it takes in float32. Weights and inputs come from seeds by the rule of
tests/networks/random_params.py and are not stored.
"""
import pathlib
import platform
import sys

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent), sys.argv[1]]
import timm  # noqa: E402
from models import DiT  # noqa: E402
from networks.golden_dit import IMAGE_SHAPE, LABELS, NETWORK, TIMES, images, state_dict  # noqa: E402


def main() -> None:
    theirs = DiT(input_size=IMAGE_SHAPE[0], patch_size=NETWORK.patch, in_channels=IMAGE_SHAPE[-1],
                 hidden_size=NETWORK.channels, depth=NETWORK.depth, num_heads=NETWORK.heads,
                 num_classes=NETWORK.num_classes - 1, learn_sigma=True)
    given = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in state_dict().items()}
    missing, strange = theirs.load_state_dict(given, strict=False)
    assert missing == ["pos_embed"] and not strange, (missing, strange)  # that one is fixed
    theirs = theirs.eval().double()
    theirs.t_embedder.float()  # its sines and cosines are float32
    last = theirs.t_embedder.forward
    theirs.t_embedder.forward = lambda t: last(t).double()
    x = torch.from_numpy(np.ascontiguousarray(images().transpose(0, 3, 1, 2))).double()
    with torch.no_grad():
        out = theirs(x, torch.tensor(TIMES), torch.tensor(LABELS)).numpy().transpose(0, 2, 3, 1)
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}, " \
                f"timm {timm.__version__}"
    np.savez_compressed(HERE / "dit.npz", output=out, made_with=made_with)
    print(f"dit.npz: output {out.shape}, standard deviation {out.std():.3f}; {made_with}")


if __name__ == "__main__":
    main()
