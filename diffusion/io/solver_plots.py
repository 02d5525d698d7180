"""Plots sample quality against network evaluations as a PNG."""
import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from diffusion.io.files import atomic_write
from diffusion.io.plots import STYLE, scale_y

PANELS = (("distance", "distance to the training data\n(Frechet, pooled pixels; not FID)"),
          ("error", "distance to the fine DDIM chain\n(root mean square, same noise)"))


def plot_quality(cells: Sequence[dict], path: str | os.PathLike) -> None:
    """Plots one curve per solver and guidance scale, with a point per number of steps, in one panel per measure.

    cells: with "solver", "scale", "evaluations", "distance" or None, and "error". Raises CheckpointError if the file
    cannot be written.
    """
    panels = [(key, label) for key, label in PANELS if all(cell[key] is not None for cell in cells)]
    curves = list(dict.fromkeys((cell["solver"], cell["scale"]) for cell in cells))
    scales = {scale for _, scale in curves}
    colours = matplotlib.colormaps["turbo"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6 * len(panels), 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (key, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            for i, (solver, scale) in enumerate(curves):
                points = sorted((cell["evaluations"], cell[key]) for cell in cells
                                if (cell["solver"], cell["scale"]) == (solver, scale))
                axes.plot(*zip(*points), marker="os^Dv<>P*X"[i % 10], markersize=4.5, linewidth=1.5,
                          color=colours((i + 0.5) / len(curves)),
                          label=solver + (f", scale {scale:g}" if len(scales) > 1 else ""))
            scale_y(axes, np.array([cell[key] for cell in cells]))
            axes.set(xlabel="network evaluations for an image", ylabel=label, xscale="log")
            ticks = sorted({cell["evaluations"] for cell in cells})
            axes.set_xticks(ticks if len(ticks) <= 10 else ticks[::len(ticks) // 8 + 1])
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_locator(NullLocator())
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
        atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=150))
