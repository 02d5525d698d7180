"""For which devices a network is traced, so that its layers can choose a faster form of the same function."""
import contextlib
import contextvars
from collections.abc import Iterator

_PLATFORM = contextvars.ContextVar("platform", default="")
_DEVICES = contextvars.ContextVar("devices", default=1)


@contextlib.contextmanager
def compiling_for(platform: str, devices: int = 1, *, jvp: bool = False) -> Iterator[None]:
    """Layers traced inside may use the forms for so many devices of this JAX platform ("cpu", "gpu", "tpu"). jvp: none
    that lacks a forward-mode derivative, so that jax.jvp, jax.linearize and second derivatives work."""
    tokens = _PLATFORM.set("" if jvp else platform), _DEVICES.set(devices)
    try:
        yield
    finally:
        _PLATFORM.reset(tokens[0])
        _DEVICES.reset(tokens[1])


def on_gpu() -> bool:
    """Whether layers may use forms that only a GPU has or is faster with, and that have no forward-mode derivative."""
    return _PLATFORM.get() in ("gpu", "cuda")


def on_one_cpu() -> bool:
    """Whether layers may use forms that are faster on a CPU, have no forward-mode derivative, and go through the batch
    part by part, which must not be cut over devices."""
    return _PLATFORM.get() == "cpu" and _DEVICES.get() == 1
