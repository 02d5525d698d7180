"""Reads the collectives of a compiled program from its HLO text."""
import math
import re
from collections import defaultdict
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16}
_SHAPE = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9][a-z]*)?)\[([0-9,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.+?) ([a-z][a-z0-9-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations)="
                     r"(\{[^}]*\}|%?[\w.-]+)")


class Collective(NamedTuple):
    kind: str      # one of KINDS
    bytes: float   # of the whole array on one device: the reduced array, or the result of a gather
    devices: int   # that take part in one collective
    times: int     # executions in one run of the program

    @property
    def moved(self) -> float:
        """Bytes that one device sends each time by the ring algorithms (Thakur et al. 2005, Section 4)."""
        share = (self.devices - 1) / self.devices if self.devices else 1.0
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


def collectives(hlo: str) -> list[Collective]:
    """The collectives of one device in the text of a compiled program, `compiled.as_text()`.

    A collective in a loop counts once per iteration if XLA knows the number ("known_trip_count"), else once.
    """
    found, callers, entry, here = defaultdict(list), defaultdict(list), None, None
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            here = match[2]
            entry = here if match[1] else entry
        elif here and (match := _INSTRUCTION.match(line)):
            shape, operation, rest = match.groups()
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', rest)
            for called in _CALLED.findall(rest):
                for name in called.strip("{}").split(","):
                    callers[name.strip().lstrip("%")].append((here, int(trips[1]) if trips else 1))
            kind = operation.removesuffix("-start")
            if kind in KINDS:
                found[here].append((kind, *_sizes(kind, operation, shape, rest)))

    def times(name: str) -> int:
        return 1 if name == entry else sum(times(caller) * n for caller, n in callers[name])

    return [Collective(kind, size, devices, n) for name, ones in found.items() if (n := times(name))
            for kind, size, devices in ones]


def _sizes(kind: str, operation: str, shape: str, rest: str) -> tuple[float, int]:
    """The bytes and the number of devices of one instruction."""
    arrays = [_bytes(*array) for array in _SHAPE.findall(shape)]
    if operation in ("all-gather-start", "collective-permute-start"):  # (operands, results, flags)
        arrays = arrays[len(arrays) // 2:] if kind == "all-gather" else arrays[1:2]
    devices = _group(rest)
    # The result of a reduce-scatter is a part of the reduced array.
    return sum(arrays) * (devices if kind == "reduce-scatter" else 1), devices


def _bytes(kind: str, dimensions: str) -> float:
    size = 1
    for n in filter(None, dimensions.split(",")):
        size *= int(n)
    digits = re.search(r"\d+", kind)
    return size * _BITS.get(kind, int(digits[0]) if digits else 0) / 8


def _group(rest: str) -> int:
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):  # [groups, devices]<=[all]
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):  # the mesh's axes, and the axes summed over
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return match[1].count(",") + 1
    return 2 if "source_target_pairs" in rest else 1
