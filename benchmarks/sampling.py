"""Times sampling, ours beside diffusers' pipelines on the same network, weights and precision, by turns.

    pip install -e . -r requirements-parity.txt -c constraints.txt
    python -m benchmarks.sampling --chains=ddim:50 --batches=1,16
    python -m benchmarks.sampling --chains=ddim:50,ddpm:1000 --batches=1,16,256 --dtype=bfloat16 --ways=ours,compile

What each side does: one whole call, from the loaded model to PIL images, without a progress bar. diffusers'
DDIMPipeline or DDPMPipeline writes the model, with random weights, and both sides load that folder: the same grid of
times, eta, variance and clipping. Ours is DiffusionPipeline, whose chain is one call of the device; it draws a key for
each image, so that image i does not depend on the batch. PyTorch's network is channels_last, in bfloat16 by autocast
with float32 weights, as ours has; `compile` compiles it by torch.compile, for each batch. The first call, with
compilation, is apart.
"""
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import measure, peers
from benchmarks.train_step import prepared
from diffusion import DiffusionPipeline

WAYS = ("ours", "eager", "compile")
PIPELINES = {"ddim": ("DDIMPipeline", "DDIMScheduler"), "ddpm": ("DDPMPipeline", "DDPMScheduler")}


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser("sampling", __doc__, rounds=3)
    parser.add_argument("--config", default="configs/cifar10.py", help="whose network: a U-Net without classes")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--chains", default="ddim:50", help="SAMPLER:STEPS of " + ", ".join(PIPELINES))
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--ways", default="ours,eager", help="of " + ",".join(WAYS))
    args = parser.parse_args(argv)
    ways = args.ways.split(",")
    if unknown := set(ways) - set(WAYS):
        parser.error(f"--ways: {', '.join(sorted(unknown))} is not known; it can be of {', '.join(WAYS)}")
    chains = [(name, int(steps)) for name, _, steps in (chain.partition(":") for chain in args.chains.split(","))]
    batches, rounds = [int(batch) for batch in args.batches.split(",")], args.rounds
    if args.quick or args.tiny:
        chains, batches, rounds = [(name, 2) for name, _ in chains], batches[:1], 1
    report = measure.begin("sampling", args, config=args.config, dtype=args.dtype)
    for sampler, steps in chains:
        calls = pipelines(prepared(args.config, None, args.dtype, args.tiny), sampler, ways, args.dtype)
        for batch in batches:
            measure_batch(report, f"{sampler} {steps}, batch {batch}: ",
                          {way: lambda call=call: call(batch, steps) for way, call in calls.items()}, batch, rounds)
    measure.end(report, args.out)


def measure_batch(report: dict, prefix: str, calls: dict[str, Callable[[], Any]], batch: int, rounds: int) -> None:
    """Adds a row of each way for this batch to the report."""
    first, peak = {}, {}
    for way, call in calls.items():
        began = time.perf_counter()
        call()
        first[way], peak[way] = time.perf_counter() - began, measure.peak_gb(torch=way != "ours")
    times = measure.in_turns({way: lambda call=call: measure.timed(call) for way, call in calls.items()}, rounds=rounds)
    for way, seconds in times.items():
        report["rows"][prefix + way] = measure.spread(seconds) | {
            "images_per_second": batch / np.median(seconds), "first_call_s": round(first[way], 2),
            "peak_gb": round(peak[way], 2)} | (
                measure.ratio(report, times["ours"], seconds) if "ours" in times and way != "ours" else {})
    print(f"{prefix}first calls after " + ", ".join(f"{way} {took:.1f} s" for way, took in first.items()), flush=True)


def pipelines(config: Any, sampler: str, ways: list[str], dtype: str) -> dict[str, Callable[[int, int], Any]]:
    """(batch, steps) -> a call of each way's pipeline, all with the same random weights."""
    import diffusers
    import torch
    pipeline, scheduler = (getattr(diffusers, name) for name in PIPELINES[sampler])
    device, found = "cuda" if torch.cuda.is_available() else "cpu", {}
    diffusers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    network, classes = peers.network_of(config)
    if config.network.name != "unet" or classes:
        raise SystemExit("--config: diffusers' pipelines draw from a U-Net without classes.")
    with tempfile.TemporaryDirectory() as folder:
        pipeline(unet=network, scheduler=scheduler()).save_pretrained(folder)
        for way in ways:
            if way == "ours":
                ours = DiffusionPipeline.from_pretrained(folder)
                found[way] = lambda batch, steps: ours(batch, steps, dtype=dtype, progress_bar=False)
                continue
            theirs = pipeline.from_pretrained(folder, low_cpu_mem_usage=False).to(device)
            theirs.set_progress_bar_config(disable=True)
            theirs.unet.to(memory_format=torch.channels_last)
            if way == "compile":
                theirs.unet.compile(dynamic=False)
            found[way] = theirs_called(theirs, device, dtype)
    return found


def theirs_called(pipeline: Any, device: str, dtype: str) -> Callable[[int, int], Any]:
    """(batch, steps) -> a call of diffusers' pipeline, in bfloat16 by autocast."""
    import torch

    def call(batch: int, steps: int) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            pipeline(batch_size=batch, num_inference_steps=steps)

    return call


if __name__ == "__main__":
    main()
