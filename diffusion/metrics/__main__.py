"""Compares two sets of images, or two metric records.

  python -m diffusion.metrics SAMPLES REFERENCE --extractor=efficientnet_lite0
  python -m diffusion.metrics samples.npz cifar10-32x32.npz --extractor=inception --weights=pt_inception-2015-12-05.pth
  python -m diffusion.metrics SAMPLES REFERENCE --metrics=fd,kid --json=record.json
  python -m diffusion.metrics --compare first.json second.json

A set is a folder of image files or an npz with arr_0, uint8 [N, H, W, C]. REFERENCE may also be statistics: an npz with
mu and sigma, published or of --save_reference.
"""
import argparse
import json
import sys
from pathlib import Path

from diffusion.errors import DataError, DiffusionError
from diffusion.io.files import atomic_write
from diffusion.io.progress import Progress
from diffusion.metrics import extractors, record, values
from diffusion.metrics import images as image_sets
from diffusion.metrics.features import Collected, collect
from diffusion.metrics.reference import Reference
from diffusion.metrics.resize import MODES
from diffusion.train.sharding import make_mesh


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m diffusion.metrics", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("samples", type=Path, help="a folder or an npz; with --compare a record")
    p.add_argument("reference", type=Path, help="a folder, an npz or statistics; with --compare a record")
    p.add_argument("--extractor", default="inception", help=f"{', '.join(extractors.KINDS)} (%(default)s)")
    p.add_argument("--weights", default="", help="their file or its URL; default: that of an installed package")
    p.add_argument("--other_weights", action="store_true", help="allow weights that are not the published ones")
    p.add_argument("--resize", default="", help=f"{', '.join(MODES)}; default: the extractor's own")
    p.add_argument("--metrics", default="fd,is,kid,prdc,duplicates", help=f"of {', '.join(values.NAMES)} (%(default)s)")
    p.add_argument("--held_out", type=Path, help="images that were not trained on, for memorisation")
    p.add_argument("--images", type=int, help="only the first so many of each set")
    p.add_argument("--keep", type=int, default=10_000, help="features for kid, prdc, duplicates (%(default)s)")
    p.add_argument("--json", type=Path, help="write the record: the numbers and all that they depend on")
    p.add_argument("--save_reference", type=Path, help="write the reference's statistics, to be used again")
    p.add_argument("--compare", action="store_true", help="show two records side by side, if they were measured alike")
    p.add_argument("--force", action="store_true", help="with --compare: also if not")
    return p


def main(args: argparse.Namespace) -> None:
    if args.compare:
        a, b = (read_record(path) for path in (args.samples, args.reference))
        if not args.force:
            record.check_same_protocol(a, b)
        print(record.side_by_side(a, b))
        for key, (x, y) in record.differences(a, b).items():
            print(f"not alike: {key}: {x} and {y}")
        return
    names = args.metrics.split(",")
    values.check_names(names)
    extractor = extractors.load(args.extractor, args.weights, mode=args.resize, other_weights=args.other_weights)
    mesh = make_mesh(-1, 1)

    def found(path: Path, what: str) -> Collected:
        count, batches = image_sets.open_images(path)
        count = min(count, args.images or count)
        print(f"features of the {count:,} {what} images in {path}", file=sys.stderr)
        with Progress(count, unit="image") as progress:
            return collect(extractor, batches, count, mesh=mesh, keep=args.keep, report=progress.update)

    is_file = args.reference.suffix == ".npz" and args.reference.is_file()
    if is_file and "mu" in image_sets.names(args.reference):
        reference = Reference.read(args.reference, extractor)
    else:
        reference = Reference.of(found(args.reference, "reference"))
    if args.save_reference:
        atomic_write(args.save_reference, lambda file: reference.write(file, extractor))
    held_out = found(args.held_out, "held-out").kept if args.held_out else None
    fake = found(args.samples, "generated")
    if reference.shape and fake.shape != reference.shape:
        raise DataError(f"The samples are {fake.shape} and the reference is {reference.shape} (height, width, "
                        "channels). Nothing is resized here before the extractor: how that is done is a choice.")
    for note in values.rank_notes(fake.count, reference.count, len(reference.statistics.mean)):
        print(f"note: {note}", file=sys.stderr)
    metrics = values.as_json(values.values(names, extractor.called, fake, reference, held_out))
    print(values.lines(metrics))
    if args.json:
        protocol = {"extractor": extractor.name, "weights_sha256": extractor.weights, "resize": extractor.resize,
                    "images": fake.count, "kept": args.keep, "reference": {
                        "images": reference.count, "sha256": reference.digest,
                        "shape": reference.shape and list(reference.shape)}}
        atomic_write(args.json, json.dumps({
            "metrics": metrics, "protocol": protocol, "samples": {"from": str(args.samples), "sha256": fake.digest},
            "versions": record.versions()}, indent=1) + "\n")


def read_record(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
        return {"metrics": found["metrics"], "protocol": found["protocol"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a metric record: {type(error).__name__}: {error}.") from error


if __name__ == "__main__":
    try:
        main(parser().parse_args())
    except DiffusionError as error:
        sys.exit(f"error: {error}")
