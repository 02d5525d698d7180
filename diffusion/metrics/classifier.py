"""The extractor "classifier": features and classes by a network that was trained on the data of the model's own config.

Its file is an npz of plain arrays, which `python -m diffusion.metrics.train_classifier` writes. It sees pictures of an
example: the image, the log-mel spectrogram of a clip of sound, each frame of a video. Its Frechet distance is called
fd_classifier, and compares only with numbers of the same weights, whose digest is in each record.
"""
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import ConfigError, DataError
from diffusion.io import npz
from diffusion.io.pictures import by
from diffusion.io.reading import expanded, reading
from diffusion.metrics.networks.classifier import FEATURES
from diffusion.metrics.networks.classifier import Classifier as Network
from diffusion.typing import Array

COMMAND = "python -m diffusion.metrics.train_classifier --config=CONFIG --out=classifier.npz"
_LIMIT = 2 * math.sqrt(FEATURES)  # features are normalised, and their differences below twice as large


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierKind:
    """What the name "classifier" stands for, without weights."""
    network = Network
    takes: tuple[str, ...] = ("image", "audio", "video")
    channels: tuple[int, ...] = ()  # any number
    limits: dict[str, float] = field(default_factory=lambda: {"pool": _LIMIT})


CLASSIFIER = ClassifierKind()


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """A trained classifier."""
    kind: str                     # of its data (config.data.kind)
    classes: int
    shape: tuple[int, int, int]   # of a picture, [h, w, c]
    mean: float                   # of the training pictures' numbers
    deviation: float
    params: Any
    accuracy: float | None = None  # on examples that it was not trained on
    held_out: str = ""             # their split
    trained: dict = field(default_factory=dict)  # how: data, steps, seed

    @property
    def network(self) -> Network:
        return Network(classes=self.classes)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights and of the numbers that scale their input."""
        found = hashlib.sha256(json.dumps([self.classes, self.shape, self.mean, self.deviation]).encode())
        for name, value in sorted(flat(self.params).items()):
            found.update(f"{name} {value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        return found.hexdigest()

    def scaled(self, pictures: Array) -> Array:
        """The network's input: pictures [B, h, w, c] of any type, as float32 of about mean 0 and deviation 1."""
        return (pictures.astype(np.float32) - np.float32(self.mean)) / np.float32(self.deviation)

    def apply(self, params: Any, pictures: Array) -> tuple[Array, Array]:
        """(features [B, FEATURES], logits [B, classes]) of pictures [B, h, w, c]."""
        return self.network.apply({"params": params}, self.scaled(pictures))

    def write(self, file: IO[bytes]) -> None:
        """Writes an npz, the same bytes for the same classifier."""
        about = {"kind": self.kind, "classes": self.classes, "shape": self.shape, "mean": self.mean,
                 "deviation": self.deviation, "accuracy": self.accuracy, "held_out": self.held_out,
                 "trained": self.trained, "digest": self.digest}
        np.savez(file, about=np.array(json.dumps(about)), **{f"params/{name}": value for name, value in
                                                             flat(self.params).items()})

    @classmethod
    def read(cls, path: str | Path) -> "Classifier":
        """Reads a file of `write`, without running code from it. Raises ConfigError if there is none, DataError if it
        is of something else or damaged."""
        path = expanded(path)
        if not path.is_file():
            raise ConfigError(f"There is no classifier in {path}. Train one: {COMMAND}")
        arrays = npz.read_npz(path)
        if "about" not in arrays:
            raise DataError(f"{path} is not a classifier: it holds {', '.join(list(arrays)[:5]) or 'nothing'}. Train "
                            f"one: {COMMAND}")
        with reading(f"{path} is not a whole classifier", f"Train it again: {COMMAND}"):
            about = json.loads(str(arrays.pop("about")))
            params = nested({name.removeprefix("params/"): value for name, value in arrays.items()})
            made = cls(kind=str(about["kind"]), classes=int(about["classes"]), shape=tuple(map(int, about["shape"])),
                       mean=float(about["mean"]), deviation=float(about["deviation"]), params=params,
                       accuracy=about["accuracy"], held_out=str(about["held_out"]), trained=dict(about["trained"]))
            made.check_params()
            if made.digest != about["digest"]:
                raise ValueError("its weights do not have the digest that is written in it")
        return made

    def check_params(self) -> None:
        """Raises ValueError unless the parameters are those of the network."""
        shapes = flat(jax.eval_shape(self.network.init, jax.random.key(0), jax.ShapeDtypeStruct(
            (1, *self.shape), jnp.float32))["params"])
        found = flat(self.params)
        for name in sorted({*shapes, *found}):
            ours, theirs = (tree.get(name) for tree in (shapes, found))
            if ours is None or theirs is None or ours.shape != theirs.shape or theirs.dtype != np.float32:
                raise ValueError(f"its parameter {name} is {'missing' if theirs is None else theirs.shape}")

    def called_in_messages(self) -> str:
        return f"pictures of data.kind = {self.kind!r}, {by(self.shape)} (height x width x channels)"


@dataclass(frozen=True, kw_only=True, eq=False)  # equal only to itself: its weights are large
class ClassifierExtractor:
    """features(params, pictures [B, n, h, w, c]) -> by name:

    "pool" [B, D]: of one picture, its features; of several, their mean over the pictures and the root mean square of
    the differences of successive ones, so that their order counts. "logits" [B, classes]: log of the mean probability.
    "recognised" int32 [B, n]: the class of each picture.
    """
    classifier: Classifier
    weights: str              # the classifier's digest
    params: Any
    pictures: Callable[[np.ndarray], np.ndarray]  # values [B, ...] -> [B, n, h, w, c]
    number: int = 1           # n
    kind = CLASSIFIER
    name, resize, published = "classifier", "none", True

    def called(self, metric: str) -> str:
        """The name of a metric with this extractor."""
        return f"{metric}_{self.name}"

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """An input of `features`."""
        return jax.ShapeDtypeStruct((1, self.number, *self.classifier.shape), jnp.float32)

    @property
    def dimension(self) -> int:
        """Of "pool"."""
        return FEATURES * min(self.number, 2)

    def inputs(self, values: np.ndarray) -> np.ndarray:
        """The pictures of the values. Raises DataError if they are others than the classifier was trained on."""
        found = self.pictures(values)
        if found.shape[1:] != (self.number, *self.classifier.shape):
            raise DataError(f"The classifier was trained on {self.classifier.called_in_messages()}, but here they are "
                            f"{found.shape[1]} of {by(found.shape[2:])}.")
        return found

    def features(self, params: Any, pictures: Array) -> dict[str, Array]:
        n = pictures.shape[1]
        with jax.default_matmul_precision("highest"):  # as for other extractors
            features, logits = self.classifier.apply(params, pictures.reshape(-1, *pictures.shape[2:]))
        x, log_p = features.reshape(-1, n, FEATURES), jax.nn.log_softmax(logits).reshape(-1, n, logits.shape[-1])
        moved = jnp.sqrt(jnp.mean((x[:, 1:] - x[:, :-1]) ** 2, 1)) if n > 1 else x[:, 0, :0]
        return {"pool": jnp.concatenate([x.mean(1), moved], 1),
                "logits": jax.nn.logsumexp(log_p, 1) - math.log(n),
                "recognised": jnp.argmax(log_p, -1).astype(jnp.int32)}

    def of_values(self, values: np.ndarray, kind: str, classes: int) -> "ClassifierExtractor":
        """The same for data like `values` [1, ...], of so many classes. Raises ConfigError if the classifier was
        trained on other pictures, or with fewer classes."""
        shape = self.pictures(values).shape[1:]
        if self.classifier.kind != kind or shape[1:] != self.classifier.shape:
            raise ConfigError(f"The classifier of config.evaluate.weights was trained on "
                              f"{self.classifier.called_in_messages()}, but this model's are of {kind!r}, "
                              f"{by(shape[1:])}. Train one on its data: {COMMAND}")
        if classes > self.classifier.classes:
            raise ConfigError(f"The classifier of config.evaluate.weights knows {self.classifier.classes} classes, but "
                              f"this model has {classes}. Train one on its data: {COMMAND}")
        return replace(self, number=shape[0])


def open_extractor(weights: str, *, mode: str = "", pictures: Callable[[np.ndarray], np.ndarray] | None = None
                   ) -> ClassifierExtractor:
    """The extractor with the classifier of a file. Raises ConfigError for a missing file or a mode of resizing,
    DataError for another file."""
    if not weights:
        raise ConfigError("The extractor classifier needs its file: --weights, or config.evaluate.weights. Train one: "
                          f"{COMMAND}")
    if mode:
        raise ConfigError(f"The extractor classifier takes pictures of the size that it was trained on, and resizes "
                          f"none: leave {mode!r} out.")
    found = Classifier.read(weights)
    return ClassifierExtractor(classifier=found, weights=found.digest, params=found.params,
                               pictures=pictures or (lambda images: images[:, None]))


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}."""
    found = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}/") if hasattr(value, "items") else {f"{prefix}{name}": value}
    return found


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    found: dict[str, Any] = {}
    for path, value in leaves.items():
        *folders, name = path.split("/")
        place = found
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return found
