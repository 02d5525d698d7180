"""Makes edm_augment.npz: images and labels of EDM's augmentation pipe, with the draws that it took.

At commit 008a4e5316c8e3bfe61a62f874bddba254295afb.

    pip install torch jax
    git clone https://github.com/NVlabs/edm
    python tests/golden/make_edm_augment.py edm

The images come by the rule of tests/interop/others.py and are not stored. Each batch has transforms that are so strong
that EDM's code reflects the images as far as it can, as ours always does.
"""
import pathlib
import platform
import sys

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent / "networks")]
from random_params import unit  # noqa: E402

SHAPE = (24, 6, 8, 3)  # [B, H, W, C]
# The calls of the pipe, in its order: what is drawn, and the field and column that it is.
CALLS = (("flips", 0), ("chosen", 0), ("flips", 1), ("chosen", 1), ("scale", None), ("chosen", 2), ("rotation", None),
         ("chosen", 3), ("stretch", None), ("direction", None), ("chosen", 4), ("chosen", 6), ("shift", None),
         ("chosen", 5))


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    from training import augment
    arrays = {}
    for name, probability in (("all", 1.0), ("some", 0.3)):
        pipe = augment.AugmentPipe(p=probability, xflip=1e8, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1)
        found, pads = [], []
        plain = {key: getattr(torch, key) for key in ("rand", "randn", "randint")}
        for key, function in plain.items():
            setattr(torch, key, lambda *args, function=function, **kwargs: found.append(
                function(*args, **kwargs)) or found[-1])
        pad, torch.nn.functional.pad = torch.nn.functional.pad, lambda **kwargs: pads.append(
            [int(n) for n in kwargs["pad"]]) or pad(**kwargs)
        torch.manual_seed(3)
        images = torch.from_numpy(np.ascontiguousarray(unit("images", SHAPE, 0).transpose(0, 3, 1, 2)))
        out, labels = pipe(images)
        for key, function in plain.items():
            setattr(torch, key, function)
        torch.nn.functional.pad = pad
        assert pads == [[SHAPE[2] - 1, SHAPE[2] - 1, SHAPE[1] - 1, SHAPE[1] - 1]], pads
        draws = {"chosen": np.zeros((SHAPE[0], 7), np.float32), "flips": np.zeros((SHAPE[0], 2), np.float32)}
        for (field, column), values in zip(CALLS, found, strict=True):
            values = values.numpy().squeeze()
            if column is not None:
                draws[field][:, column] = values
            elif field == "shift":
                draws[field] = values.T
            else:  # turns are drawn in [0, 1) and mapped to [-1, 1) later
                draws[field] = values * 2 - 1 if field in ("rotation", "direction") else values
        arrays |= {f"{name}/{field}": values for field, values in draws.items()}
        arrays |= {f"{name}/images": out.numpy().transpose(0, 2, 3, 1), f"{name}/labels": labels.numpy()}
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}"
    np.savez_compressed(HERE / "edm_augment.npz", **arrays, made_with=made_with)
    print(f"{(HERE / 'edm_augment.npz').stat().st_size / 1000:.1f} kB; {made_with}")


if __name__ == "__main__":
    main()
