"""Denoising diffusion models in JAX. `from diffusion import DiffusionPipeline` is the five-line use."""
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion.pipeline import DiffusionPipeline

__all__ = ["DiffusionPipeline"]


def __getattr__(name: str):
    if name == "DiffusionPipeline":  # when asked for: the command line answers --help without JAX
        from diffusion.pipeline import DiffusionPipeline
        return DiffusionPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
