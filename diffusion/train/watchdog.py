"""A watchdog that reports stalled operations with the stacks of all threads, and takes no other action."""
import faulthandler
import sys
import threading
import time


class Watchdog:
    """Inside its context, `watchdog(what)` names the current operation; None: nothing to watch.

    An operation that takes longer than `seconds` is reported once, on standard error. 0: never.
    """

    def __init__(self, seconds: float):
        self.seconds, self._what, self._since = seconds, None, 0.0
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._over.set()

    def __call__(self, what: str | None) -> None:
        self._since, self._what = time.monotonic(), what

    def _watch(self) -> None:
        reported = None
        while not self._over.wait(min(self.seconds / 4, 5.0)):
            what, since = self._what, self._since
            if what is not None and since != reported and time.monotonic() - since > self.seconds:
                reported = since
                print(f"stalled: {what} has taken more than {self.seconds:g} s (config.train.stall_seconds). The "
                      "stacks of all threads:", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
