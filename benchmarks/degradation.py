"""Tests whether the metrics detect defects: real images, degraded in four ways, against other real images.

    pip install -e .[metrics]
    python -m benchmarks.degradation cifar10.npz --count=1000 --out=docs/degradation.json --plot=docs/degradation.png

The npz is as for `python -m diffusion.data.prepare`: train_images and train_labels. The reference is `count` images of
its first half, and the degraded images are of its second half, so that each curve starts at the distance between two
halves of real data. Each measurement is saved to --out at once; existing ones are not repeated.
"""
import argparse
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from diffusion.io.files import atomic_write
from diffusion.io.plots import BLUE, STYLE
from diffusion.metrics import extractors, values
from diffusion.metrics.features import collect
from diffusion.metrics.reference import Reference
from diffusion.parallel.sharding import make_mesh

LEVELS = {  # degradation -> its levels, from none
    "noise": (0, 4, 8, 16, 32),
    "blur": (0, 0.4, 0.6, 0.8, 1.2),
    "jpeg": (0, 10, 30, 60, 90),
    "dropped_modes": (0, 2, 4, 6, 8),
}
TITLES = {"noise": "noise: standard deviation of 255", "blur": "blur: deviation in pixels",
          "jpeg": "JPEG: 100 - quality", "dropped_modes": "classes left out of 10"}
METRICS = ("fd", "kid", "prdc")


def degraded(images: np.ndarray, labels: np.ndarray, kind: str, level: float, count: int) -> np.ndarray:
    """`count` images uint8 [N, H, W, 3] of those given, degraded; level 0: unchanged."""
    if kind == "dropped_modes":  # the same number of images, of fewer classes
        images = images[labels >= level]
    images = images[:count]
    if len(images) < count:
        raise SystemExit(f"error: only {len(images)} images are left for {kind} {level}; --count={count} is too many.")
    if kind == "noise" and level:
        noise = np.random.default_rng(0).normal(0, level, images.shape)
        return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)
    if kind == "blur" and level:
        return np.stack([Image.fromarray(x).filter(ImageFilter.GaussianBlur(level)) for x in images])
    if kind == "jpeg" and level:
        return np.stack([jpeg(x, 100 - int(level)) for x in images])
    return images


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def plot(found: dict, path: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    rows = [("fd_", "Frechet distance"), ("kd_", "kernel distance"), ("recall", "recall"), ("precision", "precision")]
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(len(rows), len(LEVELS), figsize=(13, 10), sharex="col", layout="constrained")
        for panels, (prefix, title) in zip(axes, rows):
            for panel, (kind, levels) in zip(panels, LEVELS.items()):
                points = [next(v for name, v in found[key(kind, level)].items() if name.startswith(prefix))
                          for level in levels]
                panel.errorbar(levels, [p["value"] for p in points], [p.get("error", 0) for p in points], marker="o",
                               markersize=4, capsize=3, color=BLUE)
                panel.set_ylim(bottom=min(0, *(p["value"] for p in points)))
            panels[0].set_ylabel(title)
        for panel, kind in zip(axes[-1], LEVELS):
            panel.set_xlabel(TITLES[kind])
        figure.savefig(path, dpi=100)


def key(kind: str, level: float) -> str:
    return f"{kind} {level}" if level else "as they are"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.degradation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--extractor", default="efficientnet_lite0", choices=extractors.KINDS)
    parser.add_argument("--weights", default="", help="as for python -m diffusion.metrics")
    parser.add_argument("--count", type=int, default=1000, help="images per measurement")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    with np.load(args.data, allow_pickle=False) as file:
        images, labels = file["train_images"], file["train_labels"]
    extractor, mesh, half = extractors.load(args.extractor, args.weights), make_mesh(-1, 1), len(images) // 2
    about = {"extractor": extractor.name, "weights_sha256": extractor.weights, "count": args.count}
    found = json.loads(args.out.read_text()) if args.out.exists() else {"about": about}
    if found["about"] != about:
        raise SystemExit(f"error: {args.out} is of {found['about']}, not {about}. Name another --out.")

    def of(images):
        return collect(extractor, [images], args.count, mesh=mesh, keep=args.count)

    reference = None
    for kind, level in tqdm([(kind, level) for kind, levels in LEVELS.items() for level in levels]):
        if key(kind, level) in found:
            continue
        reference = reference or Reference.from_features(of(images[:half]))
        worse = degraded(images[half:], labels[half:], kind, level, args.count)
        found[key(kind, level)] = values.as_json(values.metric_values(METRICS, extractor.called, of(worse), reference))
        atomic_write(args.out, json.dumps(found, indent=1) + "\n")
    fd = extractor.called("fd")
    for kind, levels in LEVELS.items():
        curve = [found[key(kind, level)][fd]["value"] for level in levels]
        rises = all(a < b for a, b in zip(curve, curve[1:]))
        print(f"{kind} {levels}: {fd} {', '.join(f'{x:.3f}' for x in curve)}: {'rises' if rises else 'DOES NOT RISE'}")
    if args.plot:
        plot(found, args.plot)


if __name__ == "__main__":
    main()
