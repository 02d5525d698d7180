"""Reads the collectives of a compiled program from its HLO text."""
import math
import re
from typing import NamedTuple

from diffusion.planning.hlo import Program, sizes

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


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
    program, found = Program(hlo), []
    for one in program.instructions:
        kind = one.operation.removesuffix("-start")
        if kind in KINDS and (times := program.times(one.computation)):
            size, devices = _sizes(kind, one.operation, one.shape, one.rest)
            found.append(Collective(kind, size, devices, times))
    return found


def _sizes(kind: str, operation: str, shape: str, rest: str) -> tuple[float, int]:
    """The bytes and the number of devices of one instruction."""
    arrays = sizes(shape)
    if operation in ("all-gather-start", "collective-permute-start"):  # (operands, results, flags)
        arrays = arrays[len(arrays) // 2:] if kind == "all-gather" else arrays[1:2]
    devices = _group(rest)
    # The result of a reduce-scatter is a part of the reduced array.
    return sum(arrays) * (devices if kind == "reduce-scatter" else 1), devices


def _group(rest: str) -> int:
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):  # [groups, devices]<=[all]
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):  # the mesh's axes, and the axes summed over
        extents = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(extents[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return match[1].count(",") + 1
    return 2 if "source_target_pairs" in rest else 1
