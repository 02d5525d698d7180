"""Whether training steps give the same bits twice: in one process, from compiled programs that are loaded, and anew.

    python -m benchmarks.repeatability --config=configs/digits.py --out=repeatability.json

A resumed run is bit-exact on a device only if these are: the same program on the same state twice (kernels that add in
changing orders are not), and the program that a second process loads from the cache of the first or compiles anew (a
compiler that chooses kernels by timing them may choose others). Each of --settings is a set of XLA flags.
"""
import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS = {"default": "", "deterministic": "--xla_gpu_deterministic_ops=true",
            "excluded": "--xla_gpu_exclude_nondeterministic_ops=true"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repeatability", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--settings", default=",".join(SETTINGS), help="Default: all, of which CPUs need the first")
    parser.add_argument("--tiny", action="store_true", help="a network small enough for a test")
    parser.add_argument("--out", default=None, help="a JSON file to write")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # what each process does
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_twice(args.config, args.steps, args.tiny)))
        return
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        names = args.settings.split(",")
        first = {name: start(args, name, f"{folder}/{name}") for name in names}
        first = {name: finish(process) for name, process in first.items()}
        others = {(name, way): start(args, name, f"{folder}/{name}" if way == "loaded" else f"{folder}/{name}_{way}")
                  for name in names for way in ("loaded", "anew")}
        others = {key: finish(process) for key, process in others.items()}
    for name in names:
        report[name] = {"in one process": first[name]["first"] == first[name]["second"],
                        **{way: first[name]["first"] == others[name, way]["first"] for way in ("loaded", "anew")},
                        "losses": first[name]["losses"]}
        print(f"{name}: " + ", ".join(f"{way}: {'equal to the bit' if report[name][way] else 'NOT equal'}"
                                      for way in ("in one process", "loaded", "anew")), flush=True)
    if args.out:
        Path(args.out).write_text(json.dumps(report, indent=1) + "\n")


def start(args: argparse.Namespace, setting: str, cache: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.repeatability", "--one", f"--config={args.config}",
               f"--steps={args.steps}", *(["--tiny"] if args.tiny else [])]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {SETTINGS[setting]}".strip()
    variables = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                 "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": flags}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | variables)


def finish(process: subprocess.Popen) -> dict:
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a process ended with {process.returncode}: see its error above")
    return json.loads(said.splitlines()[-1])


def run_twice(config: str, steps: int, tiny: bool) -> dict:
    """Digests of the state after `steps` steps from the same first state, twice, and the losses of the first."""
    import jax
    import numpy as np

    from benchmarks.train_step import OurStep, prepared
    step = OurStep(prepared(config, None, "float32", tiny))
    start, found = jax.device_get(step.state), {}
    shardings = jax.tree.map(lambda x: x.sharding, step.state)
    for name in ("first", "second"):
        step.state, losses = jax.device_put(start, shardings), []
        for _ in range(steps):
            losses.append(np.asarray(step()).ravel())
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(jax.device_get(step.state)):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        found[name] = digest.hexdigest()
        found.setdefault("losses", np.concatenate(losses).astype(float).tolist())
    return found


if __name__ == "__main__":
    main()
