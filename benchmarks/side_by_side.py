"""Shows images of one model by this project (left) and by diffusers (right) in one picture.

    pip install -e . -r requirements-parity.txt -c constraints.txt
    python -m benchmarks.side_by_side runs/digits grids.png --steps=250

The model is written in diffusers' layout, from which diffusers loads it. Each side draws its own noise: the pictures
should look alike, not be equal (with the same noise they are equal, see tests/interop/test_parity_pipeline.py).
"""
import argparse
import tempfile

import diffusers
import numpy as np
import torch

from diffusion import DiffusionPipeline
from diffusion.io.images import grid, save_png


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.side_by_side", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run folder of ours, or another source of DiffusionPipeline.from_pretrained")
    parser.add_argument("picture", help="the PNG to write")
    parser.add_argument("--images", type=int, default=64, help="of each")
    parser.add_argument("--steps", type=int, default=None, help="Default: the model's own")
    args = parser.parse_args()
    ours = DiffusionPipeline.from_pretrained(args.model)
    steps = args.steps or ours.config.sample.steps
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(f"{folder}/exported")
        theirs = diffusers.DiffusionPipeline.from_pretrained(f"{folder}/exported")
    torch.manual_seed(0)
    pictures = []
    for images in (ours(args.images, steps, output_type="np").images,
                   theirs(batch_size=args.images, num_inference_steps=steps, output_type="np").images):
        pixels = np.rint(images * 255).astype(np.uint8)
        print(f"mean {images.mean():.4f}, standard deviation {images.std():.4f}")
        pictures.append(grid(pixels))
    gap = np.full((len(pictures[0]), 24, 3), 255, np.uint8)
    save_png(args.picture, np.concatenate([pictures[0], gap, pictures[1]], axis=1))


if __name__ == "__main__":
    main()
