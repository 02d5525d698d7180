"""Times training steps of several models: dispatched one by one, compiled into one, and mapped over a leading axis.

    python -m benchmarks.packing --config=configs/digits.py --models=3

The three alternate in one process; the result is the median ratio over the rounds. The models differ in their seeds;
when mapped, all have the first seed, since a seed is a constant of the step.
"""
import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import build
from diffusion.parallel import sharding
from experiments.pack import joint
from experiments.table import load_config


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    parts = []
    for seed in range(args.models):
        config = load_config(args.config)
        config.seed = seed
        parts.append(build.training(config, build.model(config)))
    mesh = sharding.make_mesh(-1, 1)
    functions = [p.program(0) for p in parts]
    batches = [sharding.place_batch(jax.tree.map(lambda x: np.stack([x]), next(p.data)), mesh, leading=1)
               for p in parts]
    datasets = [p.dataset for p in parts]
    together = jax.jit(joint(functions), donate_argnums=0)
    mapped = jax.jit(jax.vmap(functions[0]), donate_argnums=0)

    def stack(trees):
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    def created():
        return [p.create_state() for p in parts]

    ways = {
        "separate": (lambda states: [f(*one)[0] for f, one in zip(functions, zip(states, batches, datasets))],
                     created()),
        "together": (lambda states: [state for state, _ in together(states, batches, datasets)], created()),
        "mapped": (lambda states, b=stack(batches), d=stack(datasets): mapped(states, b, d)[0], stack(created())),
    }
    seconds = {name: [] for name in ways}
    for _ in range(args.rounds + 1):
        for name, (step, states) in ways.items():
            began = time.perf_counter()
            states = jax.block_until_ready(step(states))
            seconds[name].append(time.perf_counter() - began)
            ways[name] = step, states
    gap = max(float(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).max())
              for a, b in zip(*(jax.tree.leaves(ways[name][1]) for name in ("separate", "together"))))
    print(f"largest difference after {args.rounds + 1} steps, separate and together: {gap:.3g}")
    print("first step, compilation included: " + ", ".join(f"{name} {t[0]:.1f} s" for name, t in seconds.items()))
    for name, t in seconds.items():
        ratio = np.array(t[1:]) / np.array(seconds["separate"][1:])
        print(f"{name}: {1e3 * np.median(t[1:]):.1f} ms for {args.models} steps, {np.median(ratio):.3f} of separate "
              f"({ratio.min():.3f} to {ratio.max():.3f})")


if __name__ == "__main__":
    main()
