"""The watchdog: it reports once what takes too long, and says nothing of the rest."""
import time

from diffusion.train.watchdog import Watchdog


def test_a_stall_is_reported_once_with_the_stacks(capfd):
    with Watchdog(0.2) as watchdog:
        for _ in range(6):
            watchdog("a quick step")
            time.sleep(0.1)
        assert capfd.readouterr().err == ""
        watchdog("the next batch of data")
        time.sleep(1.0)
        watchdog(None)
        time.sleep(0.5)
    said = capfd.readouterr().err
    assert said.count("stalled: the next batch of data has taken more than 0.2 s") == 1
    assert "test_watchdog.py" in said and "Thread" in said


def test_it_can_be_off(capfd):
    with Watchdog(0.0) as watchdog:
        watchdog("a step")
        time.sleep(0.3)
    assert capfd.readouterr().err == ""
