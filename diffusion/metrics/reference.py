"""The reference for metrics of samples: statistics collected from a set of examples, or published, in an npz."""
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from diffusion.errors import ConfigError, DataError
from diffusion.io import npz
from diffusion.io.reading import reading
from diffusion.metrics.extractors import Extractor
from diffusion.metrics.features import Collected
from diffusion.metrics.frechet import Statistics

_OPTIONAL = ("recognised", "labels", "score")


@dataclass(frozen=True, kw_only=True)
class Reference:
    statistics: Statistics
    spatial: Statistics | None = None
    kept: np.ndarray | None = None      # float32 [K, D]
    count: int | None = None            # None: unknown for published statistics
    digest: str = ""                    # SHA-256 of the examples, or of the published file
    shape: tuple[int, ...] | None = None
    recognised: np.ndarray | None = None  # these as in `Collected`
    labels: np.ndarray | None = None
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)
    score: tuple[float, float] | None = None

    @classmethod
    def from_features(cls, found: Collected) -> "Reference":
        return cls(statistics=found.statistics(), spatial=found.spatial, kept=found.kept, count=found.count,
                   digest=found.digest, shape=found.shape, recognised=found.recognised, labels=found.labels,
                   measured=found.measured, score=found.score)

    def write(self, file: IO[bytes], extractor: Extractor) -> None:
        """Writes an npz with mu and sigma, as other programs read them, and the other fields."""
        about = {"extractor": extractor.name, "weights": extractor.weights, "resize": extractor.resize,
                 "count": self.count, "digest": self.digest, "shape": self.shape}
        spatial = {} if self.spatial is None else {"spatial_mu": self.spatial.mean,
                                                   "spatial_sigma": self.spatial.covariance}
        more = {name: value for name in _OPTIONAL if (value := getattr(self, name)) is not None}
        more |= {f"measured/{name}": value for name, value in self.measured.items()}
        np.savez(file, mu=self.statistics.mean, sigma=self.statistics.covariance, kept=self.kept,
                 about=np.array(json.dumps(about)), **spatial, **more)

    @classmethod
    def from_file(cls, path: Path, extractor: Extractor) -> "Reference":
        """Reads a file of `write`, or mu and sigma as NVlabs/edm, pytorch-fid and the TTUR authors publish them. Raises
        DataError for any other file; ConfigError for another extractor."""
        arrays = npz.read_npz(path)
        if "mu" not in arrays or "sigma" not in arrays:
            raise DataError(f"{path} has no mu and sigma. It has: {', '.join(arrays)}.")
        with reading(f"mu and sigma in {path} are not numbers", "Get it again."):
            mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
        dimension = extractor.dimension
        if mean.shape != (dimension,) or covariance.shape != (dimension, dimension):
            raise ConfigError(f"{path} has statistics of {mean.shape[0] if mean.ndim else 0} features, but "
                              f"{extractor.name} has {dimension}: they are of another extractor.")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all() and (np.diag(covariance) >= 0).all()):
            raise DataError(f"sigma in {path} is no covariance, or it or mu is not finite: the file is damaged, or of "
                            "something else.")
        if "about" not in arrays:
            with open(path, "rb") as file:
                return cls(statistics=Statistics(mean, covariance),
                           digest=hashlib.file_digest(file, "sha256").hexdigest())
        with reading(f"{path} is not a reference that --save_reference or an evaluation wrote", "Make it again."):
            about = json.loads(str(arrays["about"]))
            for name, ours in (("extractor", extractor.name), ("weights", extractor.weights),
                               ("resize", extractor.resize)):
                if about[name] != ours:
                    raise ConfigError(f"{path} was made with the {name} {about[name]}, not {ours}: its numbers would "
                                      "not compare.")
            spatial = Statistics(arrays["spatial_mu"], arrays["spatial_sigma"]) if "spatial_mu" in arrays else None
            kept, count = arrays["kept"], about["count"]
            if kept.dtype != np.float32 or kept.shape != (len(kept), dimension) or type(count) is not int or (
                    not np.isfinite(kept).all()):
                raise ValueError(f"it has kept {kept.dtype} {list(kept.shape)} of {count} examples")
            more = {name: arrays[name] for name in ("recognised", "labels") if name in arrays}
            if any(len(value) != len(kept) or value.dtype != np.int32 for value in more.values()):
                raise ValueError("its classes are not of the kept examples")
            if "score" in arrays:
                more["score"] = tuple(map(float, arrays["score"]))
            measured = {name.removeprefix("measured/"): value for name, value in arrays.items()
                        if name.startswith("measured/")}
            return cls(statistics=Statistics(mean, covariance), spatial=spatial, kept=kept, measured=measured,
                       count=count, digest=about["digest"], shape=tuple(about["shape"]), **more)
