"""Times 3x3 convolutions by Winograd's filtering beside XLA's direct ones, by turns: values and both gradients.

    python -m benchmarks.convolutions --shapes=16,32,32,128,128

Ours are the functions of networks/winograd.py that a network on one CPU takes, which go through the batch in parts. The
FLOPs are those of the direct sum, so that filtering may exceed the machine's peak. `error` is relative to XLA's largest
number. There is no peer but XLA.
"""
import functools
import time

import jax
import numpy as np

from benchmarks import measure
from diffusion.networks import winograd


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser("convolutions", __doc__, rounds=7)
    parser.add_argument("--shapes", default="16,32,32,128,128;16,32,32,256,128;16,16,16,256,256;128,28,28,32,32",
                        help="batch, height, width, channels of input and output; separated by ;")
    args = parser.parse_args(argv)
    shapes = [tuple(map(int, shape.split(","))) for shape in args.shapes.split(";")]
    if args.quick or args.tiny:
        shapes, args.rounds = [(4, 8, 8, 32, 32)], 1
    report = measure.begin("convolutions", args, shapes=[",".join(map(str, shape)) for shape in shapes])
    for shape in shapes:
        measure_shape(report, *shape, rounds=args.rounds)
    measure.end(report, args.out)


def direct(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def measure_shape(report: dict, batch: int, height: int, width: int, channels: int, out: int, *, rounds: int) -> None:
    """Adds the rows of both ways for one shape, of the value and of the two gradients together."""
    normal = np.random.default_rng(0).standard_normal
    arrays = [jax.device_put(normal(shape, np.float32)) for shape in (
        (batch, height, width, channels), (3, 3, channels, out), (batch, height, width, out))]
    flops = 18 * batch * height * width * channels * out
    steps = max(1, round(1e10 / flops))
    both = {"value": (lambda f: lambda x, kernel, dy: f(x, kernel), 1),
            "gradients": (lambda f: lambda x, kernel, dy: jax.vjp(f, x, kernel)[1](dy), 2)}
    for what, (of, passes) in both.items():
        ways, compiled = {}, {}
        for name, f in (("filtered", winograd.convolve), ("direct", direct)):
            began = time.perf_counter()
            program = jax.jit(of(f)).lower(*arrays).compile()
            ways[name] = functools.partial(program, *arrays)
            compiled[name] = time.perf_counter() - began
        found, right = (jax.tree.leaves(ways[name]()) for name in ("filtered", "direct"))
        error = max(float(abs(a - b).max() / abs(b).max()) for a, b in zip(found, right))
        for name, seconds in measure.by_turns(ways, rounds=rounds, steps=steps).items():
            row = measure.spread(seconds) | {"flops_per_second": passes * flops / np.median(seconds),
                                             "compile_s": round(compiled[name], 2)}
            report["rows"][f"{batch}x{height}x{width}x{channels} -> {out}, {what}: {name}"] = row | (
                {"error": error} if name == "filtered" else {})


if __name__ == "__main__":
    main()
