"""A user's data that are read example by example, as batches of the training step."""
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion.data import pipeline
from diffusion.errors import DataError, shown
from diffusion.library.arguments import dataset
from diffusion.library.model import Model


def is_source(data: Any) -> bool:
    """Whether the data of `fit` are read by `data[i]`, and are no array, mapping or list."""
    return (hasattr(data, "__getitem__") and hasattr(data, "__len__") and not hasattr(data, "__array__")
            and not isinstance(data, (Mapping, list, tuple, str, bytes)))


class Examples:
    """`data[i]` for 0 <= i < len(data), each a mapping with "x0" and the conditions by name, as `fit` takes them in
    arrays [N, ...]; or whatever the `load` of the model's kind of data takes, such as {"file": File}.

    Raises DataError as `arguments.dataset` does, for the first example before training, and for others of another shape
    or type when they are read.
    """

    def __init__(self, data: Any, model: Model):
        self.data, self.model = data, model
        self.num_classes = model.num_classes or 2**31 - 1
        if not len(data):
            raise DataError("The data have no example.")
        self.first = self.record(data[0], None)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"raw": self.data[i], "index": i}

    def load(self, raw: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The stored arrays of an example, as the first one's."""
        record = self.record(raw["raw"], rng)
        for name, value in self.first.items():
            found = record.get(name)
            if found is None or found.shape != value.shape or found.dtype != value.dtype:
                what = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
                raise DataError(f"{name} of example {raw['index']} of the data is {what}, but that of the first is "
                                f"{value.dtype} {list(value.shape)}.")
        return {name: record[name] for name in self.first}

    def record(self, raw: Any, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """The stored arrays of one example."""
        if not isinstance(raw, Mapping):
            raise DataError("An example of the data must be a mapping with \"x0\" and conditions, but it is "
                            f"{shown(raw)}.")
        if "x0" in raw:
            return {name: value[0] for name, value in
                    dataset({name: np.asarray(value)[None] for name, value in raw.items()}, self.model).items()}
        spec = self.model.spec
        if spec is None:
            raise DataError(f"An example of the data has {', '.join(map(str, raw)) or 'nothing'}, but no \"x0\", "
                            "which a "
                            "model without a spec takes.")
        found = spec.load(dict(raw), rng) if spec.needs_load("file" in raw) else raw
        return {name: np.asarray(value, np.int32 if name == "label" else None) for name, value in found.items()
                if name in spec.stored or name in self.model.conditions}

    def batches(self, **shards: int) -> pipeline.Batches:
        """Batches in the order of training, read ahead in a thread."""
        return pipeline.batches(self, load=self.load, **shards)
