"""Reads the text of a compiled program: its instructions, and how often each is executed."""
import re
from collections import defaultdict
from dataclasses import dataclass

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16}
_SHAPE = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9][a-z]*)?)\[([0-9,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.+?) ([a-z][a-z0-9-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations)="
                     r"(\{[^}]*\}|%?[\w.-]+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a computation: `name = shape operation(rest`."""
    computation: str
    name: str
    shape: str
    operation: str
    rest: str      # operands and settings

    @property
    def operands(self) -> list[str]:
        """The names of its operands."""
        depth, end = 1, 0
        while end < len(self.rest) and depth:
            depth += {"(": 1, ")": -1}.get(self.rest[end], 0)
            end += 1
        return re.findall(r"%([\w.-]+)", self.rest[:end])

    @property
    def calls(self) -> str:
        """The computation of a fusion; empty if it is none."""
        found = re.search(r"\bcalls=%?([\w.-]+)", self.rest)
        return found[1] if found else ""

    @property
    def source(self) -> str:
        """The path in the traced function that it comes from; empty if the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


class Program:
    """The instructions of `compiled.as_text()`."""

    def __init__(self, text: str):
        self.instructions: list[Instruction] = []
        self.entry = here = None
        self._callers = defaultdict(list)
        for line in text.splitlines():
            if match := _COMPUTATION.match(line):
                here = match[2]
                self.entry = here if match[1] else self.entry
            elif here and (match := _INSTRUCTION.match(line)):
                found = Instruction(here, *match.groups())
                self.instructions.append(found)
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', found.rest)
                for called in _CALLED.findall(found.rest):
                    for name in called.strip("{}").split(","):
                        self._callers[name.strip().lstrip("%")].append(
                            (here, found.operation, int(trips[1]) if trips else 1))

    def times(self, computation: str) -> int:
        """How often it is executed: in a loop once per iteration, if the compiler knows their number, else once."""
        return 1 if computation == self.entry else sum(
            self.times(caller) * trips for caller, _, trips in self._callers[computation])

    def is_a_sequence(self, computation: str) -> bool:
        """Whether its instructions are launched one by one, as those of a loop's body, and not part of a kernel."""
        return computation == self.entry or any(
            operation in ("while", "call", "conditional", "async-start") and self.is_a_sequence(caller)
            for caller, operation, _ in self._callers[computation])


def sizes(shape: str) -> list[float]:
    """Bytes of each array of a shape, which may be a tuple's."""
    return [bytes_of(*array) for array in _SHAPE.findall(shape)]


def bytes_of(kind: str, dimensions: str) -> float:
    size = 1
    for n in filter(None, dimensions.split(",")):
        size *= int(n)
    digits = re.search(r"\d+", kind)
    return size * _BITS.get(kind, int(digits[0]) if digits else 0) / 8
