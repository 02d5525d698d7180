"""Times training steps of a config, ours beside PyTorch's on the same network, batch and precision, by turns.

    python -m benchmarks.train_step --config=configs/cifar10.py --batch=16
    python -m benchmarks.train_step --config=configs/cifar10.py --batch=256 --dtype=bfloat16 --ways=ours,eager,compile

benchmarks/peers.py says what each side does in a step. Prints the median over the rounds (and the lowest and highest),
images and FLOP/s, MFU relative to a matrix product measured in the same run, peak memory, and the ratio of the speeds,
which is left out where the machine was not idle at the start. On a CPU the peak is of the whole process so far: name
one way alone to learn its own. PyTorch is needed only for --ways other than ours.
"""
import time
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from diffusion import build
from diffusion.parallel import sharding
from diffusion.planning.flops import matrix_flops
from experiments.table import load_config

WAYS = ("ours", "eager", "compile")
TINY = {"unet": {"channels": 32, "blocks": 1, "groups": 8}, "dit": {"depth": 1, "channels": 64, "heads": 2}}
ON_DEVICE = 2048  # images of random bytes in the data set on the device


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser("train_step", __doc__, rounds=5)
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--batch", type=int, default=None, help="Default: the config's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--ways", default="ours,eager", help="of " + ",".join(WAYS))
    parser.add_argument("--steps", type=int, default=3, help="of a round")
    parser.add_argument("--trace", default=None, help="a folder for a trace of four of our steps, for TensorBoard; the "
                        "time of each kernel is summed into its kernels.txt")
    args = parser.parse_args(argv)
    ways = args.ways.split(",")
    if unknown := set(ways) - set(WAYS):
        parser.error(f"--ways: {', '.join(sorted(unknown))} is not known; it can be of {', '.join(WAYS)}")
    short = args.quick or args.tiny
    rounds, steps = (1, 1) if short else (args.rounds, args.steps)
    config = prepared(args.config, args.batch or (4 if args.quick else None), args.dtype, args.tiny)
    batch = config.train.batch_size
    report = measure.begin("train_step", args, config=args.config, batch=batch, dtype=args.dtype)

    functions, details, ours = {}, {}, None
    for way in ways:
        began = time.perf_counter()
        if way == "ours":
            ours = OurStep(config)
            functions[way], details[way] = ours, ours.details
        else:
            from benchmarks import peers
            functions[way] = peers.training_step(config, batch=batch, dtype=args.dtype, compiled=way == "compile")
            details[way] = {}
        measure.finished(functions[way]())
        details[way] |= {"first_step_s": round(time.perf_counter() - began, 2),
                         "peak_gb": round(measure.peak_gb(torch=way != "ours"), 2)}
        print(f"{way}: {details[way]}", flush=True)
    flops = report["flops"] = ours.flops if ours else None
    times = measure.by_turns(functions, rounds=rounds, steps=steps)
    report["ceiling"] = ceiling = measure.ceiling(args.dtype, size=512 if short else 8192 if on_gpu() else 2048)
    for way, seconds in times.items():
        row = measure.spread(seconds) | {"images_per_second": batch / np.median(seconds)}
        if flops:
            row |= {"flops_per_second": flops / np.median(seconds), "mfu": flops / np.median(seconds) / ceiling}
        if ours and way != "ours":
            row |= measure.ratio(report, times["ours"], seconds)
        report["rows"][way] = row | details[way]
    print(f"a matrix product runs at {ceiling / 1e12:.2f} TFLOP/s, to which mfu is relative")
    measure.end(report, args.out)
    if args.trace and ours:
        kernels(ours, args.trace)


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def prepared(path: str, batch: int | None, dtype: str, tiny: bool):
    """The config with this batch and precision; `tiny`: and a network for a test."""
    config = load_config(path)
    config.network.dtype = dtype
    if batch or tiny:
        config.train.batch_size = batch or 4
    if tiny:
        config.network.update(TINY[config.network.name])
    return config


class OurStep:
    """Calls the compiled training step on images of random bytes, which lie on the device."""

    def __init__(self, config: Any):
        model = build.model(config)
        parts = build.training_step(config, model, 50_000)
        rng, batch, classes = np.random.default_rng(0), config.train.batch_size, max(config.network.num_classes, 1)
        self.data = jax.device_put({"image": rng.integers(0, 256, (ON_DEVICE, *model.shape), dtype=np.uint8),
                                    "label": rng.integers(0, classes, ON_DEVICE).astype(np.int32)},
                                   sharding.replicated(model.mesh))
        k = parts.plan.steps_per_dispatch
        rows = {"index": rng.integers(0, ON_DEVICE, (k, batch)).astype(np.int32),
                "position": np.tile(np.arange(batch, dtype=np.int32), (k, 1))}
        self.batch = sharding.place_batch(rows, model.mesh, leading=1)
        marks = [time.perf_counter()]
        arguments = parts.abstract_state, self.batch, self.data
        lowered = parts.program(0).lower(*arguments)
        marks.append(time.perf_counter())
        self.step = lowered.compile()
        marks.append(time.perf_counter())
        self.state = jax.block_until_ready(parts.create_state())
        marks.append(time.perf_counter())
        self.flops = matrix_flops(parts.program(0), *arguments) / k
        memory = self.step.memory_analysis()
        trace, compilation, creation = (round(b - a, 2) for a, b in zip(marks, marks[1:]))
        self.details = {"trace_s": trace, "compile_s": compilation, "create_state_s": creation,
                        "temporaries_gb": round(memory.temp_size_in_bytes / 1e9, 2)}

    def __call__(self):
        self.state, metrics = self.step(self.state, self.batch, self.data)
        return metrics.loss


def kernels(ours: OurStep, folder: str, steps: int = 4) -> None:
    """Traces `steps` steps, and sums the time of each kernel on the device into folder/kernels.txt."""
    import collections
    from pathlib import Path
    with jax.profiler.trace(folder):
        for _ in range(steps):
            loss = ours()
        jax.block_until_ready(loss)
    found = sorted(Path(folder).rglob("*.xplane.pb"))[-1]
    total, count = collections.Counter(), collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(found)).planes:
        if "GPU" not in plane.name.upper():
            continue
        for line in plane.lines:
            if "Stream" in line.name:
                for event in line.events:
                    total[event.name] += event.duration_ns
                    count[event.name] += 1
    whole = sum(total.values()) or 1
    rows = [f"{ns / whole:7.2%} {ns / steps / 1e6:9.3f} ms {count[name] / steps:7.1f} {name[:160]}"
            for name, ns in total.most_common()]
    Path(folder, "kernels.txt").write_text("\n".join(rows) + "\n")
    print(f"kernels take {whole / steps / 1e6:.2f} ms a step, {sum(count.values()) / steps:,.0f} of them")


if __name__ == "__main__":
    main()
