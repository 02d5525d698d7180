"""Accounts for a config's training step as a GPU would run it, compiled without the GPU.

    python -m benchmarks.gpu_program --config=configs/cifar10.py --batch=256 --gpu=h100

Needs JAX's CUDA wheels (pip install -e .[cuda]; no driver) and some minutes: XLA then chooses no kernels by their time,
so that products may be slower and fused otherwise than on the device. Prints the kernels by kind and by part of the
network, the bytes that they read and write, the temporary memory, and the time and MFU that these give at 70 % of the
peak FLOP/s, the whole bandwidth and 2 microseconds a kernel. `--mode=plan --topology=h100:8` has several devices.
"""
import argparse
import json
import time
from pathlib import Path

from diffusion.planning import gpus


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_program", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--batch", type=int, default=None, help="Default: the config's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--gpu", choices=tuple(gpus.GPUS), default="h100")
    parser.add_argument("--rows", type=int, default=20, help="of the tables")
    parser.add_argument("--tiny", action="store_true", help="a network small enough for a test")
    parser.add_argument("--out", default=None, help="a JSON file to write")
    parser.add_argument("--text", default=None, help="a file for the compiled program's text")
    args = parser.parse_args()
    gpus.prepare()  # before JAX is imported
    report = account_of(args)
    print(table(report, args.rows))
    if args.out:
        Path(args.out).write_text(json.dumps(report, indent=1) + "\n")


def account_of(args: argparse.Namespace) -> dict:
    """Compiles the step and counts it."""
    from benchmarks.train_step import prepared
    from diffusion import build
    from diffusion.planning import chips, flops, kernels, roofline
    from diffusion.programs import plan
    config = build.measured(prepared(args.config, args.batch, args.dtype, args.tiny), assume=True)
    config.train.steps_per_dispatch = 1
    model = build.model(config, devices=gpus.devices_of(args.gpu))
    function, *arguments = plan.training_program(config, model, build.training_step(config, model, None))
    began = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    seconds, text = time.perf_counter() - began, compiled.as_text()
    if args.text:
        Path(args.text).write_text(text)
    found, count = kernels.account(kernels.kernels(text), args.rows), flops.matrix_flops(function, *arguments)
    chip, costs = chips.CHIPS[args.gpu], roofline.costs(compiled, [], flops=count, kernels=found)
    bound = roofline.seconds(costs, chip, peak_share=0.7)["step"]
    return {"config": args.config, "batch": config.train.batch_size, "dtype": args.dtype, "gpu": args.gpu,
            "compile_s": round(seconds, 1), "flops": count,
            "temporaries": compiled.memory_analysis().temp_size_in_bytes, "seconds": bound,
            "mfu": count / bound / chip.flops, **found._asdict(), "largest": [one._asdict() for one in found.largest]}


def table(report: dict, rows: int) -> str:
    lines = [f"{report['config']}, batch {report['batch']}, {report['dtype']}, for one {report['gpu']}: "
             f"{report['flops'] / 1e12:.3g} TFLOP, {report['kernels']:,} kernels, {report['bytes'] / 1e9:.1f} GB read "
             f"and written, {report['outside'] / 1e9:.1f} GB of it outside of products; "
             f"{report['temporaries'] / 1e9:.2f} GB of temporaries; compiled in {report['compile_s']} s",
             f"at 70 % of the peak, the whole bandwidth and 2 us a kernel: {1e3 * report['seconds']:.1f} ms, MFU "
             f"{report['mfu']:.0%}"]
    for title, name in (("by kind", "by_kind"), ("outside of products, by part", "by_part")):
        lines.append(f"{title}:")
        lines += [f"  {size / 1e9:8.2f} GB {number:6,}  {key}" for key, (number, size) in
                  list(report[name].items())[:rows]]
    lines.append("the largest outside of products:")
    lines += [f"  {one['bytes'] / 1e9:8.2f} GB x {one['times']}  {one['name']}  {one['source']}"
              for one in report["largest"][:rows]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
