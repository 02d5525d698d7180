"""Computes the metrics from the statistics of two sets of images, each with its error and the error's method."""
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from diffusion.errors import ConfigError, DataError
from diffusion.metrics.features import GROUPS, Collected
from diffusion.metrics.frechet import Statistics, distances_to, frechet_distance, span_of
from diffusion.metrics.kernel import kernel_distance
from diffusion.metrics.neighbours import duplicates, manifolds, memorisation
from diffusion.metrics.reference import Reference

NAMES = ("fd", "sfd", "is", "kid", "prdc", "duplicates", "memorisation")
MINIMUM = 2 * GROUPS  # images: two in each part
MINIMUM_KEPT = 6      # features: the fifth nearest other one is needed
KERNEL_ROWS = 1000    # of a subset, the usual number for KID


@dataclass(frozen=True, kw_only=True)
class Value:
    value: float
    error: float | None = None
    error_is: str = ""
    images: int              # of each set
    extrapolated: float | None = None  # to infinitely many images


def check_names(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in NAMES]:
        raise ConfigError(f"There is no metric {unknown[0]!r}. Choose of: {', '.join(NAMES)}.")
    if not names:
        raise ConfigError(f"No metric was given. Choose of: {', '.join(NAMES)}.")


def lacking(names: Sequence[str], outputs: Collection[str], *, spatial: bool, kept: bool, held_out: bool
            ) -> dict[str, str]:
    """The metrics of `names` that cannot be computed, each with its missing requirement.

    outputs: of the extractor. spatial, kept: whether the reference has such features, which published statistics lack.
    held_out: whether images outside the training set were given.
    """
    image_features = "" if kept else "the reference's images, but only their statistics were given"
    needs = {"sfd": "spatial features, which this extractor does not have" if "spatial" not in outputs else
                    "" if spatial else "spatial features of the reference, which its statistics do not have",
             "is": "" if "logits" in outputs else "class probabilities, which this extractor does not have",
             "kid": image_features, "prdc": image_features, "duplicates": image_features,
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
           held_out: np.ndarray | None = None) -> dict[str, Value]:
    """The metrics `names`, of NAMES. called: `Extractor.called`. held_out: features [K, D] of images outside the
    training set. Raises ConfigError for a metric that the sets do not allow, DataError for too few images."""
    check_names(names)
    check_possible(lacking(names, ("pool", *["spatial"] * bool(fake.spatial), *["logits"] * bool(fake.score)),
                           spatial=bool(reference.spatial), kept=reference.kept is not None,
                           held_out=held_out is not None and len(held_out) > 0))
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
            n = min(len(b), len(held_out))
            for name, value in memorisation(a, b, held_out).items():
                found[name] = Value(value=value, images=n)
    return found


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


def rank_notes(generated: int, reference: int | None, dimension: int) -> list[str]:
    """Notes on ranks that are allowed but known to give poor estimates."""
    return [f"{count:,} {name} images give a covariance of rank {count - 1:,} of {dimension:,}: the Frechet distance "
            "depends mostly on their number. Papers take 50,000."
            for name, count in (("generated", generated), ("reference", reference)) if count and count <= dimension]


def as_json(found: dict[str, Value]) -> dict[str, dict]:
    return {name: {key: x for key, x in asdict(value).items() if x not in (None, "")} for name, value in found.items()}


def lines(found: dict[str, dict]) -> str:
    """The metrics as lines "name: value +/- error"."""
    return "\n".join(f"{name}: {row['value']:.6g}" + (f" +/- {row['error']:.2g}" if "error" in row else "")
                     + (f" (n -> infinity: {row['extrapolated']:.6g})" if "extrapolated" in row else "")
                     for name, row in found.items())
