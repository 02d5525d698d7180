"""Times DiffusionPipeline against diffusers' DDIMPipeline in seconds per image, with the same weights in one process.

    pip install -e . -r requirements-parity.txt -c constraints.txt
    python -m benchmarks.pipeline --batch_sizes=1,16 --steps=50 --rounds=3

The time is that of a whole call, from the loaded model to PIL images. The two alternate, so that other load of the
machine affects both. Ours compiles in its first call for each batch size, which is reported separately. The weights are
random, for the CIFAR-10 network of Ho et al. (2020), 35.7M parameters, or from --model, a folder in diffusers' layout.
"""
import argparse
import os
import platform
import statistics
import tempfile
import time

import diffusers
import jax
import numpy as np
import torch

from diffusion import DiffusionPipeline

CIFAR10 = dict(sample_size=32, block_out_channels=(128, 256, 256, 256), downsample_padding=0, flip_sin_to_cos=False,
               freq_shift=1, norm_eps=1e-6, attention_head_dim=None,
               down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
               up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"))


def seconds(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder in diffusers' layout. Default: random weights")
    parser.add_argument("--batch_sizes", default="1,16")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps of a chain")
    parser.add_argument("--rounds", type=int, default=3, help="calls of each, alternating; the medians are printed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            torch.manual_seed(0)
            diffusers.DDIMPipeline(unet=diffusers.UNet2DModel(**CIFAR10),
                                   scheduler=diffusers.DDIMScheduler()).save_pretrained(folder)
        theirs = diffusers.DDIMPipeline.from_pretrained(args.model or folder)
        ours = DiffusionPipeline.from_pretrained(args.model or folder)
    theirs.set_progress_bar_config(disable=True)

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}; "
          f"jax {jax.__version__}, torch {torch.__version__} ({torch.get_num_threads()} threads), "
          f"diffusers {diffusers.__version__}; DDIM, {args.steps} steps, float32, medians of {args.rounds}")
    print(f"{'batch':>5} {'first call':>11} {'ours':>10} {'with bar':>10} {'diffusers':>10} {'diffusers / ours':>17}")
    for batch in map(int, args.batch_sizes.split(",")):
        def run(bar=False):
            return ours(batch, args.steps, sampler="ddim", progress_bar=bar)

        calls = {"ours": run, "bar": lambda: run(bar=True),
                 "theirs": lambda: theirs(batch_size=batch, num_inference_steps=args.steps)}
        first = seconds(run)
        times = {name: [] for name in calls}
        for _ in range(args.rounds):
            for name, call in calls.items():
                times[name].append(seconds(call) / batch)
        mid = {name: statistics.median(values) for name, values in times.items()}
        ratio = [t / o for t, o in zip(times["theirs"], times["ours"])]
        print(f"{batch:>5} {first:>9.1f} s {mid['ours']:>8.3f} s {mid['bar']:>8.3f} s {mid['theirs']:>8.3f} s "
              f"{np.median(ratio):>8.2f} ({min(ratio):.2f}..{max(ratio):.2f})", flush=True)
    print("seconds per image; the first call is for the whole batch, with compilation")


if __name__ == "__main__":
    main()
