"""Times the training program's loop beside bare calls of the compiled step that it makes, by turns.

    python -m benchmarks.loop_overhead --config=configs/digits.py

`loop`: the program of --mode=train in a temporary run folder, from the next batch to the row of the log, with the
config's `train.log_every` and no checkpoint or sample meanwhile. `bare`: the same compiled program on a copy of the
state, with the same first batch each time. The loop stands still while bare steps are timed, and the other way round.
`overhead_percent` is the median over the rounds of the loop's time beyond that of the bare steps.

A data set that has to be prepared is replaced by --images drawn pictures, unless --data_dir names the folder of one.
There is no peer: diffusers and PyTorch have no loop.
"""
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import data, measure
from benchmarks.train_step import prepared
from diffusion.programs import train
from diffusion.train.interrupts import Interrupts


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser("loop_overhead", __doc__, rounds=7)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--batch", type=int, default=None, help="Default: the config's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=100, help="dispatches of a round")
    parser.add_argument("--images", type=int, default=2048, help="drawn for a data set that has to be prepared")
    parser.add_argument("--data_dir", default=None, help="the folder of the real one")
    args = parser.parse_args(argv)
    rounds, steps = (1, 3) if args.quick or args.tiny else (args.rounds, args.steps)
    config = prepared(args.config, args.batch or (4 if args.quick else None), args.dtype, args.tiny)
    report = measure.begin("loop_overhead", args, config=args.config, batch=config.train.batch_size, dtype=args.dtype,
                           steps=steps, log_every=config.train.log_every)
    far = f"{10**6 * config.train.steps_per_dispatch} steps"
    config.train.duration = config.train.sample_every = config.train.checkpoint_every = far
    with tempfile.TemporaryDirectory() as folder, Interrupts() as interrupts:
        if args.data_dir:
            config.data.dir = args.data_dir
        else:
            config = data.with_data(config, folder, args.images)
        loop = Loop(train.training(config, Path(folder, "run"), time.perf_counter(), interrupts))
        times = measure.by_turns({"bare": loop.bare, "loop": loop}, rounds=rounds, steps=steps)
        loop.training.close()
    for name, seconds in times.items():
        report["rows"][name] = measure.spread(seconds) | {
            "images_per_second": config.train.batch_size * config.train.steps_per_dispatch / np.median(seconds)}
    if not report["busy"]:
        more = np.array(times["loop"]) / np.array(times["bare"]) - 1
        report["rows"]["loop"]["overhead_percent"] = 100 * float(np.median(more))
    measure.end(report, args.out)


class Loop:
    """The loop of a training, one dispatch a call, and its bare step."""

    def __init__(self, training: Any):
        self.training = training
        step, state, *others = next(training)
        self.pending, self.step, self.others = (step, state, *others), step, others
        self.state = jax.tree.map(lambda x: x.copy(), state)

    def __call__(self) -> Any:
        """Makes the step that the loop asks for, as `loop.run_training` does, and lets it run on to the next."""
        step, *arguments = self.pending
        with jax.transfer_guard("disallow"):
            reply = step(*arguments)
        self.pending = self.training.send(reply)
        return reply[1].loss

    def bare(self) -> Any:
        self.state, metrics = self.step(self.state, *self.others)
        return metrics.loss


if __name__ == "__main__":
    main()
