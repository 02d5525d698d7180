"""Accounts for a program compiled for a GPU: its kernels, and the bytes that each reads and writes."""
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from diffusion.planning.collectives import KINDS as COLLECTIVES
from diffusion.planning.hlo import Program, sizes

# Instructions that launch nothing.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional",
         "after-all", "partition-id", "replica-id", "async-done", "opt-barrier"}
PRODUCTS = ("convolution", "matrix product", "attention")  # what the tensor cores compute


class Kernel(NamedTuple):
    kind: str      # one of PRODUCTS, "collective", "copy", "reduction", "transposition" or "elementwise"
    name: str      # of the instruction
    bytes: float   # that it reads and writes each time
    times: int     # executions in one run of the program
    source: str    # the path in the traced function


def kernels(hlo: str) -> list[Kernel]:
    """The kernels in the text of a program compiled for a GPU, `compiled.as_text()`, of one device."""
    program = Program(hlo)
    sequences = {one.computation for one in program.instructions if program.is_a_sequence(one.computation)}
    size = {(one.computation, one.name): _size(one) for one in program.instructions if one.computation in sequences}
    sliced = _sliced(program)
    return [Kernel(_kind(one), one.name, size[one.computation, one.name] + sum(
                min(size.get((one.computation, name), 0), sliced.get((one.calls, place), math.inf))
                for place, name in enumerate(one.operands)), program.times(one.computation), one.source)
            for one in program.instructions
            if one.computation in sequences and one.operation not in _FREE and not one.operation.endswith("-done")]


def _sliced(program: Program) -> dict[tuple[str, int], float]:
    """(fusion's computation, place of a parameter) -> bytes that it reads, where it reads only slices of it."""
    users = defaultdict(list)
    for one in program.instructions:
        for name in one.operands:
            users[one.computation, name].append(one)

    def readers(one) -> list:
        return [reader for user in users[one.computation, one.name]
                for reader in (readers(user) if user.operation == "bitcast" else [user])]
    found = {}
    for one in program.instructions:
        if one.operation == "parameter" and (parts := readers(one)):
            if all(part.operation in ("slice", "dynamic-slice") for part in parts):
                found[one.computation, int(one.rest.partition(")")[0])] = sum(_size(part) for part in parts)
    return found


def _size(one) -> float:
    """Bytes of the result, without the workspace that a library's call asks for as a last array of bytes."""
    arrays = sizes(one.shape)
    workspace = one.operation == "custom-call" and re.search(r"[su]8\[\d+\]\{0\}\)$", one.shape.strip())
    return sum(arrays[:-1] if workspace else arrays)


def _kind(one) -> str:
    target = re.search(r'custom_call_target="([^"]+)"', one.rest)
    if one.operation.removesuffix("-start") in COLLECTIVES:
        return "collective"
    if target:
        name = target[1].lower()
        return ("convolution" if "conv" in name else "attention" if "fmha" in name or "sdpa" in name
                else "matrix product" if "blas" in name or "gemm" in name else target[1])
    if one.operation == "copy" or one.operation.startswith("copy-"):
        return "copy"
    if "dot" in one.name or "gemm" in one.name:  # a fusion around a product
        return "matrix product"
    return "reduction" if "reduce" in one.name else "transposition" if "transpose" in one.name else "elementwise"


class Account(NamedTuple):
    """What a program launches and moves in one run, on one device."""
    kernels: int
    bytes: float                # read and written by all kernels
    outside: float              # of them, by kernels that are no PRODUCTS
    by_kind: dict[str, tuple[int, float]]     # kernels and bytes
    by_part: dict[str, tuple[int, float]]     # the same outside of PRODUCTS, by part of the network
    largest: list[Kernel]       # outside of PRODUCTS, most bytes first


def account(found: Iterable[Kernel], largest: int = 12) -> Account:
    """The sums of `kernels`."""
    found = list(found)
    by_kind, by_part = defaultdict(lambda: (0, 0.0)), defaultdict(lambda: (0, 0.0))

    def add(table, key, one):
        number, size = table[key]
        table[key] = number + one.times, size + one.bytes * one.times

    for one in found:
        add(by_kind, one.kind, one)
        if one.kind not in PRODUCTS:
            add(by_part, part_of(one.source), one)
    order = lambda table: dict(sorted(table.items(), key=lambda row: -row[1][1]))  # noqa: E731
    others = [one for one in found if one.kind not in PRODUCTS]
    return Account(sum(one.times for one in found), sum(one.bytes * one.times for one in found),
                   sum(one.bytes * one.times for one in others), order(by_kind), order(by_part),
                   sorted(others, key=lambda one: -one.bytes * one.times)[:largest])


def part_of(source: str) -> str:
    """The part of the network of a path, numbers left out and the gradient's marked:
    "jit(step)/transpose(jvp(UNet))/up0_block2/norm1/mul" -> "gradient: up_block/norm"."""
    if not (path := [part for part in source.split("/") if part and not part.startswith("jit(")]):
        return "by the compiler"
    back = any(part.startswith("transpose(") for part in path)
    names = [re.sub(r"\d+", "", part) for part in path if re.fullmatch(r"[A-Za-z_][\w.]*", part)]
    return ("gradient: " if back else "") + ("/".join(names[:-1][:2]) or "the step")
