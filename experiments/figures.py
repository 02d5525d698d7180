"""Draws the plots of a report as PNG bytes: the paper's numbers next to ours, never on one axis."""
import io
import json
from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from diffusion import config as config_lib
from diffusion.io.plots import BLUE, STYLE
from experiments.gather import Ours, Report, RowReport, log

_GREY = "#777777"
_WIDTH = 5.0  # inches
_MOST_CURVES = 12


def png(draw: Callable[[Figure], None], height: float) -> bytes:
    """The PNG of a figure as wide as a phone, for legible letters."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=180)
    return file.getvalue()


def colours(number: int) -> list:
    return [BLUE, *matplotlib.colormaps["tab10"].colors[1:], *matplotlib.colormaps["tab20b"].colors][:number]


def has_paper(report: Report, column: Ours) -> bool:
    """Whether the paper has two or more numbers to compare in the rows shown here."""
    cells = [row.paper[column.column.name] for row in report.rows]
    return sum(cell is not None and cell.value is not None for cell in cells) > 1


def quality(report: Report, column: Ours) -> bytes | None:
    """The plot of one of our columns next to the paper's; None while nothing is measured."""
    if not any(row.ours[column].values for row in report.rows):
        return None
    return against_x(report, column) if report.sweep.table.x else by_row(report, column)


def by_row(report: Report, column: Ours) -> bytes:
    rows, paper = report.rows, has_paper(report, column)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1 + paper, 1, squeeze=False)[:, 0]
        y = np.arange(len(rows))[::-1]
        for at, row in zip(y, rows):
            values = row.ours[column]
            if values.values:
                panels[0].plot(values.values, [at] * len(values.values), "o", color=BLUE, alpha=0.3, markersize=5)
                panels[0].errorbar([values.mean], [at], xerr=[values.error or 0], fmt="|", color=BLUE, markersize=12,
                                   capsize=3, markeredgewidth=2)
        for panel in panels:
            panel.set_yticks(y, [row.name for row in rows], fontsize=8)
            panel.set_ylim(-0.7, len(rows) - 0.3)
        panels[0].set_title(f"ours: {column.called}")
        readable_log(panels[0], [v for row in rows for v in row.ours[column].values])
        if paper:
            for at, cell in ((at, cell) for at, row in zip(y, rows) if (cell := row.paper[column.column.name])):
                if cell.value is not None:
                    panels[1].errorbar([cell.value], [at], xerr=[cell.error or 0], fmt="s", color=_GREY, capsize=3)
                else:
                    panels[1].text(0.02, at, cell.note, transform=panels[1].get_yaxis_transform(), va="center",
                                   color=_GREY, fontsize=8)
            panels[1].set_title(f"paper: {column.column.name}")
    return png(draw, (0.9 + 0.26 * len(rows)) * (1 + paper))


def readable_log(axes, values: list[float]) -> None:
    """Makes the x axis logarithmic, with plain numbers, if one row's values would compress the others."""
    if values and min(values) > 0 and max(values) > 3 * min(values):
        axes.set_xscale("log")
        ticks = [m * 10.0**e for e in range(-3, 6) for m in (1, 2, 5)]
        axes.set_xticks([x for x in ticks if min(values) / 1.3 < x < max(values) * 1.3])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.minorticks_off()


def series(report: Report) -> dict[str, list[tuple[float, RowReport]]]:
    """Rows that differ only in table.x, by their common name. A row without an x yet is left out."""
    table, found = report.sweep.table, {}
    key = "sample.steps" if table.x == "evaluations" else table.x
    for row in report.rows:
        config = config_lib.keys(table.config(report.sweep.scale, table.row(row.name)))
        x = row.evaluations if table.x == "evaluations" else config[key]
        rest = json.dumps({k: v for k, v in table.row(row.name).overrides.items() if k != key}, default=str)
        if x is not None:
            found.setdefault(rest, []).append((float(x), row))
    return {curve[0][1].name.rsplit(", ", 1)[0] if len(curve) > 1 or len(found) > 1 else "": sorted(
        curve, key=lambda point: point[0]) for curve in found.values()}


def against_x(report: Report, column: Ours) -> bytes:
    curves, paper = series(report), has_paper(report, column)
    x = report.sweep.table.x
    label = "evaluations of the network for a sample" if x == "evaluations" else x.removeprefix("sample.")

    def points(curve, of):
        found = [(x, *of(row)) for x, row in curve if of(row)[0] is not None]
        return list(zip(*found)) if found else ([], [], [])

    def ours(row):
        return row.ours[column].mean, row.ours[column].error or 0

    def theirs(row):
        cell = row.paper[column.column.name]
        return (cell.value, cell.error or 0) if cell else (None, 0)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1 + paper, 1, squeeze=False)[:, 0]
        for panel, of, title in zip(panels, (ours, theirs), (f"ours: {column.called}", f"paper: {column.column.name}")):
            low, high = [], []
            for (name, curve), colour in zip(curves.items(), colours(len(curves))):
                x, y, error = points(curve, of)
                if x:
                    panel.errorbar(x, y, error, marker="o", markersize=4, capsize=3, color=colour, label=name)
                    low.append(min(y))
                    high.append(max(y))
            panel.set(title=title, xlabel=label)
            if low and min(low) > 0 and max(high) > 4 * min(low):
                panel.set_yscale("log")
            xs = [x for curve in curves.values() for x, _ in curve]
            if min(xs) > 0 and max(xs) >= 8 * min(xs):
                panel.set_xscale("log")
                panel.set_xticks(sorted(set(xs)), [f"{x:g}" for x in sorted(set(xs))])
                panel.xaxis.minorticks_off()
                panel.set_xlim(min(xs) / 1.2, max(xs) * 1.2)
        if list(curves) != [""]:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False,
                          fontsize=8)
    return png(draw, 3.2 * (1 + paper) + 0.12 * len(curves))


def losses(report: Report) -> bytes | None:
    """The plot of each row's training loss, its mean over the seeds and their range; None for too many different
    losses, or none. Rows of different objectives have different scales."""
    trained: dict[str, tuple[str, list]] = {}
    for member in report.sweep.members:
        name, runs = trained.setdefault(member.training.rsplit("_s", 1)[0], (member.row.name, []))
        run = report.sweep.folder / "runs" / member.training
        if run not in runs:
            runs.append(run)
    curves = {}
    for name, runs in trained.values():
        logs = [[(r["images"], r["loss"]) for r in log(run) if r.get("loss") is not None] for run in runs]
        length = min((len(rows) for rows in logs if rows), default=0)
        if length > 1:
            curves[name] = np.array([rows[:length] for rows in logs if rows])
    if not curves or len(curves) > _MOST_CURVES:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (name, found), colour in zip(curves.items(), colours(len(curves))):
            x, y = found[0, :, 0], found[:, :, 1]
            axes.plot(x, y.mean(0), color=colour, label=name, linewidth=1.5)
            axes.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel="images", ylabel="training loss")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        values = np.concatenate([found[:, :, 1].ravel() for found in curves.values()])
        if values.min() > 0 and values.max() > 10 * values.min():
            axes.set_yscale("log")
        if len(curves) > 1:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False,
                          fontsize=8)
    return png(draw, 3.4 + 0.12 * len(curves))
