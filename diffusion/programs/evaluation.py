"""Evaluates samples of a model against the data of its config, for the programs `evaluate` and `train`. The protocol
is part of each number."""
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffusion import build
from diffusion.build.rules import require_key
from diffusion.data.sources import Source, gather_examples
from diffusion.errors import ConfigError, DataError
from diffusion.io.files import atomic_write
from diffusion.io.processes import is_primary, primary_says, print_once
from diffusion.io.progress import Progress
from diffusion.kinds.base import Spec
from diffusion.metrics import extractors, record, values
from diffusion.metrics.features import ROWS, Collected, Measure, collect, digest_of, outputs
from diffusion.metrics.images import BATCH, ahead
from diffusion.metrics.reference import Reference
from diffusion.parallel import sharding


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The parts shared by all evaluations of a config: the extractor, the data's features and own metrics, and the
    sampler, which is compiled once for all seeds and checkpoints."""
    config: ConfigDict
    model: build.Model
    drawing: "SampleStream"
    extractor: extractors.Extractor
    reference: Reference
    held_out: Reference | None
    measures: Mapping[str, Measure]

    def __call__(self, params: Any, seed: int, sampling: dict) -> tuple[dict, np.ndarray]:
        """(the metric record of config.evaluate.images samples of the seed, the first config.sample.preview of them).
        sampling: the record's entry about them."""
        c, drawn, called = self.config.evaluate, self.drawing, self.model.spec.called
        began = time.perf_counter()
        with Progress(c.images, unit=called) as progress:
            fake = collect(self.extractor, drawn.batches(params, seed, c.images), c.images, mesh=self.model.mesh,
                           keep=c.keep, measures=self.measures, called=called, report=progress.update)
        fake = with_labels(fake, drawn.labels)
        extracted = time.perf_counter()
        found = values.metric_values(c.metrics, self.extractor.called, fake, self.reference, self.held_out)
        seconds = {"sampling and features": round(extracted - began, 1),  # the device alternates between both
                   "metrics": round(time.perf_counter() - extracted, 1)}
        made = {"metrics": values.as_json(found), "protocol": self.protocol(),
                "samples": {"seed": seed, "evaluations": drawn.evaluations, "sha256": fake.digest, **sampling},
                "versions": record.versions(), "devices": self.model.mesh.size, "seconds": seconds}
        return made, np.stack(drawn.first)

    @property
    def titles(self) -> tuple[str, ...]:
        """Of the first config.sample.preview samples."""
        return build.titles(self.config, self.model, self.drawing.preview)

    def protocol(self) -> dict:
        """The settings that must agree for two numbers to be comparable."""
        c, e, reference = self.config, self.extractor, self.reference
        cut = {} if (crop := c.data.get("crop", "none")) == "none" else {"crop": crop}
        return {"extractor": e.name, "weights_sha256": e.weights, "resize": e.resize, "images": c.evaluate.images,
                "kept": c.evaluate.keep, "rounding": self.model.spec.rounding,
                "reference": {"dataset": c.data.dataset if c.data.name == "tfds" else c.data.name,
                              "split": c.data.split, "images": reference.count, "sha256": reference.digest,
                              "shape": list(reference.shape), **cut}}


class SampleStream:
    """Samples as a stream of finished values: ROWS per device at a time, so that neither config.sample.batch_size nor
    the number of devices changes a bit. Keeps the newest stream's mean number of `evaluations` per sample, its `first`
    config.sample.preview samples, and the `labels` of all, if the model has classes."""

    def __init__(self, config: ConfigDict, model: build.Model):
        self.sampler, self.model = build.sampler(config, model), model
        self.conditions = build.conditions(config, model)
        self.steps_of = build.grid_of(config, model)
        self.evaluations, self.preview = 0.0, config.sample.preview
        self.first: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def batches(self, params: Any, seed: int, count: int) -> Iterator[np.ndarray]:
        self.evaluations, self.first, self.labels, steps = 0.0, [], [], self.steps_of(params)
        rows, total = ROWS * sharding.batch_shards(self.model.mesh), 0.0
        for first in range(0, count, rows):
            indices = np.arange(first, first + rows, dtype=np.int32)
            cond, number = self.conditions(indices), min(rows, count - first)
            drawn = self.sampler(params, steps, seed, indices, cond=cond)
            if "label" in cond:
                self.labels.append(np.asarray(cond["label"])[:number])
            total += drawn.evaluations * number
            self.evaluations = total / (first + number)
            batch = self.model.spec.finish(drawn.within(self.model.spec.bounds)[:number])
            self.first.extend(batch[:self.preview - len(self.first)])
            yield batch


def load_extractor(config: ConfigDict) -> extractors.Extractor:
    """The extractor of config.evaluate. Raises ConfigError for any wrong key of that section."""
    c, kind, spec = config.evaluate, build.extractor(config), build.spec(config)
    require_key(c.images >= values.MINIMUM, "evaluate.images", c.images, f"must be {values.MINIMUM} or more; papers "
         "take 50,000.")
    require_key(c.reference_images >= 0, "evaluate.reference_images", c.reference_images, "must not be negative; 0: "
                "all.")
    require_key(c.keep >= values.MINIMUM_KEPT, "evaluate.keep", c.keep, f"must be {values.MINIMUM_KEPT} or more.")
    values.check_names(c.metrics, measures_of(config))
    extractor = extractors.load(c.extractor, c.weights, mode=c.resize, other_weights=c.other_weights, kind=kind,
                                pictures=getattr(spec, "pictures", None))
    if hasattr(extractor, "of_values"):  # it takes the pictures that it was trained on
        extractor = extractor.of_values(spec.finish(np.zeros((1, *spec.shape), np.float32)), config.data.kind,
                                        config.network.num_classes)
    found = outputs(extractor)
    pictures = found["recognised"].shape[1] if "recognised" in found else 1
    values.check_possible(values.lacking(
        c.metrics, found, spatial="spatial" in found, kept=True, held_out=bool(c.held_out),
        labels=config.network.num_classes > 0, pictures=pictures))
    return extractor


def measures_of(config: ConfigDict) -> dict[str, Measure]:
    """The metrics of config.evaluate that the kind of data or the source brings (`measures`), by name. The data are
    opened only if one is asked for."""
    if not (others := [name for name in config.evaluate.metrics if name not in values.NAMES]):
        return {}
    found = {**getattr(build.spec(config), "measures", {}), **getattr(build.source(config), "measures", {})}
    values.check_names(others, found)
    return {name: found[name] for name in others}


def with_labels(found: Collected, labels: Sequence[np.ndarray]) -> Collected:
    """With the labels [b] of batches of the examples, of those whose features are kept, if a classifier saw them."""
    if found.recognised is None or not labels:
        return found
    return replace(found, labels=np.concatenate(labels)[:len(found.kept)].astype(np.int32))


def prepare(config: ConfigDict, model: build.Model, extractor: extractors.Extractor, cache: Path) -> Evaluation:
    """Reads the data and computes its features, or loads the features of exactly the same images from `cache`. Raises
    ConfigError or DataError before anything is sampled."""
    c, drawing, measures = config.evaluate, SampleStream(config, model), measures_of(config)
    source = build.training_images(config)
    values.check_counts(c.images, min(c.reference_images or len(source), len(source)), c.keep,
                        outputs(extractor)["pool"].shape[-1])
    if c.held_out:
        other = config.copy_and_resolve_references()
        other.data.split = c.held_out
        unseen = build.training_images(other)  # which may be missing
    found = features_of(config, model, extractor, source, cache)
    held_out = features_of(other, model, extractor, unseen, cache, measures) if c.held_out else None
    for note in values.rank_notes(c.images, found.count, len(found.statistics.mean), model.spec.called):
        print_once(f"note: {note}")
    return Evaluation(config=config, model=model, drawing=drawing, extractor=extractor, reference=found,
                      held_out=held_out, measures=measures)


def features_of(config: ConfigDict, model: build.Model, extractor: extractors.Extractor, source: Source,
                cache: Path, measures: Mapping[str, Measure] = MappingProxyType({})) -> Reference:
    """The features of config.evaluate.reference_images examples, evenly over the source, and their measures, cached
    with a digest of the examples."""
    c, spec, labels = config.evaluate, model.spec, []
    count = min(c.reference_images or len(source), len(source))
    chosen = np.arange(count) * len(source) // count  # the first ones of a sorted set would be of a few classes

    def read():
        for i in range(0, count, BATCH):
            rows = gather_examples(source, chosen[i:i + BATCH])
            labels.append(rows.get("label", np.zeros(0, np.int32)))
            yield rows[spec.field]

    def batches():
        labels.clear()
        return ahead(read())

    key = hashlib.sha256(json.dumps([config.data.to_dict(), count, extractor.weights, extractor.resize,
                                     c.keep, *[sorted(measures)] * bool(measures)]).encode()).hexdigest()[:12]
    file = cache / f"{extractor.name}_{key}.npz"
    kept = None
    if file.exists():
        try:
            kept = Reference.from_file(file, extractor)
        except (ConfigError, DataError) as error:
            print_once(f"note: the features are computed again: {error}")
    if primary_says(kept is not None and kept.digest == digest_of(batches(), count)):
        return kept or Reference.from_file(file, extractor)
    print_once(f"features of {count:,} {spec.called}s of {config.data.split} by {extractor.name}")
    with Progress(count, unit=spec.called) as progress:
        found = Reference.from_features(with_labels(
            collect(extractor, batches(), count, mesh=model.mesh, keep=c.keep, measures=measures, called=spec.called,
                    shuffled=True, report=progress.update), labels))
    note_classes(np.concatenate(labels), c.keep, spec.called)
    if is_primary():
        atomic_write(file, lambda out: found.write(out, extractor))
    return found


def note_classes(labels: np.ndarray, keep: int, called: str) -> None:
    """Prints a note if the first `keep` real examples lack classes, as those of folders by class may."""
    some, all_of = (len(np.unique(part)) for part in (labels[:keep], labels))
    if some < all_of:
        print_once(f"note: the first {keep:,} of {len(labels):,} {called}s, which config.evaluate.keep keeps, are of "
                   f"{some} of {all_of} classes: metrics by single examples see no others. Set it to {len(labels):,}.")


def sampling(config: ConfigDict, model: str | Path, step: int | None) -> dict:
    """The record's entry about the drawing of its samples; step: of the run's checkpoint."""
    return {"model": str(model), "checkpoint": step, "weights": config.sample.weights, "ema": config.ema.to_dict(),
            "sampler": config.sample.to_dict(), "network_dtype": config.network.get("dtype", "float32")}


LOWER_IS_BETTER = ("fid", "fd", "sfid", "sfd", "kid", "kd", "duplicates", "repeated", "closer")


def average_records(records: Sequence[dict]) -> dict:
    """One record of several seeds: their mean with its standard error, all values, and the best, which is never given
    without the others."""
    if len(records) == 1:
        return records[0]
    first, seeds = records[0], [r["samples"]["seed"] for r in records]
    metrics = {}
    for name, row in first["metrics"].items():
        found = [r["metrics"][name]["value"] for r in records]
        metrics[name] = row | {"value": float(np.mean(found)), "values": found, "best": min(found) if
                               name.startswith(LOWER_IS_BETTER) else max(found),
                               "error": float(np.std(found, ddof=1) / np.sqrt(len(found))),
                               "error_is": f"standard error over {len(found)} seeds"}
        if "extrapolated" in row:
            metrics[name]["extrapolated"] = float(np.mean([r["metrics"][name]["extrapolated"] for r in records]))
    return first | {"metrics": metrics, "samples": first["samples"] | {"seed": seeds, "sha256": [
        r["samples"]["sha256"] for r in records]}}


def write(out: Path, found: dict, first: np.ndarray, spec: Spec, titles: Sequence[str] = ()) -> None:
    """Writes the record to a file of the folder, next to a picture of its first samples with their titles; prints it,
    and plots it with the folder's other records."""
    at = found["samples"]["checkpoint"]
    if is_primary():
        from diffusion.io import evaluation_plots  # imports matplotlib: half a second that only its users pay
        name = f"step_{at:08d}" if at is not None else "model"
        file = out / f"{name}_{found['protocol']['extractor']}_{digest(found)}.json"
        spec.preview(file.with_suffix(".png"), first, titles[:len(first)])
        atomic_write(file, json.dumps(found, indent=1) + "\n")
        evaluation_plots.plot_records(records_in(out), out / "evaluations.png")
        print_once(values.lines(found["metrics"]))
        model = f"checkpoint {at}" if at is not None else "it"
        print_once(f"over {found['protocol']['images']:,} samples of {model}; "
            f"the protocol is in {file}")


def records_in(folder: Path) -> list[dict]:
    """The metric records in the folder. An unreadable one is left out, with a note, since the numbers took hours."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            found.append(record.read_record(file))
        except DataError as error:
            print_once(f"note: {error}")
    return found


def digest(found: dict) -> str:
    """The digest of protocol and sampling: two evaluations with the same name are equal."""
    return hashlib.sha256(json.dumps([found["protocol"], found["samples"]["sampler"], found["samples"]["seed"]],
                                     sort_keys=True).encode()).hexdigest()[:8]
