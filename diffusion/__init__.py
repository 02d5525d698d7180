"""Denoising diffusion models in JAX.

`from diffusion import DiffusionPipeline` draws from pretrained models in five lines. `Model`, `fit` and `draw` train
and sample in memory, without a config (examples/toy_2d.py).
"""
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion.library.drawing import draw, grid
    from diffusion.library.fitting import fit
    from diffusion.library.model import Model
    from diffusion.library.objectives import Objective, objective
    from diffusion.library.parts import part
    from diffusion.pipeline import DiffusionPipeline
    from diffusion.train.averages import Average, Copy, HalfLife, Power
    from diffusion.train.updates import Update

# Imported when asked for: the command line answers --help without JAX.
_PLACES = {"DiffusionPipeline": "pipeline", "Model": "library.model", "fit": "library.fitting",
           "draw": "library.drawing", "grid": "library.drawing", "objective": "library.objectives",
           "Objective": "library.objectives", "part": "library.parts", "Update": "train.updates",
           **dict.fromkeys(("Average", "Copy", "HalfLife", "Power"), "train.averages")}
__all__ = ["Average", "Copy", "DiffusionPipeline", "HalfLife", "Model", "Objective", "Power", "Update", "draw", "fit",
           "grid", "objective", "part"]


def __getattr__(name: str):
    if name in _PLACES:
        return getattr(importlib.import_module(f"diffusion.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
