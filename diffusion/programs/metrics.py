"""Compares two sets of images, or two metric records.

  python -m diffusion.metrics SAMPLES REFERENCE --extractor=efficientnet_lite0
  python -m diffusion.metrics samples.npz cifar10-32x32.npz --extractor=inception --weights=pt_inception-2015-12-05.pth
  python -m diffusion.metrics SAMPLES REFERENCE --metrics=fd,kid --json=record.json
  python -m diffusion.metrics --compare first.json second.json

A set is a folder of image files or an npz with arr_0, uint8 [N, H, W, C]. REFERENCE may also be statistics: an npz with
mu and sigma, published or written by --save_reference.
"""
import argparse
import json
import sys
from pathlib import Path

from diffusion import runtime
from diffusion.errors import ConfigError, DataError
from diffusion.io import npz
from diffusion.io.files import atomic_write, check_can_be_written
from diffusion.io.pictures import by
from diffusion.io.progress import Progress
from diffusion.io.reading import expanded
from diffusion.metrics import extractors, features, record, values
from diffusion.metrics import images as image_sets
from diffusion.metrics.reference import Reference
from diffusion.metrics.resize import MODES
from diffusion.parallel.sharding import make_mesh

USUAL = ("fd", "is", "kid", "prdc", "duplicates")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m diffusion.metrics", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("samples", type=expanded, help="a folder or an npz; with --compare a record")
    p.add_argument("reference", type=expanded, help="a folder, an npz or statistics; with --compare a record")
    p.add_argument("--extractor", default="inception", help=f"{', '.join(extractors.EXTRACTORS)} (%(default)s)")
    p.add_argument("--weights", default="", help="the weights' file or URL; default: an installed package's file")
    p.add_argument("--other_weights", action="store_true", help="allow weights that are not the published ones")
    p.add_argument("--resize", default="", help=f"{', '.join(MODES)}; default: the extractor's own")
    p.add_argument("--metrics", help=f"of {', '.join(values.NAMES)}; default: {','.join(USUAL)}, as "
                   "far as the extractor and the reference allow")
    p.add_argument("--held_out", type=expanded, help="images outside the training set, for memorisation, and "
                   "whose own figures stand beside")
    p.add_argument("--images", type=int, help="use only this many images of each set, the first ones")
    p.add_argument("--keep", type=int, default=10_000, help="features for kid, prdc, duplicates (%(default)s)")
    p.add_argument("--json", type=expanded, help="write the record: the numbers and everything that they depend on")
    p.add_argument("--save_reference", type=expanded, help="write the reference's statistics for later use")
    p.add_argument("--compare", action="store_true", help="show two records side by side, if their protocols agree")
    p.add_argument("--force", action="store_true", help="with --compare: even if their protocols differ")
    return p


def main(args: argparse.Namespace) -> None:
    (compare if args.compare else measure)(args)


def compare(args: argparse.Namespace) -> None:
    """Prints two records side by side."""
    a, b = (record.read_record(path) for path in (args.samples, args.reference))
    if not args.force:
        record.check_same_protocol(a, b)
    print(record.side_by_side(a, b))
    for key, (x, y) in record.differences(a, b).items():
        print(f"not alike: {key}: {x} and {y}")


def measure(args: argparse.Namespace) -> None:
    """Prints the metrics of two sets; checks everything before computing the features, which takes minutes."""
    values.check_names(asked(args))
    for path in (args.json, args.save_reference):
        if path:
            check_can_be_written(path)
    if args.images is not None and args.images < values.MINIMUM:
        raise ConfigError(f"--images={args.images} is too few: {values.MINIMUM} or more; papers take 50,000.")
    sets = {what: path for what, path in (("generated", args.samples), ("reference", args.reference),
                                          ("held-out", args.held_out)) if path is not None}
    statistics = is_statistics(args.reference)
    opened = {what: image_sets.open_images(path) for what, path in sets.items()
              if what != "reference" or not statistics}
    counts = {what: min(count, args.images or count) for what, (count, _, _) in opened.items()}
    runtime.check_devices()
    extractor = extractors.load(args.extractor, args.weights, mode=args.resize, other_weights=args.other_weights)
    reference = Reference.from_file(args.reference, extractor) if statistics else None
    shapes = {what: tuple(shape) for what, (_, shape, _) in opened.items()}
    check_shapes(shapes | ({"reference": reference.shape} if reference and reference.shape else {}))
    names = chosen(args, extractor, reference)
    values.check_counts(min(counts.values()), reference and reference.count, args.keep,
                        features.outputs(extractor)["pool"].shape[-1])
    mesh = make_mesh(-1, 1)

    def found(what: str) -> features.Collected:
        print(f"features of the {counts[what]:,} {what} images in {sets[what]}", file=sys.stderr)
        with Progress(counts[what], unit="image") as progress:
            return features.collect(extractor, opened[what][2], counts[what], mesh=mesh, keep=args.keep,
                                    shuffled=what != "generated", report=progress.update)

    reference = reference or Reference.from_features(found("reference"))
    if args.save_reference:
        atomic_write(args.save_reference, lambda file: reference.write(file, extractor))
    held_out = Reference.from_features(found("held-out")) if "held-out" in opened else None
    fake = found("generated")
    for note in values.rank_notes(fake.count, reference.count, len(reference.statistics.mean)):
        print(f"note: {note}", file=sys.stderr)
    metrics = values.as_json(values.metric_values(names, extractor.called, fake, reference, held_out))
    print(values.lines(metrics))
    if args.json:
        protocol = {"extractor": extractor.name, "weights_sha256": extractor.weights, "resize": extractor.resize,
                    "images": fake.count, "kept": args.keep, "reference": {
                        "images": reference.count, "sha256": reference.digest,
                        "shape": reference.shape and list(reference.shape)}}
        atomic_write(args.json, json.dumps({
            "metrics": metrics, "protocol": protocol, "samples": {"from": str(args.samples), "sha256": fake.digest},
            "versions": record.versions()}, indent=1) + "\n")


def asked(args: argparse.Namespace) -> list[str]:
    return list(USUAL) if args.metrics is None else [name.strip() for name in args.metrics.split(",")]


def chosen(args: argparse.Namespace, extractor: extractors.Extractor, reference: Reference | None) -> list[str]:
    """The metrics to compute. reference: None if it is images. Raises ConfigError for a requested metric that is
    impossible."""
    outputs = features.outputs(extractor)
    names = asked(args)
    lacks = values.lacking(names, outputs, kept=reference is None or reference.kept is not None, held_out=bool(
        args.held_out), spatial="spatial" in outputs if reference is None else bool(reference.spatial))
    if args.metrics is not None:
        values.check_possible(lacks)
    return [name for name in names if name not in lacks]


def check_shapes(shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises DataError unless all shapes equal that of the generated images."""
    for what, shape in shapes.items():
        if shape != shapes["generated"]:
            raise DataError(f"The generated images are {by(shapes['generated'])} and the {what} images are {by(shape)} "
                            "(height x width x channels). Nothing is resized here before the extractor: the method "
                            "is a choice.")


def is_statistics(path: Path) -> bool:
    """Whether a path is an npz of mu and sigma, not of images."""
    path = expanded(path)
    return path.suffix == ".npz" and not path.is_dir() and "mu" in npz.headers(path)


def start() -> None:
    """The command."""
    runtime.check_flags()
    main(parser().parse_args())
