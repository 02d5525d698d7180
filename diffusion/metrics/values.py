"""Computes the metrics from the statistics of two sets of examples, each with its error and the error's method."""
import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from diffusion.errors import ConfigError, DataError
from diffusion.metrics.features import GROUPS, Collected
from diffusion.metrics.frechet import Statistics, distances_to, frechet_distance, span_of
from diffusion.metrics.kernel import kernel_distance
from diffusion.metrics.neighbours import duplicates, manifolds, memorisation, nearest
from diffusion.metrics.recognition import accuracy, deviation_ratio, identity
from diffusion.metrics.reference import Reference

NAMES = ("fd", "sfd", "is", "kid", "prdc", "duplicates", "memorisation", "nearest", "accuracy", "identity",
         "deviation_within_class")
MINIMUM = 2 * GROUPS  # examples: two in each part
MINIMUM_KEPT = 6      # features: the fifth nearest other one is needed
KERNEL_ROWS = 1000    # of a subset, the usual number for KID


@dataclass(frozen=True, kw_only=True)
class Value:
    value: float
    error: float | None = None
    error_is: str = ""
    images: int              # examples of each set
    extrapolated: float | None = None  # to infinitely many examples
    held_out: float | None = None      # the same figure of real examples outside the training set


def check_names(names: Sequence[str], measures: Collection[str] = ()) -> None:
    """Raises ConfigError for a name that is neither in NAMES nor a measure of the data's own."""
    known = (*NAMES, *measures)
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"There is no metric {unknown[0]!r}. Choose of: {', '.join(known)}.")
    if not names:
        raise ConfigError(f"No metric was given. Choose of: {', '.join(known)}.")


def lacking(names: Sequence[str], outputs: Collection[str], *, spatial: bool, kept: bool, held_out: bool,
            labels: bool = False, pictures: int = 1) -> dict[str, str]:
    """The metrics of `names` that cannot be computed, each with its missing requirement.

    outputs: of the extractor. spatial, kept: whether the reference has such features, which published statistics lack.
    held_out: whether images outside the training set were given. labels: whether samples have labels. pictures: of an
    example.
    """
    image_features = "" if kept else "the reference's images, but only their statistics were given"
    classes = "" if "recognised" in outputs else "the extractor classifier, trained on the data's own classes"
    needs = {"sfd": "spatial features, which this extractor does not have" if "spatial" not in outputs else
                    "" if spatial else "spatial features of the reference, which its statistics do not have",
             "is": "" if "logits" in outputs else "class probabilities, which this extractor does not have",
             "kid": image_features, "prdc": image_features, "duplicates": image_features, "nearest": image_features,
             "accuracy": classes or ("" if labels else "samples of asked labels: a model with classes"),
             "identity": classes or ("" if pictures > 1 else "examples of several pictures: videos"),
             "deviation_within_class": classes or image_features,
             "memorisation": image_features or ("" if held_out else "images that were not trained on: --held_out, or "
                                                "config.evaluate.held_out")}
    return {name: needs[name] for name in names if needs.get(name)}


def check_possible(lacks: dict[str, str]) -> None:
    """Raises ConfigError if a requested metric cannot be computed (`lacking`)."""
    if lacks:
        raise ConfigError("; ".join(f"The metric {name!r} needs {need}" for name, need in lacks.items())
                          + ". Leave it out of the metrics (--metrics, or config.evaluate.metrics).")


def check_counts(generated: int, reference: int | None, keep: int, dimension: int) -> None:
    """Raises DataError for sets, or ConfigError for `keep`, that are too small for any number."""
    if (least := min(generated, reference or generated)) < MINIMUM:
        raise DataError(f"{least} images are too few: the covariance and its error need {MINIMUM} at least, and more "
                        f"than the {dimension} features to mean anything.")
    if keep < MINIMUM_KEPT:
        raise ConfigError(f"{keep} features are too few to keep (--keep, config.evaluate.keep): {MINIMUM_KEPT} "
                          "or more.")


def metric_values(names: Sequence[str], called: Callable[[str], str], fake: Collected, reference: Reference,
           held_out: Reference | None = None) -> dict[str, Value]:
    """The metrics `names`, of NAMES or `fake.measured`. called: `Extractor.called`. held_out: examples outside the
    training set, whose own figures stand beside. Raises ConfigError for a metric that the sets do not allow, DataError
    for too few examples."""
    check_names(names, fake.measured)
    seen = fake.recognised
    outputs = ("pool", *["spatial"] * bool(fake.spatial), *["logits"] * bool(fake.score),
               *["recognised"] * (seen is not None))
    check_possible(lacking(names, outputs, spatial=bool(reference.spatial), kept=reference.kept is not None,
                           held_out=held_out is not None and len(held_out.kept) > 0, labels=fake.labels is not None,
                           pictures=1 if seen is None else seen.shape[1]))
    check_counts(fake.count, reference.count, MINIMUM_KEPT, len(reference.statistics.mean))
    found: dict[str, Value] = {}
    if "fd" in names:
        found[called("fd")] = distance(fake, reference.statistics)
    if "sfd" in names:
        found[called("sfd")] = Value(
            value=frechet_distance(fake.spatial, reference.spatial), images=fake.count)
    if "is" in names:
        mean, std = fake.score
        found[called("score")] = Value(
            value=mean, error=std, error_is="standard deviation over 10 parts", images=fake.count)
    if reference.kept is not None:
        n = min(len(fake.kept), len(reference.kept))
        a, b = fake.kept[:n], reference.kept[:n]
        if "kid" in names:
            size = KERNEL_ROWS if n > KERNEL_ROWS else n // 2
            mean, error = kernel_distance(a, b, size=size)
            found[called("kd")] = Value(value=mean, error=error, images=n,
                                        error_is=f"standard error over 100 subsets of {size:,}")
        if "prdc" in names:
            for name, value in manifolds(b, a).items():  # density is a mean of counts, not a share
                error = None if name == "density" else float(np.sqrt(value * (1 - value) / n))
                found[name] = Value(value=value, error=error, error_is="binomial" if error is not None else "",
                                    images=n)
        if "duplicates" in names:
            found["duplicates"] = Value(value=duplicates(a, b), images=n)
            found["repeated_bytes"] = Value(value=fake.repeated / fake.count, images=fake.count)
        if "memorisation" in names:
            n = min(len(b), len(held_out.kept))
            for name, value in memorisation(a, b, held_out.kept).items():
                found[name] = Value(value=value, images=n)
    unseen = held_out if held_out is not None and held_out.recognised is not None else reference
    among = functools.partial(of_examples, names, called, reference=reference, unseen=unseen,
                              labelled=fake.labels is not None)
    beside = {} if held_out is None else among(held_out)
    for name, value in among(fake).items():
        if name not in found:  # those without a special error
            error, error_is = None, ""
            if name in fake.measured:
                x = fake.measured[name]
                error, error_is = float(np.std(x, ddof=1) / np.sqrt(len(x))), "standard error"
            elif name in (called("accuracy"), called("identity")):
                error, error_is = float(np.sqrt(value * (1 - value) / len(fake.kept))), "binomial"
            found[name] = Value(value=value, error=error, error_is=error_is,
                                images=fake.count if name in fake.measured else len(fake.kept))
    return {name: replace(value, held_out=beside.get(name)) for name, value in found.items()}


def of_examples(names: Sequence[str], called: Callable[[str], str], x: Collected | Reference, *, reference: Reference,
                unseen: Reference, labelled: bool) -> dict[str, float]:
    """The metrics among `names` that have a figure for any examples x, samples or real ones, as far as x has what they
    need. unseen: real examples, if possible such as the classifier was not trained on, since it draws together those of
    a class that it knows. labelled: whether labels count."""
    labels, seen, found = x.labels if labelled else None, x.recognised, {}
    if isinstance(x, Reference):  # samples have these with their errors
        if "fd" in names:
            found[called("fd")] = frechet_distance(x.statistics, reference.statistics)
        if "sfd" in names and x.spatial and reference.spatial:
            found[called("sfd")] = frechet_distance(x.spatial, reference.spatial)
        if "is" in names and x.score:
            found[called("score")] = x.score[0]
    if "nearest" in names:
        found[called("nearest")] = float(np.median(nearest(x.kept, reference.kept)))
    if "accuracy" in names and seen is not None and labels is not None:
        found[called("accuracy")] = accuracy(seen, labels)
    if "identity" in names and seen is not None:
        found[called("identity")] = identity(seen, labels)
    if "deviation_within_class" in names and seen is not None:
        found[called("deviation_within_class")] = deviation_ratio(x.kept, seen, unseen.kept, unseen.recognised)
    return found | {name: float(np.mean(x.measured[name])) for name in names if name in x.measured}


def distance(fake: Collected, reference: Statistics) -> Value:
    """The Frechet distance, its standard error by the jackknife over parts of the samples, and its limit for many
    samples by a line in 1/n through nested parts (Chong & Forsyth 2020, "Effectively Unbiased FID")."""
    total, groups = fake.sums, fake.groups
    found = total.statistics()
    span = span_of(found.covariance, fake.count)
    without = distances_to(reference, [(total - group).statistics() for group in groups], span)
    error = np.sqrt((GROUPS - 1) / GROUPS * np.sum((np.array(without) - np.mean(without)) ** 2))
    nested, sums = [], groups[0]
    for group in groups[1:]:
        sums = sums + group
        nested.append(sums)
    nested = nested[GROUPS // 2 - 2:]
    line = np.polyfit([1 / s.count for s in nested], distances_to(reference, [s.statistics() for s in nested], span), 1)
    return Value(value=frechet_distance(found, reference), error=float(error),
                 error_is="jackknife over 10 parts of the samples", images=fake.count, extrapolated=float(line[1]))


def rank_notes(generated: int, reference: int | None, dimension: int, called: str = "image") -> list[str]:
    """Notes on ranks that are allowed but known to give poor estimates."""
    return [f"{count:,} {name} {called}s give a covariance of rank {count - 1:,} of {dimension:,}: the Frechet "
            "distance depends mostly on their number. Papers take 50,000."
            for name, count in (("generated", generated), ("reference", reference)) if count and count <= dimension]


def as_json(found: dict[str, Value]) -> dict[str, dict]:
    return {name: {key: x for key, x in asdict(value).items() if x not in (None, "")} for name, value in found.items()}


def lines(found: dict[str, dict]) -> str:
    """The metrics as lines "name: value +/- error"."""
    return "\n".join(f"{name}: {row['value']:.6g}" + (f" +/- {row['error']:.2g}" if "error" in row else "")
                     + (f" (n -> infinity: {row['extrapolated']:.6g})" if "extrapolated" in row else "")
                     + (f" (real held-out: {row['held_out']:.6g})" if "held_out" in row else "")
                     for name, row in found.items())
