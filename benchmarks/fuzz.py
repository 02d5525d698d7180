"""Searches for inputs that neither work nor are refused: random combinations of config keys, and random file damage.

    python -m benchmarks.fuzz --seconds=600
    python -m benchmarks.fuzz --case=config:17

A config is built, trained for a step and sampled from, on random images of 8x8; all three must give finite numbers, or
fail with an error that a user can correct. A damaged file must be read or refused likewise. Case n of a kind depends
only on n, so that --case repeats it. The exit code is 1 if anything was found.
"""
import argparse
import contextlib
import functools
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from diffusion import DiffusionPipeline, build, pretrained
from diffusion import config as config_lib
from diffusion.config_values import Key
from diffusion.data import sources
from diffusion.errors import DiffusionError
from diffusion.families import BY_SELECTOR, FAMILIES
from diffusion.io import pictures, run_folder
from diffusion.parallel import sharding

LONGEST = 120  # seconds after which a case counts as hanging
TINY = {"data.size": 8, "data.channels": 1, "network.channels": 8, "network.multipliers": (1,), "network.blocks": 1,
        "network.groups": 4, "network.attention_resolutions": (), "network.middle": "none", "train.batch_size": 4,
        "train.duration": "4 steps", "optimizer.warmup": "1 steps", "ema.half_life": "16 images", "sample.steps": 3,
        "sample.batch_size": 2, "likelihood.steps": 3, "process.steps": 20}
OTHERS = {"optimizer.decay": ["constant", "cosine", "linear"], "train.nonfinite": ["stop", "skip"],
          "loss.space": ["eps", "x0", "v", "score", "velocity", "mean", "edm", "edm_vp", "x0_and_eps"]}
# Keys of the machine and of other programs, which do not affect a step or a chain.
LEFT_ALONE = ("data.", "evaluate.", "mesh.", "train.", "sample.guidance.guide", "network.channels", "network.blocks",
              "network.depth")
NUMBERS = [0.0, 1.0, -1.0, 0.5, 2.0, 1e-3, 0.1, 3.0, 7.0, 20.0, 80.0]
STRANGE = [None, [], {}, "x", "", -1, 0, 1.5, 10**30, True, [None], {"a": []}, "NaN", float("inf")]


class Hang(Exception):
    """A case took longer than LONGEST."""


def drawn_config(rng: random.Random) -> dict[str, object]:
    """Draws one to three members and up to three of their numbers and switches; sometimes a key of another member."""
    selectors = [family for family in FAMILIES if family.name not in ("data", "optimizer")]
    changes = {family.selector: rng.choice(sorted(family.members())) for family in
               rng.sample(selectors, rng.randint(1, 3))}
    if rng.random() < 0.3:
        changes |= {"network.num_classes": rng.choice([1, 3]), "network.label_dropout": rng.choice([0.0, 0.1])}
    try:
        known = config_lib.keys_of(config_lib.override(config_lib.base(), changes))
    except DiffusionError:  # members that exclude one another: `try_config` must refuse them, too
        return changes
    known = config_lib.known() if rng.random() < 0.1 else known
    others = [key for key in known if key not in BY_SELECTOR and not key.startswith(LEFT_ALONE)]
    for key in rng.sample(others, rng.randint(0, 3)):
        changes[key] = drawn_value(rng, known[key])
    return changes


def drawn_value(rng: random.Random, key: Key) -> object:
    if choices := OTHERS.get(key.name, key.choices):
        return rng.choice(list(choices))
    if key.kind is bool:
        return not key.default
    if key.kind is int:
        return rng.choice([0, 1, 2, 3, 5])
    if key.kind is float:
        return rng.choice([*NUMBERS, *((key.default * 0.5, key.default * 2) if key.default else ())])
    return key.default


def tiny_config(changes: dict[str, object]) -> ConfigDict:
    """A small config with these keys, without keys of TINY that its members do not have."""
    members = {key: value for key, value in changes.items() if key in BY_SELECTOR}
    known = config_lib.keys_of(config_lib.override(config_lib.base(), members))
    return config_lib.override(config_lib.base(), {key: value for key, value in TINY.items() if key in known} | changes)


def try_config(number: int) -> str:
    """"works" or "refused". Raises anything else."""
    changes = drawn_config(random.Random(f"config {number}"))
    print(f"config:{number}", changes, flush=True)
    try:
        config = tiny_config(changes)
        model = build.model(config)
        parts = build.training_step(config, model, 64)
        generate = build.generate(config, model)
    except DiffusionError:
        return "refused"
    rng, size = np.random.default_rng(number), config.train.batch_size
    label = rng.integers(0, max(model.num_classes, 1), (1, size)).astype(np.int32)
    batch = {"image": rng.integers(0, 256, (1, size, *model.shape), np.uint8), "label": label,
             "position": np.arange(size, dtype=np.int32)[None]}
    state, metrics = parts.program(0)(parts.create_state(), sharding.place_batch(batch, model.mesh, leading=1), None)
    if not np.isfinite(metrics.loss).all():
        raise AssertionError(f"the first loss is {metrics.loss}")
    x = np.concatenate(list(generate(state.params["online"], 0, 0, 3)))
    if not np.isfinite(x).all():
        raise AssertionError(f"{np.isnan(x).sum()} of {x.size} sampled values are not finite")
    return "works"


def readers(folder: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    """Small files of each kind that the programs read, and their readers."""
    config = tiny_config({"network.multipliers": (1, 1)})
    model = build.model(config)
    state = build.training_step(config, model, 64).create_state()
    pipe = DiffusionPipeline(config, jax.device_get(state.params["online"]))
    pipe.save_pretrained(folder / "exported")
    run = folder / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        run_folder.open_run(run, config.to_dict(), adopt=config_lib.adopt_dict)

    def opened():
        loaded = pretrained.load(folder / "exported")
        return loaded.params(build.model(loaded.config).abstract_params)

    def reopened():
        return run_folder.open_run(run, config.to_dict(), adopt=config_lib.adopt_dict, read_only=True)

    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    for name in ("picture.png", "picture.jpg", "picture.webp", "picture.gif", "picture.tif"):
        Image.fromarray(image).save(folder / name)
    (folder / "idx").mkdir()
    for name, magic, body in (("train-images-idx3-ubyte", (8, 3, [6, 8, 8]), np.zeros((6, 8, 8), np.uint8)),
                              ("train-labels-idx1-ubyte", (8, 1, [6]), np.arange(6, dtype=np.uint8))):
        head = bytes([0, 0, *magic[:2]]) + np.array(magic[2], ">u4").tobytes()
        (folder / "idx" / name).write_bytes(head + body.tobytes())
    found = {"picture" + path.suffix: (path, lambda path=path: pictures.read_picture(path, (8, 8, 1)))
             for path in folder.glob("picture.*")}
    found |= {path.name: (path, lambda: sources.idx(str(folder / "idx"), "train"))
              for path in (folder / "idx").iterdir()}
    found |= {f"exported/{path.relative_to(folder / 'exported')}": (path, opened)
              for path in (folder / "exported").rglob("*") if path.suffix in (".json", ".safetensors")}
    found |= {f"run/{path.name}": (path, reopened) for path in run.iterdir() if path.suffix == ".json"}
    return found


def damage(path: Path, rng: random.Random) -> str:
    """Changes the file, and describes the change."""
    data = path.read_bytes()
    ways = ["cut", "flip", "empty", "longer", "folder"]
    if path.suffix == ".json":
        ways += ["value"] * 8 + ["deep", "bytes"]
    way = rng.choice(ways)
    if way == "cut":
        path.write_bytes(data[:rng.randrange(max(len(data), 1))])
    elif way == "flip":
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(bytes(damaged))
    elif way == "empty":
        path.write_bytes(b"")
    elif way == "longer":
        path.write_bytes(data + bytes(rng.randrange(256) for _ in range(rng.randint(1, 64))))
    elif way == "folder":
        path.unlink()
        path.mkdir()
    elif way == "deep":
        path.write_text("[" * 100_000)
    elif way == "bytes":
        path.write_bytes(bytes(rng.randrange(256) for _ in range(200)))
    else:
        tree, value = json.loads(data), rng.choice(STRANGE)
        *where, last = rng.choice(list(_places(tree)))
        node = functools.reduce(lambda node, key: node[key], where, tree)
        node[last] = value
        path.write_text(json.dumps(tree))
        return f"{'.'.join(map(str, [*where, last]))} = {value!r}"
    return way


def _places(tree, prefix: tuple = ()) -> Iterator[tuple]:
    for key, value in (tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield (*prefix, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*prefix, key))


class Files:
    """One set of whole files; each case damages one."""

    def __init__(self, folder: Path):
        self.files = readers(folder)
        self.whole = {name: path.read_bytes() for name, (path, _) in self.files.items()}

    def try_file(self, number: int) -> str:
        """"works" or "refused". Raises anything else."""
        rng = random.Random(f"file {number}")
        name = rng.choice(sorted(self.files))
        path, read = self.files[name]
        try:
            print(f"file:{number}", name, damage(path, rng), flush=True)
            with contextlib.redirect_stdout(io.StringIO()):
                read()
            return "works"
        except DiffusionError:
            return "refused"
        finally:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            path.write_bytes(self.whole[name])


def within_time(run: Callable[[int], str], number: int) -> str | BaseException:
    def stop(*_):
        raise Hang(f"longer than {LONGEST} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST)
    try:
        return run(number)
    except Exception as error:  # a finding
        traceback.print_exc(limit=-6)
        return error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(seconds: float, first: int = 0, cases: Sequence[str] = ()) -> tuple[Counter, dict[str, BaseException]]:
    """The number of each outcome, and the findings by case: `cases`, then from `first` on until time is up, ten files
    per config."""
    counts, found, started = Counter(), {}, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        kinds = {"config": try_config, "file": files.try_file}

        def numbers():
            yield from (case.split(":") for case in cases)
            number = first
            while time.perf_counter() - started < seconds:
                yield "config", number
                yield from (("file", 10 * number + i) for i in range(10))
                number += 1

        for kind, number in numbers():
            outcome = within_time(kinds[kind], int(number))
            if isinstance(outcome, str):
                counts[f"{kind} {outcome}"] += 1
            else:
                counts[f"{kind} found"] += 1
                found[f"{kind}:{number}"] = outcome
            if kind == "config":
                jax.clear_caches()
    return counts, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--case", action="append", help="run only this case, config:N or file:N; may be repeated")
    args = parser.parse_args()
    counts, found = fuzz(0 if args.case else args.seconds, args.first, args.case or ())
    print("\n" + ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())))
    for case, error in found.items():
        print(f"FOUND by --case={case}: {type(error).__name__}: {str(error)[:300]}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
