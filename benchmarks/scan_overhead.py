"""Times the overhead of the sampling loop: a chain in one dispatch against bare calls of the network.

    python -m benchmarks.scan_overhead --solver=ddim --steps=50

Matrix products of about --milliseconds stand for the network. Chains and bare calls alternate in one process; the
result is the median ratio over the rounds.
"""
import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import build
from diffusion import config as config_lib
from diffusion.core import numerics
from diffusion.core.parameterization import EPS, make_denoiser
from diffusion.samplers import base

SHAPE = (16, 32, 32, 3)


def network_of(milliseconds: float):
    """A network of matrix products x -> x, whose width is chosen by timing, and its parameters."""
    def apply(params, x, c_noise, cond, keys):
        h = x.reshape(len(x), -1) @ params["into"]
        for _ in range(4):
            h = jnp.tanh(h @ params["square"] + c_noise[:, None] / 1000)
        return (h @ params["out"]).reshape(x.shape)

    size, width = int(np.prod(SHAPE[1:])), 256
    while True:
        keys = jax.random.split(jax.random.key(0), 3)
        params = {name: jax.random.normal(key, shape) / shape[0] ** 0.5 for name, key, shape in zip(
            ("into", "square", "out"), keys, ((size, width), (width, width), (width, size)))}
        call, x = jax.jit(lambda params, x: apply(params, x, jnp.ones(len(x)), None, None)), jnp.ones(SHAPE)
        if min(timed(call, params, x) for _ in range(20)) > milliseconds / 1000:
            return apply, params
        width = int(width * 1.25)


def timed(call, *args) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call(*args))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scan_overhead", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solver", default="ddim", help="a name of config.sample.solver")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--milliseconds", type=float, default=5.0, help="least time of one call of the network")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    config = config_lib.override(config_lib.base(), {"sample.solver": args.solver, "sample.steps": args.steps})
    process = build.process(config.process)
    steps = build.grid(config.sample, process)
    solver = build.solver(config.sample)
    apply, params = network_of(args.milliseconds)
    denoiser = make_denoiser(lambda params: process, EPS, apply)
    keys = jax.random.split(jax.random.key(1), SHAPE[0])
    x = numerics.normal(keys, SHAPE[1:])

    network = jax.jit(lambda params, x, t: apply(params, x, jnp.full(len(x), t, float), None, None))
    chain = jax.jit(lambda params, x, steps: base.sample(solver, denoiser(params), steps, x, keys))
    carry, _ = jax.block_until_ready(chain(params, x, steps))
    calls = round(solver.evaluations(steps, carry))
    times = jnp.linspace(999.0, 0.0, calls)

    def bare(params, x):
        for t in times:
            x = network(params, x, t)
        return x

    timed(bare, params, x)
    pairs = np.array([(timed(chain, params, x, steps), timed(bare, params, x)) for _ in range(args.rounds)])
    ratio = pairs[:, 0] / pairs[:, 1]
    chain_ms, bare_ms = np.median(pairs, axis=0) * 1e3
    print(f"{args.solver}, {args.steps} steps, {calls} network evaluations of {bare_ms / calls:.2f} ms: the chain "
          f"takes {np.median(ratio):.3f} times\nthe bare calls (rounds: {ratio.min():.3f} to {ratio.max():.3f}), "
          f"{chain_ms:.0f} ms against {bare_ms:.0f} ms")


if __name__ == "__main__":
    main()
