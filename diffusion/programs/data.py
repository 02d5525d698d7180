"""Shows the data of a config as training sees them: a picture, classes, sizes, mean and speed."""
import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffusion.programs import shared_flags

if TYPE_CHECKING:
    from diffusion.data.sources import Source
    from diffusion.kinds.base import Spec

INSTEAD: dict[str, str] = {}
MEASURED = 1000   # examples whose sizes, mean and deviation are given
SHOWN = 64        # examples in the picture
_SECONDS = 4.0    # of reading, for the speed


def declare_flags(values: flags.FlagValues) -> None:
    shared_flags.declare_path("out", "The folder to write. Default: beside the run folder, RUN_data.", values)


def prepare_process(values: flags.FlagValues) -> None:
    pass


def run_program(config: ConfigDict, workdir: Path, values: flags.FlagValues) -> None:
    # Beside the run folder: a new run needs an empty one.
    look(config, Path(values.out or workdir.with_name(f"{workdir.name}_data")))


def look(config: ConfigDict, out: Path) -> dict[str, Any]:
    """Prints what config.data holds and writes it to data.json in `out`, beside data.png, a picture of examples as
    training would see them. Returns the content of data.json. Raises the errors of opening and reading the data."""
    from diffusion import build
    from diffusion.io.files import atomic_write, check_can_be_written
    from diffusion.io.processes import is_primary, print_once
    check_can_be_written(out / "data.png")
    config = build.measured(config)
    kind, opened = build.spec(config), build.source(config)
    source, count = build.training_images(config), len(opened)
    rng = np.random.Generator(np.random.Philox(key=config.seed))
    chosen = np.sort(rng.choice(count, min(MEASURED, count), replace=False))
    found = {"split": config.data.split, "examples": count, "classes": classes_of(opened),
             "sizes": sizes_of(kind, opened, chosen), **measures_of(kind, source, chosen),
             "examples_per_second": speed_of(config, kind, source), "workers": config.data.workers}
    if is_primary():
        out.mkdir(parents=True, exist_ok=True)
        batch = batch_of(source, np.sort(rng.choice(count, min(SHOWN, count), replace=False)))
        titles = [f"class {label}" for label in batch["label"]] if len(found["classes"]) > 1 else ()
        kind.preview(out / "data.png", kind.finish(np.asarray(kind.prepare(batch).x0)), titles)
        atomic_write(out / "data.json", json.dumps(found, indent=2) + "\n")
    print_once("\n".join(lines(found, kind, config)) + f"\nA picture of {min(SHOWN, count)} of them is {out}/data.png.")
    return found


def batch_of(source: "Source", indices: np.ndarray) -> dict[str, np.ndarray]:
    from diffusion.data.sources import gather_examples
    return gather_examples(source, indices)


def classes_of(opened: "Source") -> dict[str, int]:
    """Examples of each class by its name, or by its number; {} where that would need every example to be read."""
    labels = getattr(opened, "labels", getattr(opened, "arrays", {}).get("label"))
    if labels is None or opened.num_classes < 2:
        return {}
    if (rows := getattr(opened, "rows", None)) is not None:  # labels of a whole table
        labels = labels[rows]
    names = getattr(opened, "class_names", ()) or range(opened.num_classes)
    counts = np.bincount(labels, minlength=len(names))
    return {str(name): int(number) for name, number in zip(names, counts)}


def sizes_of(kind: "Spec", opened: "Source", chosen: np.ndarray) -> dict[str, int]:
    """How many of the chosen examples have each size, as they are stored, the most frequent first."""
    if not hasattr(kind, "describe"):
        return {}
    return dict(Counter(kind.describe(opened[int(i)]) for i in chosen).most_common())


def measures_of(kind: "Spec", source: "Source", chosen: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard deviation of x_0, as training sees it, of each channel (the last axis), over chosen
    examples."""
    total, square, number = 0.0, 0.0, 0
    for first in range(0, len(chosen), 100):
        x = np.asarray(kind.prepare(batch_of(source, chosen[first:first + 100])).x0, np.float64)
        x = x.reshape(-1, x.shape[-1])
        total, square, number = total + x.sum(0), square + (x * x).sum(0), number + len(x)
    mean = total / number
    deviation = np.sqrt(np.maximum(square / number - mean * mean, 0))
    return {name: [float(f"{value:.4g}") for value in values] for name, values in
            (("mean", mean), ("deviation", deviation))}


def speed_of(config: ConfigDict, kind: "Spec", source: "Source") -> float:
    """Examples that this machine reads and decodes in a second, with the workers of the config."""
    from diffusion.data import pipeline, sources
    raw, load = sources.drawn(source, kind)
    size = min(config.train.batch_size, 256)
    batches = pipeline.batches(raw, batch_size=size, seed=config.seed, workers=config.data.workers, load=load)
    try:
        next(batches)  # starts the workers
        began, read = time.perf_counter(), 0
        while time.perf_counter() - began < _SECONDS and read < 100_000:
            read += len(next(batches)["position"])
        return float(f"{read / (time.perf_counter() - began):.3g}")
    finally:
        batches.close()


def lines(found: dict[str, Any], kind: "Spec", config: ConfigDict) -> list[str]:
    """The text for people."""
    shape = "x".join(map(str, kind.shape))
    text = [f"{found['examples']:,} {kind.called}s in {found['split']}, which training sees as {shape}"]
    if classes := found["classes"]:
        shown = ", ".join(f"{name} {number:,}" for name, number in list(classes.items())[:10])
        text.append(f"{len(classes):,} classes: {shown}" + ", ..." * (len(classes) > 10))
        if empty := [name for name, number in classes.items() if not number]:
            text.append(f"note: {len(empty):,} classes have no example in this split, {empty[0]} among them")
    if sizes := found["sizes"]:
        shown = ", ".join(f"{name} ({number:,})" for name, number in list(sizes.items())[:8])
        text.append(f"stored as: {shown}" + f" and {len(sizes) - 8:,} other forms" * (len(sizes) > 8))
    for name in ("mean", "deviation"):
        text.append(f"{name} of x_0 by channel: {', '.join(f'{value:g}' for value in found[name][:8])}")
    text.append(f"{found['examples_per_second']:,g} examples a second are read, with data.workers={found['workers']}")
    if found["examples"] < config.train.batch_size:
        text.append(f"note: a batch ({config.train.batch_size:,}) is larger than the set: it holds examples twice")
    return text
