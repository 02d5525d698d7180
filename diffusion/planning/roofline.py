"""Lower bounds on a compiled program's time, from a device's rates of computing, reading and sending."""
from dataclasses import asdict, dataclass, field

from diffusion.planning.chips import Chip
from diffusion.planning.collectives import Collective
from diffusion.planning.kernels import Account

LAUNCH = 2e-6  # seconds that a kernel costs beside its bytes and operations, in a graph of them: 2 to 3 microseconds


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of one run of a compiled program on one device."""
    flops: float
    bytes: float                    # read and written, as XLA counts them; on GPUs, of all kernels
    arguments: float                # bytes of memory: for the arguments ...
    temporaries: float              # ... and for other arrays, mostly activations
    collectives: dict[str, dict] = field(default_factory=dict)  # kind -> count, bytes, moved
    kernels: int = 0                # launched, on GPUs
    outside: float = 0.0            # bytes of the kernels that are no matrix product, convolution or attention, on GPUs

    @property
    def memory(self) -> float:
        return self.arguments + self.temporaries

    @property
    def moved(self) -> float:
        """Bytes sent over the links."""
        return sum(row["moved"] for row in self.collectives.values())


def costs(compiled, found: list[Collective], repeats: int = 1, *, flops: float = 0.0,
          kernels: Account | None = None) -> Costs:
    """The costs of a compiled program. repeats: iterations of its main loop, of which XLA counts one. flops, kernels:
    of a program for a GPU, where XLA does not count what cuDNN and cuBLAS do."""
    memory = compiled.memory_analysis()
    analysis = compiled.cost_analysis() if kernels is None else {"flops": flops, "bytes accessed": kernels.bytes}
    table: dict[str, dict] = {}
    for one in found:
        row = table.setdefault(one.kind, {"count": 0, "bytes": 0.0, "moved": 0.0})
        row["count"] += one.times
        row["bytes"] += one.times * one.bytes
        row["moved"] += one.times * one.moved
    return Costs(flops=analysis.get("flops", 0.0) * repeats, bytes=analysis.get("bytes accessed", 0.0) * repeats,
                 arguments=memory.argument_size_in_bytes,
                 # Results that do not overwrite arguments also need memory.
                 temporaries=memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
                 collectives=table, kernels=kernels.kernels if kernels else 0,
                 outside=kernels.outside if kernels else 0.0)


def seconds(of: Costs, chip: Chip, peak_share: float = 1.0) -> dict[str, float]:
    """The roofline (Williams et al. 2009): compute, memory and links, each as if running alone; `step` = max(compute,
    memory) + links, without overlap of sending and computing; and `communication`, the share of the links in it.

    Sums run round a ring, over two links of each chip. On a GPU kernels follow each other: those of matrix products
    take the time of computing and all others that of memory, and each costs LAUNCH beside. peak_share: of the chip's
    FLOP/s, that products reach.
    """
    times = {"compute": of.flops / (peak_share * chip.flops), "memory": of.bytes / chip.bandwidth,
             "links": of.moved / (2 * chip.link)}
    if of.kernels:
        times |= {"memory": of.outside / chip.bandwidth, "launches": of.kernels * LAUNCH}
        step = times["compute"] + times["memory"] + times["launches"] + times["links"]
    else:
        step = max(times["compute"], times["memory"]) + times["links"]
    return times | {"step": step, "communication": times["links"] / step if step else 0.0}


def as_dict(of: Costs) -> dict:
    return asdict(of) | {"memory": of.memory, "moved": of.moved}
