"""For which devices a network is traced, so that its layers can choose a faster form of the same function."""
import contextlib
import contextvars
from collections.abc import Iterator

_PLATFORM = contextvars.ContextVar("platform", default="")


@contextlib.contextmanager
def compiling_for(platform: str, *, jvp: bool = False) -> Iterator[None]:
    """Layers traced inside may use the forms for this JAX platform ("cpu", "gpu", "tpu"). jvp: none that lacks a
    forward-mode derivative, so that jax.jvp, jax.linearize and second derivatives work."""
    token = _PLATFORM.set("" if jvp else platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def on_gpu() -> bool:
    """Whether layers may use forms that only a GPU has or is faster with, and that have no forward-mode derivative."""
    return _PLATFORM.get() in ("gpu", "cuda")
