"""Times the command of a training from its start to its first step, with an empty and a filled compilation cache.

    python -m benchmarks.startup --config=configs/digits.py
    python -m benchmarks.startup --config=configs/cifar10.py --images=50000 -- --config.train.batch_size=16

Each start is a process that runs `python -m diffusion.main --config=... --workdir=...`, and the flags after --, in a
temporary folder: `cold` with an empty cache, then `warm` with the cache that it left. It ends at the first step. It
notes when the program's own functions and JAX's compilations begin and end; a moment counts for the first of these:

    create_state  making the first state, with its own trace and compilation
    compile       XLA's other compilations, or the reading of its cache
    trace         other traces, from Python to a program that XLA compiles
    imports       of all modules, wherever they occur
    data          reading the data set
    build         the rest of making model, data and step
    first_step    the rest from the state to the end of the first step
    other         the rest: Python's start, flags, the run folder, the devices

A data set that has to be prepared is replaced by --images drawn pictures, unless --data_dir names the folder of one.
There is no peer: other codebases of diffusion have no command with the same parts.
"""
import builtins
import dataclasses
import functools
import json
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = ("create_state", "compile", "trace", "imports", "data", "build", "first_step")
EVENTS = {"/jax/core/compile/backend_compile_duration": "compile",
          "/jax/core/compile/jaxpr_trace_duration": "trace",
          "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace"}
CALLS = {"diffusion.build": {"model": "build", "generate": "build", "training": "build"},
         "diffusion.data.pipeline": {"to_arrays": "data"}}  # module: function: phase
Interval = tuple[str, float, float]  # phase, begin and end by time.perf_counter(), one clock for all processes


def main(argv: list[str] | None = None) -> None:
    environment = dict(os.environ)  # as the user set it
    from benchmarks import data, measure
    from benchmarks.train_step import TINY
    from experiments.table import load_config
    parser = measure.parser("startup", __doc__, rounds=3)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--images", type=int, default=2048, help="drawn for a data set that has to be prepared")
    parser.add_argument("--data_dir", default=None, help="the folder of the real one")
    parser.add_argument("further", nargs="*", help="flags of the command, after --")
    args = parser.parse_args(argv)
    report = measure.begin("startup", args, config=args.config, images=args.images, data_dir=args.data_dir,
                           further=" ".join(args.further) or None)
    config, starts = load_config(args.config), {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--config={args.config}", *args.further]
        if args.tiny:
            flags += [f"--config.network.{key}={value}" for key, value in TINY[config.network.name].items()]
        if config.data.name == "tfds":
            flags.append(f"--config.data.dir={args.data_dir or data.with_data(config, folder, args.images).data.dir}")
        for i in range(1 if args.quick or args.tiny else args.rounds):
            for name, found in starts.items():
                cache = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache{i}"}
                found.append(start(flags, Path(folder), environment | cache))
                print(f"{name}: {found[-1]['all']:.1f} s", flush=True)
    for name, found in starts.items():
        report["rows"][name] = measure.spread([one["all"] for one in found]) | {
            f"{phase}_s": round(statistics.median(one[phase] for one in found), 2) for phase in (*PHASES, "other")}
    measure.end(report, args.out)


def start(flags: list[str], folder: Path, environment: dict[str, str]) -> dict[str, float]:
    """Seconds of one start, by phase and in all."""
    notes, began = folder / "notes.json", time.perf_counter()
    done = subprocess.run([sys.executable, "-c", f"from benchmarks import startup; startup.observe({str(notes)!r})",
                           *flags, f"--workdir={folder}/run"], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the command failed: {done.stderr}")
    shutil.rmtree(folder / "run")
    intervals = [tuple(one) for one in json.loads(notes.read_text())]
    return shares(intervals, began, max(end for _, _, end in intervals))


def shares(intervals: list[Interval], begin: float, end: float) -> dict[str, float]:
    """The seconds from begin to end by phase, each moment for the first of PHASES that it lies in, or as "other";
    "all": all of them."""
    found = dict.fromkeys((*PHASES, "other"), 0.0) | {"all": end - begin}
    cuts = sorted({begin, end, *(min(max(t, begin), end) for _, *ends in intervals for t in ends)})
    for a, b in zip(cuts, cuts[1:]):
        here = {phase for phase, first, last in intervals if first <= a and b <= last}
        found[next((phase for phase in PHASES if phase in here), "other")] += b - a
    return found


# ---- In the process of the command -----------------------------------------------------------------------------------
def observe(notes: str) -> None:
    """Runs `python -m diffusion.main`, with this process's flags, to the first step, and writes the intervals there."""
    observer = Observer(notes)
    builtins.__import__ = observer.importing(builtins.__import__)
    sys.argv[0] = "diffusion.main"
    runpy.run_module("diffusion.main", run_name="__main__", alter_sys=True)
    raise SystemExit("the command ended before a first step")


class Observer:
    """Notes when imports, compilations and the program's functions begin and end."""

    def __init__(self, notes: str):
        self.notes, self.intervals, self.depth = notes, [], 0
        self.waiting = {"jax", "diffusion.train.interrupts", *CALLS}  # modules whose calls are not timed yet

    def note(self, phase: str, began: float) -> None:
        self.intervals.append((phase, began, time.perf_counter()))

    def timed(self, function: Callable, phase: str) -> Callable:
        """The function, noting its interval."""
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            found = function(*args, **kwargs)
            self.note(phase, began)
            if hasattr(found, "create_state"):  # a Training
                found = dataclasses.replace(found, create_state=self.timed(found.create_state, "create_state"))
            return found
        return call

    def importing(self, real: Callable) -> Callable:
        """Python's __import__, noting the outermost ones."""
        def imported(*args: Any, **kwargs: Any) -> Any:
            self.depth, began = self.depth + 1, time.perf_counter()
            try:
                return real(*args, **kwargs)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self.note("imports", began)
                    self.attach()
        return imported

    def attach(self) -> None:
        """Times what has been imported since the last call."""
        for name in self.waiting & set(sys.modules):
            module = sys.modules[name]
            if getattr(module.__spec__, "_initializing", False):  # imported by importlib, and not done
                continue
            self.waiting.remove(name)
            for function, phase in CALLS.get(name, {}).items():
                setattr(module, function, self.timed(getattr(module, function), phase))
            if name == "jax":
                import jax.monitoring
                jax.monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: self.note(
                    EVENTS[event], time.perf_counter() - seconds) if event in EVENTS else None)
            if name == "diffusion.train.interrupts":
                module.Interrupts.begin = self.finish  # which the loop calls after the first step

    def finish(self, *_: Any) -> None:
        """Writes the notes and ends the process."""
        self.note("first_step", max(end for phase, _, end in self.intervals if phase == "create_state"))
        Path(self.notes).write_text(json.dumps(self.intervals))
        os._exit(0)


if __name__ == "__main__":
    main()
