"""Makes chain.npz: images of diffusers' pipelines, which the plain suite compares ours with.

    pip install -r requirements-parity.txt
    python tests/golden/make_chain.py

Weights come from names and shapes by the rule of tests/networks/random_params.py, and the noise of each step is the one
that ours draws: neither is stored. What each case is stands in tests/interop/golden_chain.py.
"""
import pathlib
import platform
import sys

import diffusers
import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent / "networks"), str(HERE.parent / "interop")]
from diffusers_noise import injected  # noqa: E402
from golden_chain import BATCH, CASES, STRIDE, UNETS, random_state  # noqa: E402


def main() -> None:
    arrays = {}
    for name, (unet, scheduler, steps, call) in CASES.items():
        network = diffusers.UNet2DModel(**UNETS[unet]).eval()
        state = random_state({key: tuple(value.shape) for key, value in network.state_dict().items()})
        network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, strict=True)
        kind = scheduler["_class_name"]
        pipeline = getattr(diffusers, kind.replace("Scheduler", "Pipeline"))(
            unet=network, scheduler=getattr(diffusers, kind).from_config(scheduler))
        pipeline.set_progress_bar_config(disable=True)
        size, channels = UNETS[unet]["sample_size"], UNETS[unet]["in_channels"]
        with injected(0, (BATCH, size, size, channels), steps):
            images = pipeline(batch_size=BATCH, num_inference_steps=steps, output_type="np", **call).images
        arrays[name] = images.astype(np.float32).ravel()[::STRIDE]
        print(f"{name}: {images.shape}, standard deviation {images.std():.3f}")
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}, " \
                f"diffusers {diffusers.__version__}"
    np.savez_compressed(HERE / "chain.npz", made_with=made_with, **arrays)
    print(HERE / "chain.npz", made_with)


if __name__ == "__main__":
    main()
