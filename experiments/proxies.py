"""Sizes for running tables smaller than in the paper: the contents and the limits of each."""
from collections.abc import Mapping

from experiments.table import Scale

MINI = ("The 8x8 digits of scikit-learn, a small U-Net, 900 steps of 64 images, 1,000 samples against the 1,437 images "
        "of the training split. Minutes a row on two CPU cores. It shows large effects of objective, schedule and "
        "the sampler; it cannot show what needs capacity, long training or colour, and its Frechet distance is of "
        "features of photographs, on digits: small differences are noise.")
SMALL = ("CIFAR-10, the network of Ho et al. with half its channels (9M parameters) in bfloat16, 10,000 steps of 128 "
         "images, 10,000 samples. About an hour a table on one accelerator. Training is a fiftieth of the paper's: it "
         "orders objectives and samplers, and says little about what converges last.")


def mini(overrides: Mapping[str, object] = {}, *, config: str = "configs/digits.py", about: str = "", **more) -> Scale:
    return Scale(config, {
        "train.duration": "900 steps", "train.sample_every": "900 steps", "train.checkpoint_every": "900 steps",
        "evaluate.images": 1000, "evaluate.metrics": ("fd", "is"), **overrides}, f"{MINI} {about}".strip(), **more)


def small(overrides: Mapping[str, object] = {}, *, about: str = "", **more) -> Scale:
    return Scale("configs/cifar10.py", {
        "data.on_device": True, "network.channels": 64, "network.dtype": "bfloat16",
        "optimizer.learning_rate": 4e-4, "optimizer.warmup": "500 steps", "ema.half_life": "100k images",
        "train.duration": "10k steps", "train.sample_every": "10k steps", "train.checkpoint_every": "5k steps",
        "evaluate.images": 10_000, "evaluate.metrics": ("fd", "is"), **overrides}, f"{SMALL} {about}".strip(), **more)


def paper(overrides: Mapping[str, object] = {}, *, config: str = "configs/cifar10.py", about: str = "As in the paper.",
          **more) -> Scale:
    """The scale of the paper. FID needs the weights of Inception: give evaluate.weights in the overrides."""
    return Scale(config, {"evaluate.extractor": "inception", "evaluate.metrics": ("fd", "is"), **overrides}, about,
                 **more)
