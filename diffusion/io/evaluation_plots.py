"""Plots metric records as a PNG: each metric against the checkpoints of a run."""
import os
from collections.abc import Sequence

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from diffusion.io.files import atomic_write
from diffusion.io.plots import BLUE, STYLE

_COLUMNS = 4


def plot_records(records: Sequence[dict], path: str | os.PathLike) -> None:
    """A panel for each metric, with its error bars; one curve for each sampler and protocol. Draws nothing for records
    without a checkpoint's step, a sampler and a protocol. Raises CheckpointError if the file cannot be written."""
    records = [r for r in records if isinstance(r.get("samples", {}).get("checkpoint"), int) and label_of(r)]
    names = list(dict.fromkeys(name for r in records for name in r["metrics"]))
    if not names:
        return
    curves: dict[str, list[dict]] = {}
    for r in records:
        curves.setdefault(label_of(r), []).append(r)
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    colours = [BLUE, *matplotlib.colormaps["tab10"].colors[1:]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns, 2.8 * rows + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(names):]:
            axes.remove()
        for axes, name in zip(panels, names):
            for i, (label, found) in enumerate(curves.items()):
                points = sorted((r["samples"]["checkpoint"], r["metrics"][name]["value"],
                                 r["metrics"][name].get("error", 0.0)) for r in found if name in r["metrics"])
                if points:
                    x, y, error = zip(*points)
                    axes.errorbar(x, y, yerror(error), marker="o", markersize=4, linewidth=1.5, capsize=3,
                                  color=colours[i % len(colours)], label=label)
            axes.set(title=name, xlabel="step")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=8)
        atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=130))


def label_of(record: dict) -> str:
    """The sampler and protocol of a record; "" if it lacks them."""
    try:
        sampler, protocol = record["samples"]["sampler"], record["protocol"]
        return f"{sampler['solver']}, {sampler['steps']} steps, {protocol['images']:,} images"
    except (LookupError, TypeError, ValueError):
        return ""


def yerror(error: tuple[float, ...]) -> tuple[float, ...] | None:
    return error if any(error) else None
