"""Times features in images/s against the PyTorch originals, with the same weights, and the overhead of an evaluation.

    pip install torch efficientnet-lite-pytorch; pip install --no-deps torch-fidelity
    python -m benchmarks.extraction --extractor=inception --images=128
    python -m benchmarks.extraction --extractor=efficientnet_lite0 --images=1024 --photos=photos.npz

Ours, theirs and `collect` (ours with digests, exact sums and checks) alternate in one process on the same images; the
result is the median ratio over the rounds. The work that `collect` does ten times per set, of any size, is excluded:
its time is that of three times the images, less that of one, halved. Inception's weights are random. With photos, the
predicted classes of both are compared, too.
"""
import argparse
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from diffusion.metrics import extractors
from diffusion.metrics.features import ROWS, collect
from diffusion.metrics.images import open_images
from diffusion.parallel.sharding import make_mesh


def inception():
    """Ours, with the weights of torch-fidelity's network, and torch-fidelity's: images uint8 -> (features, logits)."""
    import torch
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # its network does not need it
        for name in ("", ".datasets", ".models", ".transforms", ".transforms.functional"):
            sys.modules[f"torchvision{name}"] = mock.MagicMock(CIFAR10=object, CIFAR100=object, STL10=object)
    with (mock.patch("torch.load", return_value={}),
          mock.patch.object(torch.nn.Module, "load_state_dict")):  # the published weights are not needed
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"],
                                              feature_extractor_weights_path="none").eval()
    kind = extractors.EXTRACTORS["inception"]
    params = kind.from_torch({name: x.numpy() for name, x in network.state_dict().items()}, "torch-fidelity")
    ours = extractors.Extractor(name="inception", weights="", resize=kind.resize, published=False, kind=kind,
                                params=params)

    def theirs(images):
        return network(torch.from_numpy(images).permute(0, 3, 1, 2))

    return ours, theirs


def efficientnet_lite0():
    """Ours and efficientnet-lite-pytorch's, with the real weights: images uint8 -> (features, logits)."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet
    kind = extractors.EXTRACTORS["efficientnet_lite0"]
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(extractors.in_package(kind))).eval()

    def theirs(images):
        x = torch.nn.functional.interpolate(torch.from_numpy(images).permute(0, 3, 1, 2).float(), kind.size,
                                            mode="bicubic", antialias=True).clamp(0, 255)
        pool = network.extract_features((x - 127) / 128).mean((2, 3))
        return pool, network._fc(pool)

    return extractors.load("efficientnet_lite0"), theirs


def photographs(path: Path, count: int) -> np.ndarray:
    found = np.concatenate(list(open_images(path)[2]))
    return found[:count // ROWS * ROWS].reshape(-1, ROWS, *found.shape[1:])


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extraction", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    originals = {"inception": inception, "efficientnet_lite0": efficientnet_lite0}
    parser.add_argument("--extractor", choices=originals, default="inception")
    parser.add_argument("--images", type=int, default=128, help=f"images per round, in batches of {ROWS}")
    parser.add_argument("--size", type=int, default=32, help="size of the images, in pixels")
    parser.add_argument("--photos", type=Path, help="a folder or npz of images, all of one size; default: noise")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    import torch
    extractor, original = originals[args.extractor]()
    shape = (args.images // ROWS, ROWS, args.size, args.size, 3)
    batches = (np.random.default_rng(0).integers(0, 256, shape, np.uint8) if args.photos is None
               else photographs(args.photos, args.images))
    features, mesh = jax.jit(extractor.features), make_mesh(-1, 1)

    def ours():
        for batch in batches:
            np.asarray(features(extractor.params, batch)["pool"])

    def theirs():
        with torch.inference_mode():
            for batch in batches:
                original(batch)

    def gathered(times: int):
        collect(extractor, (batch for _ in range(times) for batch in batches), times * batches.shape[0] * ROWS,
                mesh=mesh, keep=10_000)

    with torch.inference_mode():
        pool = original(batches[0])[0].numpy()
        gap = np.abs(features(extractor.params, batches[0])["pool"] - pool).max() / np.abs(pool).max()
        print(f"largest difference of the features: {gap:.1e} of the largest")
        if args.photos is not None:
            same = [np.argmax(features(extractor.params, batch)["logits"], 1) == original(batch)[1].numpy().argmax(1)
                    for batch in batches]
            print(f"the same class for {np.sum(same)} of {np.size(same)} photographs")
    calls = {"ours": ours, "theirs": theirs, "collect": lambda: gathered(1), "thrice": lambda: gathered(3)}
    count = batches.shape[0] * ROWS
    print("first round, compilation included: " + ", ".join(f"{k} {timed(call):.1f} s" for k, call in calls.items()))
    found = np.array([[timed(call) for call in calls.values()] for _ in range(args.rounds)])
    found[:, 2] = (found[:, 3] - found[:, 2]) / 2
    for name, seconds in zip(("ours", "theirs", "collect"), found.T):
        print(f"{name}: {count / np.median(seconds):.1f} images/s "
              f"({count / seconds.max():.1f} to {count / seconds.min():.1f})")
    for name, ratio in (("theirs / ours", found[:, 1] / found[:, 0]), ("collect / ours", found[:, 2] / found[:, 0])):
        print(f"{name}: {np.median(ratio):.3f} ({ratio.min():.3f} to {ratio.max():.3f})")


if __name__ == "__main__":
    main()
