"""Times batches of our data pipeline beside PyTorch's DataLoader over the same source, and against a training step.

    python -m benchmarks.input_pipeline --config=configs/cifar10.py --step_ms=34.5
    python -m benchmarks.input_pipeline --sources=jpeg --workers=0,1,2,4 --jpeg_size=256

--sources: `index`, the indices alone, for data that lie on the device; `memory`, an array; `png`, an array_record set
as our prepare program writes it; `jpeg`, a folder of JPEG files; these have the config's shape, but jpeg. `photos`, the
same JPEG files in class folders, as a user has them, at 64 pixels: by data.name=folder with data.crop=adm, beside
torchvision's ImageFolder with Resize(64) and CenterCrop(64). `wav`, a folder of clips of one second at 8 kHz.

What each side does: shuffles, reads and decodes by the same source object, and stacks numpy arrays, or tensors, to a
batch of the config in this process. Neither scales, flips or copies to the device: our step does that on the device.
Both start their workers anew ("spawn"), with 2 batches ahead each. Without workers ours reads ahead in one thread, and
PyTorch in the loop, with one thread of its own. Ours reads arrays in memory by one gather, without workers; a
DataLoader reads them one by one. A turn starts a side's workers, waits for the first batch, times --batches more and
ends the workers, so that the other side runs alone.

`of_step` is the time of a batch over --step_ms, or over a step of the config, measured here: above 1 the device waits.
On a CPU the step and the workers share the cores.
"""
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks import data, measure
from benchmarks.train_step import OurStep, prepared
from diffusion import build
from diffusion.data import array_records, pipeline, sources
from diffusion.data import folder as files
from diffusion.kinds.audio import audio
from diffusion.kinds.image import image

SOURCES = ("index", "memory", "png", "jpeg", "photos", "wav")
FILES = ("png", "jpeg", "photos", "wav")  # read with workers
SIDE = 64  # pixels, of photos
WAYS = ("ours", "torch")


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser("input_pipeline", __doc__, rounds=3)
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--batch", type=int, default=None, help="Default: the config's")
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument("--workers", default="0,1,2", help=f"processes, of {', '.join(FILES)}")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--images", type=int, default=4096, help="of a source")
    parser.add_argument("--jpeg_size", type=int, default=256, help="pixels")
    parser.add_argument("--batches", type=int, default=20, help="of a turn")
    parser.add_argument("--step_ms", type=float, default=None, help="Default: measured here, unless --quick")
    args = parser.parse_args(argv)
    for name, known in (("sources", SOURCES), ("ways", WAYS)):
        if unknown := set(getattr(args, name).split(",")) - set(known):
            parser.error(f"--{name}: {', '.join(sorted(unknown))} is not known; it can be of {', '.join(known)}")
    rounds, workers = args.rounds, [int(n) for n in args.workers.split(",")]
    if short := args.quick or args.tiny:
        args.images, args.batches, args.jpeg_size, rounds, workers = 256, 2, 64, 1, workers[:1]
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers ask for it
    config = prepared(args.config, 32 if short else args.batch, "float32", args.tiny)
    batch = config.train.batch_size
    if args.images < 2 * batch:
        parser.error(f"--images={args.images} must be two batches of {batch} or more")
    report = measure.begin("input_pipeline", args, config=args.config, batch=batch, images=args.images,
                           jpeg_size=args.jpeg_size)
    if args.step_ms is None and not short:
        ours = OurStep(config)
        measure.finished(ours())
        args.step_ms = 1e3 * float(np.median([measure.timed(ours, 3) for _ in range(rounds)]))
    report["step_ms"] = args.step_ms
    steps = min(args.batches, args.images // batch - 1)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.sources.split(","):
            source = opened(name, config, Path(folder), args)
            for n in workers if name in FILES else [0]:
                ways = {way: lambda way=way: turn(*started(way, name, source, batch, n), steps)
                        for way in args.ways.split(",") if possible(way, name)}
                prefix = f"{name}, {n} workers: " if name in FILES else f"{name}: "
                add_rows(report, prefix, measure.in_turns(ways, rounds=rounds), batch, args.step_ms)
    if args.step_ms:
        print(f"a training step of {batch} images: {args.step_ms:.2f} ms")
    measure.end(report, args.out)


def possible(way: str, name: str) -> bool:
    """Whether a side reads this source; torchvision may be missing, or not fit the machine's PyTorch."""
    if (way, name) == ("torch", "photos"):
        try:
            import torchvision.datasets  # noqa: F401
        except (ImportError, RuntimeError) as error:
            print(f"note: photos without PyTorch, since torchvision does not import: {str(error)[:200]}")
            return False
    return (way, name) != ("torch", "index")


def add_rows(report: dict, prefix: str, times: dict[str, list[float]], batch: int, step_ms: float | None) -> None:
    for way, seconds in times.items():
        row = measure.spread(seconds)
        row |= {"images_per_second": batch / np.median(seconds), "batches_per_second": 1 / np.median(seconds)}
        row |= {"of_step": row["ms"] / step_ms} if step_ms else {}
        row |= measure.ratio(report, times["ours"], seconds) if "ours" in times and way != "ours" else {}
        report["rows"][prefix + way] = row


def opened(name: str, config: Any, folder: Path, args: Any) -> Any:
    """The source of that name, written to the folder."""
    shape = build.spec(config).shape
    if name in ("photos", "wav"):
        kind = image(size=SIDE, crop="adm") if name == "photos" else audio(length=8000, rate=8000)
        if name == "photos":
            data.write_photos(folder / name, args.images, args.jpeg_size)
        else:
            data.write_clips(folder / name, args.images)
        found = files.folder(split="train", kind=kind, embedder=None, dir=str(folder / name), labels="folders")
        return sources.Loaded(found, kind.load)
    if name == "jpeg":
        return data.JpegFolder.write(folder / "jpeg", args.images, args.jpeg_size)
    if name == "png":
        data.write_set(folder / "png", "drawn", shape, args.images)
        return array_records.tfds_source("drawn", str(folder / "png"), "train")
    return sources.ArraySource(data.drawn(args.images, shape), np.zeros(args.images, np.int32))


def started(way: str, name: str, source: Any, batch: int, workers: int) -> tuple[Iterator, Callable[[], None]]:
    """An iterator over batches, and what ends it."""
    if way == "ours":
        found = (pipeline.index_batches(len(source), batch_size=batch, seed=0) if name == "index" else
                 pipeline.batches(source, batch_size=batch, seed=0, workers=workers))
        return found, found.close
    import torch
    from torch.utils.data import DataLoader
    if name == "photos":
        from torchvision import datasets, transforms
        source = datasets.ImageFolder(source.source.entries.where, transforms.Compose(
            [transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.PILToTensor()]))
    torch.set_num_threads(1)  # as in its workers: its threads for one stacked batch wait for each other
    more = {"multiprocessing_context": "spawn", "prefetch_factor": 2} if workers else {}
    found = iter(DataLoader(source, batch_size=batch, shuffle=True, drop_last=True, num_workers=workers, **more))
    return found, getattr(found, "_shutdown_workers", lambda: None)


def turn(batches: Iterator, end: Callable[[], None], steps: int) -> float:
    """Mean seconds of a batch, without the first."""
    next(batches)
    began = time.perf_counter()
    for _ in range(steps):
        next(batches)
    seconds = (time.perf_counter() - began) / steps
    end()
    return seconds


if __name__ == "__main__":
    main()
