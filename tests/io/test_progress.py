import io

import pytest

from diffusion.io import progress
from diffusion.io.progress import Progress, duration, of_chains


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_durations():
    said = {0: "0s", 0.4: "0s", 59.4: "59s", 59.6: "1m 00s", 133: "2m 13s", 3599: "59m 59s", 3600: "1h 00m",
            3 * 3600 + 299: "3h 05m", 86400 - 29: "1d 00h", 2 * 86400 + 4 * 3600: "2d 04h"}
    assert {seconds: duration(seconds) for seconds in said} == said


def test_plain_lines_where_there_is_no_terminal(clock):
    out = io.StringIO()
    with Progress(2000, unit="step", images_per_unit=128, stream=out) as bar:
        clock.now += 30  # compilation
        bar.update(1)
        first = out.getvalue()
        for _ in range(99):
            clock.now += 0.5
            bar.update(1)
        bar.log({"step": 100, "loss": 0.03125, "images_per_second": 1234.4, "grad_norm": 3.0})
        bar.message("a word")
    assert first == "step 1 of 2,000\n" and "\r" not in out.getvalue()
    lines = out.getvalue().splitlines()
    assert 5 <= len(lines) <= 8, "at most one each ten seconds"
    assert lines[1] == "step 21 of 2,000, 256 images/s, 16m 30s left"  # measured without the compilation
    assert lines[-2:] == ["step 100 of 2,000, loss 0.03125, 1,234 images/s, 15m 50s left", "a word"]


def test_each_log_is_a_line_but_not_many_a_second(clock):
    out = io.StringIO()
    with Progress(5, stream=out) as bar:
        for step in range(1, 6):
            clock.now += 0.5
            bar.update(1)
            bar.log({"loss": step, "step": step})
    assert [line.split(",")[0] for line in out.getvalue().splitlines()] == ["step 2 of 5", "step 4 of 5", "step 5 of 5"]


def test_the_end_is_always_said_once(clock):
    out = io.StringIO()
    with Progress(64, unit="image", initial=32, stream=out) as bar:
        clock.now += 0.1
        bar.update(16)
        clock.now += 0.1
        bar.update(16, loss=1.5)
    assert out.getvalue() == "image 64 of 64, loss 1.5, 160 images/s\n"


def test_a_bar_on_a_terminal(clock):
    out = Terminal()
    with Progress(10, stream=out, images_per_unit=4) as bar:
        for _ in range(10):
            clock.now += 1
            bar.update(1)
            bar.log({"loss": 0.25})
        bar.message("above")
    text = out.getvalue()
    assert "\r" in text and "above\n" in text
    last = text.strip().split("\r")[-1]
    assert last.startswith("100% |") and "step 10 of 10, loss 0.25, 4 images/s" in last
    assert "3s left" in text


def test_other_processes_are_quiet(monkeypatch):
    monkeypatch.setattr(progress, "is_primary", lambda: False)
    for out in (io.StringIO(), Terminal()):
        with Progress(2, stream=out) as bar:
            bar.update(1)
            bar.log({"loss": 1.0})
            bar.message("word")
        assert out.getvalue() == ""


def test_long_ones_say_at_once_how_long_they_take(clock):
    out = io.StringIO()
    with Progress(800_000, stream=out) as bar:
        bar.expect(0.34)
        bar.expect(0.00001)  # 8 s: not worth a line
        bar.done = 800_000
    assert out.getvalue().splitlines()[0] == ("about 3d 04h for 800,000 steps at 0.34 s each on this device, without "
                                              "samples and checkpoints")


def test_steps_that_are_with_the_device_are_not_done(clock):
    """A step of 40 s was said to take 13 s, since three had been handed over."""
    out = io.StringIO()
    with Progress(100, stream=out, ahead=2) as bar:
        bar.update(1)  # compiled and done
        bar.update(1)
        bar.update(1)  # at once: the device is behind
        clock.now += 40
        bar.update(1)
        assert out.getvalue().splitlines()[-1] == "step 4 of 100, 0.025 images/s, 1h 04m left"


def test_chains_count_their_steps_and_several_of_them_images(clock):
    """It counted the sum over all batches: step 188 of 1,000 where 250 were asked for."""
    out = io.StringIO()
    bar, report = of_chains(4, batch=8, steps=250, stream=out)
    with bar:
        for _ in range(10):
            clock.now += 10
            report(25)
    assert out.getvalue().splitlines()[2].startswith("step 75 of 250,")
    out = io.StringIO()
    bar, report = of_chains(20, batch=8, steps=250, stream=out)
    shown = []
    with bar:
        for _ in range(6):
            report(125)
            shown.append(bar.done)
    assert shown == [4, 8, 12, 16, 18, 20] and out.getvalue().endswith("image 20 of 20\n")
