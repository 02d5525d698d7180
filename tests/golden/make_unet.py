"""Makes unet.npz, the outputs of diffusers' `UNet2DModel` that the plain suite compares our U-Net with.

    pip install -r requirements-parity.txt
    python tests/golden/make_unet.py

Weights and inputs come from seeds by the rule of tests/networks/random_params.py and are not stored. The network is
evaluated in float64, except its sinusoidal embedding, which diffusers always takes in float32.
"""
import pathlib
import platform
import sys

import diffusers
import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent / "networks")]
from diffusers_map import diffusers_config  # noqa: E402
from golden_unet import IMAGE_SHAPE, LABELS, NETWORK, SEED, TIMES, images  # noqa: E402
from random_params import random_params  # noqa: E402

from diffusion.interop import unet2d  # noqa: E402


def main() -> None:
    network = diffusers.UNet2DModel(**diffusers_config(NETWORK, IMAGE_SHAPE)).eval().double()
    params = unet2d.write_params(random_params(NETWORK, IMAGE_SHAPE, SEED))
    network.load_state_dict({k: torch.from_numpy(v) for k, v in params.items()}, strict=True)
    x = torch.from_numpy(np.ascontiguousarray(images().transpose(0, 3, 1, 2))).double()
    with torch.no_grad():
        out = network(x, torch.tensor(TIMES), class_labels=torch.tensor(LABELS)).sample.numpy().transpose(0, 2, 3, 1)
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}, " \
                f"diffusers {diffusers.__version__}"
    np.savez_compressed(HERE / "unet.npz", output=out, made_with=made_with)
    print(f"{HERE / 'unet.npz'}: output {out.shape}, standard deviation {out.std():.3f}; {made_with}")


if __name__ == "__main__":
    main()
