"""Trains a small classifier of a config's data, as the extractor of its metrics.

  python -m diffusion.metrics.train_classifier --config=configs/digits.py --out=classifier.npz
  python -m diffusion.main --config=configs/digits.py --mode=evaluate --config.evaluate.extractor=classifier \\
      --config.evaluate.weights=classifier.npz --config.evaluate.held_out=test \\
      --config.evaluate.metrics=fd,is,nearest,accuracy,deviation_within_class

It learns the labels of config.data.split from pictures of the examples (images as they are, log-mel spectrograms of
sound, single frames of video), and its accuracy is measured on --held_out. --config.KEY=VALUE sets a key.
"""
import argparse
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffusion import build, config_flags, program, runtime
from diffusion.command_words import check_text, expanded
from diffusion.config import override
from diffusion.data import pipeline, sources
from diffusion.errors import ConfigError, DataError
from diffusion.io.files import atomic_write, check_can_be_written
from diffusion.io.progress import Progress, duration
from diffusion.kinds.base import Spec
from diffusion.metrics import fit_classifier
from diffusion.metrics.classifier import Classifier
from diffusion.metrics.fit_classifier import Batch

EPOCHS, LEAST, MOST = 20, 300, 3000  # more would draw the training examples of a class together in its features
READ = 200  # held-out examples read at a time
SHIFTS = {"audio": (0.03, 0.1)}  # by kind: sounds begin at any time, and voices differ in pitch


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m diffusion.metrics.train_classifier", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("--config", required=True, help="the config file; --config.KEY=VALUE sets one of its keys")
    p.add_argument("--out", required=True, help="the file to write, ending in .npz")
    p.add_argument("--held_out", default="test", metavar="SPLIT", help="the split on which the accuracy is measured "
                   "(%(default)s)")
    p.add_argument("--steps", type=int, help=f"training steps; default: {EPOCHS} epochs, but {LEAST:,} .. {MOST:,} "
                   "steps")
    p.add_argument("--batch_size", type=int, default=64, help="examples a step (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="fixes every draw (%(default)s)")
    p.add_argument("--shift", help="the largest random shift of a training picture, as shares of its height and width, "
                   "such as 0.03,0.1, the default for audio; otherwise 0,0")
    return p


def main(words: list[str]) -> None:
    """Trains, measures and writes the classifier that the command line describes."""
    for word in words:
        check_text(word)
    source, given, rest = config_flags.split(expanded(words))
    args = parser().parse_args([*([] if source is None else [f"--config={source}"]), *rest])
    config_flags.load_plugins(given)
    config = config_flags.with_given(config_flags.load(source, given), given)
    out = Path(args.out).expanduser()
    if out.suffix != ".npz":
        raise ConfigError(f"--out={args.out} must end in .npz.")
    check_can_be_written(out)
    runtime.check_devices()
    with config_flags.naming(source, config, given):
        made, count = train(config, steps=args.steps, batch_size=args.batch_size, seed=args.seed,
                            held_out=args.held_out, shift=args.shift)
    atomic_write(out, made.write)
    print(f"accuracy on {count:,} held-out examples ({args.held_out}): {made.accuracy:.4f}")
    print(f"{out}: a classifier of {made.classes} classes, SHA-256 of its weights {made.digest[:16]}..., "
          f"{duration(time.perf_counter() - program.STARTED)}")


def train(config: ConfigDict, *, steps: int | None, batch_size: int, seed: int, held_out: str, shift: str | None = None
          ) -> tuple[Classifier, int]:
    """(the classifier, the number of held-out examples). steps: by the number of examples if None. Raises ConfigError
    or DataError before training."""
    for flag, value, least in (("steps", steps, 2), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise ConfigError(f"--{flag}={value} is too small: {least} or more.")
    spec = build.spec(config)
    if not hasattr(spec, "pictures"):
        raise ConfigError(f"config.data.kind = {config.data.kind!r} has no pictures to classify: a classifier takes "
                          "images, sound or video.")
    config = override(config, {"network.num_classes": 0})  # labels are the data's, whatever the model takes
    source = build.training_images(config, labelled=True)
    unseen = build.training_images(override(config, {"data.split": held_out}), labelled=True)
    classes = source.num_classes
    if classes < 2 or "label" not in source[0]:
        raise DataError(f"The data of config.data ({config.data.name}) have one class: there is nothing to tell apart. "
                        "Give labels, such as folders by class.")
    if not len(unseen):
        raise DataError(f"The split {held_out!r} of --held_out has no examples.")
    rows = sources.gather_examples(source, [0])
    steps = steps or min(max(EPOCHS * len(source) // batch_size, LEAST), MOST)
    height, width = spec.pictures(rows[spec.field]).shape[2:4]
    shares = shift_of(shift, config.data.kind)
    with Progress(steps, unit="step", images_per_unit=batch_size) as progress:
        def report(step: int, loss: float) -> None:
            progress.update(1, **({} if np.isnan(loss) else {"loss": loss}))

        made = fit_classifier.fit(training_batches(spec, source, batch_size=batch_size, seed=seed,
                                                   workers=config.data.workers), steps, kind=config.data.kind,
                                  classes=classes, seed=seed, report=report,
                                  shift=(round(shares[0] * height), round(shares[1] * width)))
    score, count = fit_classifier.accuracy(made, held_out_batches(spec, unseen))
    about = {"data": config.data.to_dict(), "steps": steps, "batch_size": batch_size, "seed": seed,
             "shift": list(shares)}
    return replace(made, accuracy=score, held_out=held_out, trained=about), count


def training_batches(spec: Spec, source: sources.Source, *, batch_size: int, seed: int, workers: int
                     ) -> Iterator[Batch]:
    """Pictures and labels of the examples in the order of training, cropped at random where the kind does; of several
    pictures of an example, one at random."""
    draws = spec.draws and isinstance(source, sources.Loaded)  # else its arrays are examples already
    raw, load = (source.source, spec.load) if draws else (source, None)
    rows = pipeline.batches(raw, batch_size=batch_size, seed=seed, workers=workers, load=load)
    try:
        for step, row in enumerate(rows):
            pictures, rng = spec.pictures(row[spec.field]), np.random.Generator(np.random.Philox(
                key=np.array([seed, zlib.crc32(b"picture")], np.uint64), counter=[0, step, 0, 0]))
            yield pictures[np.arange(batch_size), rng.integers(pictures.shape[1], size=batch_size)], row["label"]
    finally:
        rows.close()


def held_out_batches(spec: Spec, source: sources.Source) -> Iterator[Batch]:
    """All pictures, and the labels, of the examples in order."""
    for first in range(0, len(source), READ):
        rows = sources.gather_examples(source, range(first, min(first + READ, len(source))))
        yield spec.pictures(rows[spec.field]), rows["label"]


def shift_of(text: str | None, kind: str) -> tuple[float, float]:
    """The shares of --shift, or the kind's own. Raises ConfigError unless they are two numbers in 0 .. 0.5."""
    if text is None:
        return SHIFTS.get(kind, (0.0, 0.0))
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != 2 or not all(0 <= share <= 0.5 for share in found):
        raise ConfigError(f"--shift={text}: give two shares, of the height and the width, in 0 .. 0.5, such as "
                          "0.03,0.1.")
    return found


def start() -> None:
    """The command."""
    runtime.check_flags()
    main(sys.argv[1:])
