"""How a program of ours begins, robust to the shell that starts it, and how it ends."""
import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from diffusion.errors import DiffusionError, Interrupted, shown

STARTED = time.perf_counter()  # of the program, whose first import this is


def begin() -> None:
    """Call it first, before the imports, in a program only.

    Ctrl-C then ends the program at once, without the traceback of an import (until `interruptible`); output to a pipe
    whose reader has left, or to a closed file, is dropped and the work goes on; characters that the terminal does not
    know are written as escapes; warnings of libraries are no errors (PYTHONWARNINGS=error).
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would become standard output
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        else:
            with contextlib.suppress(OSError):  # a stream that has been written to, in a forked process
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, Patient(stream))
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files, whatever a notebook's shell has set
    if any(option.split(":")[0] == "error" for option in sys.warnoptions):
        os.environ.pop("PYTHONWARNINGS", None)  # of the processes that this one starts
        warnings.simplefilter("default")


def interruptible() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, so that what is half done is put away."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(main: Callable[[], Any]) -> None:
    """Runs a main and exits with what it returns; with 1 and one message on an error that a user can mend."""
    try:
        sys.exit(main())
    except Interrupted as stopped:
        print(stopped, file=sys.stderr, flush=True)
        sys.exit(stopped.exit_code)
    except DiffusionError as error:
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
    except (MemoryError, OSError) as error:  # at a place that has no words of its own for it
        sys.exit(f"error: {of_the_machine(error)}")
    except RuntimeError as error:
        if (message := of_the_device(error)) is None:
            raise
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(1)  # an ordinary exit waits for the other processes, or for the device
    except KeyboardInterrupt:
        print("\ninterrupted: what was saved before is kept", file=sys.stderr, flush=True)
        os._exit(130)  # as shells count SIGINT; an ordinary exit may crash in a compilation that is still running


def of_the_machine(error: OSError | MemoryError) -> str:
    """An error of the system in one line."""
    if isinstance(error, MemoryError):
        why = f" ({error})" * bool(str(error))
        return f"The memory is not enough{why}. Ask for less at a time, such as a smaller batch size or model."
    where = f"{shown(error.filename)}: " * bool(error.filename)
    return f"{where}{error.strerror or error}. Check that path or device, then run the same command again."


def of_the_device(error: RuntimeError) -> str | None:
    """An error of XLA that a user can mend, in one line; None for any other."""
    if type(error).__name__ not in ("JaxRuntimeError", "XlaRuntimeError"):
        return None
    text = " ".join(str(error).split())
    if text.startswith("RESOURCE_EXHAUSTED"):
        return ("The memory of the device is not enough: make the batch smaller, train.accumulate larger, or set "
                f"network.remat. ({text[:200]})")
    if any(word in text for word in ("Gloo", "gloo", "NCCL", "heartbeat", "coordination service", "Connection closed")):
        return ("Another process of this run has ended, or does not answer. The checkpoints are kept: start all "
                f"processes again with the same command. ({text[:200]})")
    return None


class Patient:
    """A text stream that outlives its reader: what it cannot write it drops."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # ValueError: closed
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            # The buffer still holds the text, which Python would try to write again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
