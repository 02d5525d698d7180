"""Makes video_unet.npz, outputs of video-diffusion-pytorch's `Unet3D` that the plain suite compares ours with.

    pip install torch video-diffusion-pytorch==0.7.0
    python tests/golden/make_video_unet.py

In float64. The second output is with some clips' frames alone (`focus_present_mask`); there its first attention is
given the mask too, which version 0.7.0 forgets. Weights and inputs come from seeds by the rule of
tests/networks/random_params.py and are not stored.
"""
import functools
import importlib.metadata
import pathlib
import platform
import sys

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]
from networks.golden_video_unet import ALONE, NETWORK, SHAPE, TIMES, clips, state_dict  # noqa: E402
from video_diffusion_pytorch.video_diffusion_pytorch import Unet3D  # noqa: E402


def main() -> None:
    torch.set_default_dtype(torch.float64)
    theirs = Unet3D(NETWORK.channels, dim_mults=NETWORK.multipliers, channels=SHAPE[-1], attn_heads=NETWORK.heads,
                    attn_dim_head=NETWORK.head_channels)
    given = {name: torch.from_numpy(np.ascontiguousarray(x)).double() for name, x in state_dict().items()}
    missing, strange = theirs.load_state_dict(given, strict=False)
    assert all(name.endswith("rotary_emb.freqs") for name in missing) and not strange, (missing, strange)
    x = torch.from_numpy(np.ascontiguousarray(clips().transpose(0, 4, 1, 2, 3))).double()
    times, found = torch.tensor(TIMES, dtype=torch.float64), {}
    with torch.no_grad():
        found["output"] = theirs(x, times)
        mask = torch.tensor(ALONE)
        theirs.init_temporal_attn.forward = functools.partial(theirs.init_temporal_attn.forward,
                                                              focus_present_mask=mask)
        found["alone"] = theirs(x, times, focus_present_mask=mask)
    found = {name: y.numpy().transpose(0, 2, 3, 4, 1).astype(np.float32) for name, y in found.items()}
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in
                         ("video-diffusion-pytorch", "rotary-embedding-torch"))
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}, {packages}"
    np.savez_compressed(HERE / "video_unet.npz", **found, made_with=made_with)
    print(f"video_unet.npz: {found['output'].shape}, standard deviation {found['output'].std():.3f}; {made_with}")


if __name__ == "__main__":
    main()
