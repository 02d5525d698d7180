"""Times checkpoints of a training's state, ours beside PyTorch's on arrays of the same sizes, by turns.

    python -m benchmarks.checkpoint --config=configs/cifar10.py --folder=/a/folder/on/the/disk

The rows:

    stall    what our save costs the loop: the time of a save and the steps after it, beyond the time of as many steps
             alone. They are so many that the save ends meanwhile; `steps` is the stall in steps
    save     from the call until all is on the disk, while nothing else runs
    restore  from the disk to the device

What each side does: ours writes in the background by Orbax (which flushes its files), with digests of all files, which
restore checks, and renames a finished checkpoint. PyTorch's torch.save pickles into one file, flushed by fsync;
torch.load reads it to the device. It saves within the loop: its stall is its save. Both hold the whole state:
parameters, averages and the optimizer's moments. Both read files that the system still has in memory.
"""
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.train_step import ON_DEVICE, OurStep, prepared
from diffusion.data import pipeline
from diffusion.io.checkpoint import Checkpoints


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser("checkpoint", __doc__, rounds=3)
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--batch", type=int, default=None, help="of the steps. Default: the config's")
    parser.add_argument("--ways", choices=("ours", "ours,torch"), default="ours,torch")
    parser.add_argument("--folder", default=None, help="where to write, and then delete. Default: the system's for "
                        "temporary files")
    args = parser.parse_args(argv)
    short = args.quick or args.tiny
    config = prepared(args.config, 4 if short else args.batch, "float32", args.tiny)
    report = measure.begin("checkpoint", args, config=args.config, batch=config.train.batch_size)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, Checkpoints(Path(folder, "ours"), keep=1) as written:
        ours = Ours(OurStep(config), written, config.train.batch_size)
        ways = {"save, ours": ours.save, "restore, ours": ours.restore, "stall, ours": ours.stall}
        if args.ways == "ours,torch":
            theirs = Theirs(ours.step.state, Path(folder, "theirs.pt"))
            ways |= {"save, torch": theirs.save, "restore, torch": theirs.restore}
        ours.prepare_stall()
        times = measure.in_turns(ways, rounds=1 if short else args.rounds)
    size = sum(x.nbytes for x in jax.tree.leaves(ours.step.state))
    for name, seconds in sorted(times.items()):
        what, way = name.split(", ")
        row = measure.spread(seconds) | {"bytes": size, "bytes_per_second": size / np.median(seconds)}
        if what == "stall":
            row = measure.spread(seconds) | {"steps": float(np.median(seconds)) / ours.step_seconds}
        elif way == "torch":
            row |= measure.ratio(report, times[f"{what}, ours"], seconds)
        report["rows"][name] = row
    measure.end(report, args.out)


class Ours:
    """Our checkpoints of the state of a training step."""

    def __init__(self, step: OurStep, checkpoints: Checkpoints, batch: int):
        self.step, self.checkpoints, self.count = step, checkpoints, 0
        self.data = pipeline.index_batches(ON_DEVICE, batch_size=batch, seed=0)

    def begin_save(self) -> None:
        self.count += 1
        self.checkpoints.save(self.count, self.step.state, self.data, clock={})

    def save(self) -> float:
        """Seconds of a whole save."""
        os.sync()
        began = time.perf_counter()
        self.begin_save()
        self.checkpoints.wait()
        return time.perf_counter() - began

    def restore(self) -> float:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.step.state)
        return measure.timed(lambda: self.checkpoints.restore(abstract, self.data)[0])

    def prepare_stall(self) -> None:
        """Measures how many steps a save takes."""
        measure.finished(self.step())
        self.save()
        self.step_seconds = measure.timed(self.step, 3)
        self.steps = int(self.save() / self.step_seconds) + 2

    def stall(self) -> float:
        """Seconds that steps take longer with a save."""
        os.sync()
        alone = measure.timed(self.step, self.steps) * self.steps
        began = time.perf_counter()
        self.begin_save()
        measure.timed(self.step, self.steps)
        longer = time.perf_counter() - began - alone
        self.checkpoints.wait()
        return longer


class Theirs:
    """PyTorch's files of tensors of the same shapes."""

    def __init__(self, state: Any, path: Path):
        import torch
        self.torch, self.path = torch, path
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        arrays = [np.asarray(x) for x in jax.tree.leaves(state)]
        self.state = {str(i): torch.from_numpy(np.array(x)).to(self.device) for i, x in enumerate(arrays)}

    def save(self) -> float:
        """Seconds of a whole save."""
        os.sync()
        began = time.perf_counter()
        with open(self.path, "wb") as file:
            self.torch.save(self.state, file)
            file.flush()
            os.fsync(file.fileno())
        return time.perf_counter() - began

    def restore(self) -> float:
        return measure.timed(lambda: self.torch.load(self.path, map_location=self.device, weights_only=True)["0"])


if __name__ == "__main__":
    main()
