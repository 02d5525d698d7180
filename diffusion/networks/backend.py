"""For which devices a network is traced, so that its layers can choose a faster form of the same function."""
import contextlib
import contextvars
from collections.abc import Iterator

_TARGET = contextvars.ContextVar("target", default=("", 1))  # platform and number of devices


@contextlib.contextmanager
def compiling_for(platform: str, devices: int = 1, *, jvp: bool = False) -> Iterator[None]:
    """Layers traced inside may use the forms for so many devices of this JAX platform ("cpu", "gpu", "tpu"). jvp: none
    that lacks a forward-mode derivative, so that jax.jvp, jax.linearize and second derivatives work."""
    token = _TARGET.set(("" if jvp else platform, devices))
    try:
        yield
    finally:
        _TARGET.reset(token)


def on_gpu() -> bool:
    """Whether layers may use forms that only a GPU has or is faster with, and that have no forward-mode derivative."""
    return _TARGET.get()[0] in ("gpu", "cuda")


def on_one_cpu() -> bool:
    """Whether layers may use forms that are faster on a CPU, have no forward-mode derivative, and go through the batch
    part by part, which must not be cut over devices."""
    return _TARGET.get() == ("cpu", 1)
