"""Starts and ends our programs, robustly to the shell that starts them."""
import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from diffusion.errors import DiffusionError, Interrupted, shown

STARTED = time.perf_counter()  # of the program, which imports this file first


def begin() -> None:
    """Prepares the process. Call it first in a program, before the imports, never in a library.

    Ctrl-C then ends the program at once, without the traceback of an import (until `interruptible`); output to a pipe
    whose reader has left, or to a closed file, is dropped and the work continues; characters that the terminal cannot
    encode are written as escapes; warnings of libraries are never errors (PYTHONWARNINGS=error).
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: the next opened file would become standard output
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        else:
            with contextlib.suppress(OSError):  # a stream already written to, in a forked process
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, Patient(stream))
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files, even if a notebook's shell sets another backend
    if any(option.split(":")[0] == "error" for option in sys.warnoptions):
        os.environ.pop("PYTHONWARNINGS", None)  # for child processes
        warnings.simplefilter("default")


def interruptible() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt from now on, so that unfinished work is cleaned up."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(main: Callable[[], Any]) -> None:
    """Runs a main and exits with its return value; with 1 and one message on an error that a user can correct."""
    try:
        sys.exit(main())
    except Interrupted as stopped:
        print(stopped, file=sys.stderr, flush=True)
        sys.exit(stopped.exit_code)
    except DiffusionError as error:
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
    except (MemoryError, OSError) as error:  # where no specific message exists
        sys.exit(f"error: {of_the_machine(error)}")
    except RuntimeError as error:
        if (message := of_the_device(error)) is None:
            raise
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(1)  # an ordinary exit waits for the other processes, or for the device
    except KeyboardInterrupt:
        print("\ninterrupted: what was saved before is kept", file=sys.stderr, flush=True)
        os._exit(130)  # the shells' code for SIGINT; an ordinary exit may crash in a running compilation


def of_the_machine(error: OSError | MemoryError) -> str:
    """The message for a system error, in one line."""
    if isinstance(error, MemoryError):
        why = f" ({error})" * bool(str(error))
        return f"The memory is not enough{why}. Use less at a time, such as a smaller batch size or model."
    where = f"{shown(error.filename)}: " * bool(error.filename)
    return f"{where}{error.strerror or error}. Check that path or device, then run the same command again."


def of_the_device(error: RuntimeError) -> str | None:
    """The message for an XLA error that a user can correct, in one line; None for any other error."""
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
    """A text stream that outlives its reader: it drops text that it cannot write."""

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
