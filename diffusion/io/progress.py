"""Shows progress to a person: a bar on a terminal, plain lines elsewhere."""
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

import tqdm

from diffusion.io.processes import is_primary

_LINE_EVERY, _LOG_EVERY = 10.0, 1.0  # least seconds between plain lines: from update(), from log()
_LONG = 60.0  # seconds from which `expect` prints
_SHOWN = {"loss": "loss {:.4g}".format,
          "images_per_second": lambda rate: f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"}


class Progress:
    """Progress, speed and remaining time of training or sampling. Only the first process prints.

    total, initial: in `unit`s ("step", "image"), `initial` done before the start. images_per_unit: to show images
    per second until a row of the log has a better measurement. ahead: the number of done units that may still run on
    the device. stream: the output (standard error).
    """

    def __init__(self, total: int, *, unit: str = "step", initial: int = 0, images_per_unit: float = 1, ahead: int = 0,
                 stream: TextIO | None = None):
        self.total, self.unit, self.done, self.images_per_unit = total, unit, initial, images_per_unit
        self.ahead = ahead
        self.info: dict[str, float] = {}
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = not is_primary()
        self._began = self._last_line = time.monotonic()
        self._timed_from = initial
        self._first = True
        self._shown = None  # units done at the last plain line
        self._bar = None
        if not self._quiet and self._stream.isatty():
            # tqdm draws and clears the bar; the text is ours, the same as in the plain lines
            wide = _has_width(self._stream)
            self._bar = tqdm.tqdm(total=total, initial=initial, file=self._stream, dynamic_ncols=wide,
                                  ncols=None if wide else 80, nrows=None if wide else 24,
                                  bar_format="{percentage:3.0f}% |{bar:20}| {desc}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self._bar is not None:
            self._bar.set_description_str(self._text(), refresh=True)
            self._bar.close()
        elif self._shown != self.done:
            self._line()

    def update(self, n: int = 1, **info: float) -> None:
        """Counts `n` more units as done; info as in `log`."""
        self.done += n
        self.info.update(info)
        if self._first:  # the first one waits for the compiler: the rate is measured from its end
            self._first, self._began, self._timed_from = False, time.monotonic(), self.done
        if self._bar is not None:
            self._bar.set_description_str(self._text(), refresh=False)
            self._bar.update(n)
        elif time.monotonic() - self._last_line >= _LINE_EVERY:
            self._line()

    def log(self, row: dict) -> None:
        """Shows the loss and the images_per_second of a row of the log."""
        self.info.update({name: row[name] for name in _SHOWN if row.get(name) is not None})
        if self._bar is not None:
            self._bar.set_description_str(self._text(), refresh=True)
        elif time.monotonic() - self._last_line >= _LOG_EVERY or self.done >= self.total:
            self._line()
        else:
            self._shown = None  # so that the end prints this line

    def expect(self, seconds: float) -> None:
        """Prints the expected duration at `seconds` per unit, before a better measurement exists; nothing if it is
        short."""
        left = seconds * (self.total - self.done)
        if left >= _LONG:
            each = f"{seconds:,.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"
            self.message(f"about {duration(left)} for {self.total - self.done:,} {self.unit}s at {each} each on this "
                         "device, without samples and checkpoints")

    def message(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            tqdm.tqdm.write(text, file=self._stream)
        elif not self._quiet:
            print(text, file=self._stream, flush=True)

    def _line(self) -> None:
        self._last_line, self._shown = time.monotonic(), self.done
        self.message(self._text())

    def _text(self) -> str:
        parts = [f"{self.unit} {self.done:,} of {self.total:,}"]
        elapsed = time.monotonic() - self._began
        timed = self.done - self._timed_from - (self.ahead if self.done < self.total else 0)
        info = dict(self.info)
        if timed > 0 and elapsed > 0:
            info.setdefault("images_per_second", timed / elapsed * self.images_per_unit)
        parts += [form(info[name]) for name, form in _SHOWN.items() if name in info]
        if timed > 0 and self.done < self.total:
            parts.append(f"{duration(elapsed / timed * (self.total - self.done))} left")
        return ", ".join(parts)


def of_chains(count: int, *, batch: int, steps: int, stream: TextIO | None = None
              ) -> tuple[Progress, Callable[[int], None]]:
    """The progress of `count` images, drawn `batch` at a time by chains of `steps` steps, and its callback for finished
    steps. One chain counts its steps; several count images, in proportion to a chain's steps."""
    if count <= batch:
        progress = Progress(steps, unit="step", images_per_unit=count / steps, stream=stream)
        return progress, progress.update
    progress, done = Progress(count, unit="image", stream=stream), 0

    def report(n: int) -> None:
        nonlocal done
        done += n
        chains, part = divmod(done, steps)
        before = min(chains * batch, count)
        progress.update(before + min(batch, count - before) * part // steps - progress.done)

    return progress, report


def _has_width(stream: TextIO) -> bool:
    """Whether the terminal has a width: some terminals of containers report 0 columns."""
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:
        return False


def duration(seconds: float) -> str:
    """Seconds as text for a person: 8s, 2m 13s, 3h 05m, 2d 04h."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m {s % 60:02d}s"
    if (minutes := round(seconds / 60)) < 24 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d {hours % 24:02d}h"
