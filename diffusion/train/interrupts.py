"""Handling of SIGTERM and SIGINT: training finishes its step, saves, and exits with a code for the reason."""
import os
import signal
import socket
import sys
import threading

import jax
from jax.experimental import multihost_utils

REQUEUE = 75   # EX_TEMPFAIL of sysexits.h, "try again later": the exit code after SIGTERM, for schedulers that requeue
SIGINT_EXIT = 130  # the exit code of shells for SIGINT


class Interrupts:
    """A context in which SIGTERM and the first SIGINT only request that training stop; a second SIGINT exits.

    Call it once after each dispatch, in all processes: it returns whether to stop. With several processes a signal to
    any one of them stops all at the same step (JAX's preemption sync point). Until `begin()` there is nothing to save,
    so a signal exits at once, even during a compilation.
    """

    def __init__(self):
        self.exit_code: int | None = None
        self._begun, self._calls = False, 0
        # With several processes, JAX's runtime has its own handler for SIGTERM, which notifies the other processes.
        self._signals = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> "Interrupts":
        # Python's handlers wait for the main thread, which a compilation holds for minutes; the wake-up file is written
        # at once.
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._old_file = signal.set_wakeup_fd(self._sender.fileno())
        self._old = {number: signal.signal(number, lambda *_: None) for number in self._signals}
        threading.Thread(target=self._listen, daemon=True, name="interrupts").start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_file)
        self._sender.close()  # ends the thread

    def begin(self) -> None:
        """Marks that from now on there is something to save."""
        self._begun = True

    def __call__(self) -> bool:
        if jax.process_count() > 1:
            self._calls += 1
            if multihost_utils.reached_preemption_sync_point(self._calls) and self.exit_code is None:
                self.exit_code = REQUEUE
        return self.exit_code is not None

    def _listen(self) -> None:
        while numbers := self._receiver.recv(1):
            self._receive(numbers[0])
        self._receiver.close()

    def _receive(self, number: int) -> None:
        if number not in self._signals:
            return
        code = SIGINT_EXIT if number == signal.SIGINT else REQUEUE
        if not self._begun or (self.exit_code is not None and number == signal.SIGINT):
            print("\ninterrupted: the last checkpoint is kept; the same command resumes from it", file=sys.stderr,
                  flush=True)
            os._exit(code)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # for JAX's handler
        print("\nstopping after this step, with a checkpoint; once more exits at once" if code == SIGINT_EXIT else
              "\nSIGTERM: stopping after this step, with a checkpoint", file=sys.stderr, flush=True)
        self.exit_code = code
