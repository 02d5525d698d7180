"""Costs of the tests: CPU seconds, programs and compilations by file, printed at the end of a run.

CPU seconds are those of the tests' own process and of the programs that they start and wait for. They depend less than
wall time on other jobs, but several other jobs have increased them by half. A program is one that JAX requested from
its compiler in the tests' own process; it is compiled unless the persistent cache has it.
"""
import collections
import os

import jax
import program
import pytest

_counts = collections.Counter()
_EVENTS = {"/jax/core/compile/backend_compile_duration": "programs", "/jax/compilation_cache/cache_hits": "cached"}


def _count(event, *_, **__):
    if event in _EVENTS:
        _counts[_EVENTS[event]] += 1


jax.monitoring.register_event_duration_secs_listener(_count)
jax.monitoring.register_event_listener(_count)


def programs() -> int:
    """The number of programs that JAX has requested from its compiler in this process."""
    return _counts["programs"]


def _total():
    times = os.times()
    children = times.children_user + times.children_system + program.server_cpu_seconds()
    return collections.Counter(own=times.user + times.system, children=children, **_counts)


class Costs:
    """A pytest plugin that takes differences at each report, so that costs between two tests are counted."""

    def __init__(self):
        self.before = collections.Counter()
        self.by_file = collections.defaultdict(collections.Counter)

    def since(self):
        now = _total()
        spent = {key: now[key] - self.before[key] for key in now}
        self.before = now
        return spent

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session):
        start = self.since()
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["costs"] = start
        else:
            self.by_file["(start and collection)"].update(start)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        report.user_properties.append(("costs", self.since()))
        return report

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("::")[0]
        self.by_file[name].update(dict(report.user_properties).get("costs", {}))
        self.by_file[name]["tests"] += report.when == "call"

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        self.by_file["(start and collection)"].update(getattr(node, "workeroutput", {}).get("costs", {}))

    def pytest_terminal_summary(self, terminalreporter):
        files = sorted(self.by_file.items(), key=lambda item: -item[1]["own"] - item[1]["children"])
        total = sum((counts for _, counts in files), collections.Counter())
        terminalreporter.section("costs by file")
        terminalreporter.line(f"{'CPU s':>8} {'of children':>11} {'tests':>6} {'programs':>8} {'compiled':>8}")
        for name, counts in [*files, ("all", total)]:
            cpu = counts["own"] + counts["children"]
            terminalreporter.line(f"{cpu:8.1f} {counts['children']:11.1f} {counts['tests']:6} {counts['programs']:8} "
                                  f"{counts['programs'] - counts['cached']:8}  {name}")
