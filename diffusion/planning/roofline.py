"""How long a compiled program takes at the least, by what a device can compute, read and send."""
from dataclasses import asdict, dataclass, field

from diffusion.planning.chips import Chip
from diffusion.planning.collectives import Collective


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of one run of a compiled program on one device."""
    flops: float
    bytes: float                    # read and written, as XLA counts them
    arguments: float                # bytes of memory: what it is given ...
    temporaries: float              # ... and what it needs besides, activations most of all
    collectives: dict[str, dict] = field(default_factory=dict)  # kind -> count, bytes, moved

    @property
    def memory(self) -> float:
        return self.arguments + self.temporaries

    @property
    def moved(self) -> float:
        """Bytes sent over the links."""
        return sum(row["moved"] for row in self.collectives.values())


def costs(compiled, found: list[Collective], repeats: int = 1) -> Costs:
    """Of a compiled program. repeats: how often its main loop runs, of which XLA counts one round."""
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    table: dict[str, dict] = {}
    for one in found:
        row = table.setdefault(one.kind, {"count": 0, "bytes": 0.0, "moved": 0.0})
        row["count"] += one.times
        row["bytes"] += one.times * one.bytes
        row["moved"] += one.times * one.moved
    return Costs(flops=analysis.get("flops", 0.0) * repeats, bytes=analysis.get("bytes accessed", 0.0) * repeats,
                 arguments=memory.argument_size_in_bytes,
                 # Results that are not written over arguments need a place too.
                 temporaries=memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
                 collectives=table)


def seconds(of: Costs, chip: Chip) -> dict[str, float]:
    """The roofline (Williams et al. 2009): compute, memory and links, each as if it had the device for itself; `step` =
    max(compute, memory) + links, with nothing sent while anything is computed; and `communication`, their share of it.

    Sums go round a ring along one axis of the torus, by the two links there.
    """
    times = {"compute": of.flops / chip.flops, "memory": of.bytes / chip.bandwidth, "links": of.moved / (2 * chip.link)}
    step = max(times["compute"], times["memory"]) + times["links"]
    return times | {"step": step, "communication": times["links"] / step if step else 0.0}


def as_dict(of: Costs) -> dict:
    return asdict(of) | {"memory": of.memory, "moved": of.moved}
