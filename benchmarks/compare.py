"""Names what became slower or faster between two reports of one benchmark.

    python -m benchmarks.train_step --out=before.json
    python -m benchmarks.compare before.json after.json

A row became slower if all its rounds took longer than all rounds before, and its median by more than 3 %. The exit code
is 1 if a row became slower, and 2 if the reports cannot be compared: of other programs, settings or devices, with
--quick, or of a machine that was not idle. --anyway compares these, too.
"""
import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LEAST = 0.03  # a smaller change of the median is not named


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a JSON file that --out of a benchmark wrote")
    parser.add_argument("new")
    parser.add_argument("--anyway", action="store_true", help="compare reports that differ in more than time")
    args = parser.parse_args(argv)
    old, new = (json.loads(Path(path).read_text()) for path in (args.old, args.new))
    reasons = differences(old, new)
    for reason in reasons:
        print(f"not comparable: {reason}")
    if reasons and not args.anyway:
        return 2
    found = changes(old["rows"], new["rows"])
    print("\n".join(lines(old["rows"], new["rows"])))
    return int("slower" in found.values())


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Why two reports cannot be compared; empty if they can."""
    found = [f"{name} is {old[name]!r} before and {new[name]!r} now" for name in ("program", "settings")
             if old[name] != new[name]]
    for name in ("devices", "processor", "cores"):
        if old["machine"][name] != new["machine"][name]:
            found.append(f"{name} before: {old['machine'][name]}, now: {new['machine'][name]}")
    for when, report in (("before", old), ("now", new)):
        if report["busy"]:
            found.append(f"{when}, {report['busy']}")
        if report["settings"]["quick"]:
            found.append(f"--quick, {when}, shows whether it runs, not how fast")
    return found


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """"slower", "faster" or "same" by the name of each row that both have."""
    return {name: change(old[name], row) for name, row in new.items() if name in old}


def change(old: Mapping[str, float], new: Mapping[str, float]) -> str:
    """What became of one row."""
    if new["lowest_ms"] > old["highest_ms"] and new["ms"] > (1 + LEAST) * old["ms"]:
        return "slower"
    if new["highest_ms"] < old["lowest_ms"] and old["ms"] > (1 + LEAST) * new["ms"]:
        return "faster"
    return "same"


def lines(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for each row that changed or that one side lacks, and the number of the others."""
    found = changes(old, new)
    text = [f"{kind}: {name}, {old[name]['ms']:.2f} -> {new[name]['ms']:.2f} ms "
            f"({old[name]['ms'] / new[name]['ms']:.2f} times as fast)"
            for kind in ("slower", "faster") for name in found if found[name] == kind]
    text += [f"only {when}: {name}" for when, these, others in (("before", old, new), ("now", new, old))
             for name in these if name not in others]
    return [*text, f"the same within the spread: {list(found.values()).count('same')} of {len(found)}"]


if __name__ == "__main__":
    sys.exit(main())
