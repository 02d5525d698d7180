"""Plots the curves of a run as PNGs."""
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatter, ScalarFormatter

from diffusion.io.files import atomic_write

STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
          "grid.linewidth": 0.6, "axes.titlesize": 11}
BLUE = "#1f5fa8"
_LOG_SNR = r"log-SNR, $\log(\alpha^2/\sigma^2)$:  noise $\leftarrow$ $\rightarrow$ data"
_LOG_FROM = 8.0  # axes with at least this ratio of largest to smallest are logarithmic
_PEAK = 50.0     # of weights: the ratio of the largest to the median
_SPAN = 1e8      # of weights: the ratio of the largest to the smallest shown
_PERIODS = (("first tenth", 0.0, 0.1), ("middle tenth", 0.45, 0.55), ("last tenth", 0.9, 1.0))
_SHORT_PERIODS = (("first row", 0.0, 0.0), ("last row", 1.0, 1.0))  # for fewer than ten rows


def plot_loss(rows: Sequence[dict], path: str | os.PathLike, title: str | None = None) -> None:
    """Plots loss against images seen: rows faint, running mean strong. Draws nothing if no row has a finite loss.

    rows: of metrics.jsonl, with "images" and "loss". title: the name of the file's folder if None.
    Raises CheckpointError if the file cannot be written.
    """
    points = np.array([(row["images"], row["loss"]) for row in rows
                       if _finite(row.get("loss")) and _finite(row.get("images"))], float).reshape(-1, 2)
    if not len(points):
        return
    images, loss = points.T
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(path, title, "loss")
        many = len(loss) >= 20
        axes.plot(images, loss, color=BLUE, alpha=0.3 if many else 1, linewidth=1, marker=None if many else "o",
                  markersize=3, label="each row of the log")
        if many:
            half = max(1, len(loss) // 40)
            axes.plot(images, _running_mean(loss, half), color=BLUE, linewidth=1.8,
                      label=f"mean of {2 * half + 1} rows")
            axes.legend(frameon=False)
        scale_y(axes, loss)
        axes.set(xlabel="training images seen", ylabel="training loss", xlim=(0, None))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _save(figure, path)


def plot_loss_by_noise(rows: Sequence[dict], path: str | os.PathLike, log_snr_edges: Sequence[float],
                       title: str | None = None) -> None:
    """Plots the mean loss in each bin of log-SNR, early and late in the run, to show which noise levels are learned.

    rows: of metrics.jsonl, with "images" and "loss_by_log_snr" [K], None in a bin without examples.
    log_snr_edges: [K + 1], ascending. Draws nothing if there is nothing finite; title and errors as in `plot_loss`.
    """
    edges = np.asarray(log_snr_edges, float)
    rows = [row for row in rows if len(row.get("loss_by_log_snr") or []) == len(edges) - 1
            and _finite(row.get("images"))]
    table = np.array([[v if _finite(v) else np.nan for v in row["loss_by_log_snr"]] for row in rows], float)
    if not np.isfinite(table).any():
        return
    n = len(rows)
    periods = _PERIODS if n >= 10 else _SHORT_PERIODS[-min(n, 2):]
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(path, title, "loss by noise level")
        shown = []
        colours = matplotlib.colormaps["viridis"](np.linspace(0.8, 0.1, len(periods)))
        for (name, start, stop), colour in zip(periods, colours):
            first = min(int(start * n), n - 1)
            last = max(first + 1, round(stop * n))
            seen = np.isfinite(table[first:last])
            total = np.where(seen, table[first:last], 0).sum(axis=0)
            mean = np.where(seen.any(axis=0), total / np.maximum(seen.sum(axis=0), 1), np.nan)
            shown.append(mean)
            begin, end = rows[first - 1]["images"] if first else 0, rows[last - 1]["images"]
            axes.stairs(mean, edges, baseline=None, color=colour, linewidth=2,
                        label=f"{name}, {_count(begin)} to {_count(end)} images")
        scale_y(axes, np.concatenate(shown))
        axes.set(xlabel=_LOG_SNR,
                 ylabel="training loss in the bin", xlim=(edges[0], edges[-1]))
        axes.legend(frameon=False)
        _save(figure, path)


def plot_effective_weight(rows: Sequence[dict], path: str | os.PathLike, log_snr_edges: Sequence[float],
                          curve: Mapping[str, Sequence[float]] | None = None, title: str | None = None) -> None:
    """Plots the effective weight of a run, w(lambda) p(lambda) of the squared error in eps (Kingma & Gao 2023).

    rows: of metrics.jsonl, with "images" and "effective_weight_by_log_snr" [K]: measured at the times drawn, averaged
    over the last tenth of the rows. curve: dict(log_snr [N], effective_weight [N]), by the formula. log_snr_edges:
    [K + 1], ascending. Draws nothing if there is nothing finite; title and errors as in `plot_loss`.
    """
    edges, name = np.asarray(log_snr_edges, float), "effective_weight_by_log_snr"
    rows = [row for row in rows if len(row.get(name) or []) == len(edges) - 1]
    last = rows[-max(1, len(rows) // 10):]
    table = np.array([[v if _finite(v) else np.nan for v in row[name]] for row in last], float).reshape(
        -1, len(edges) - 1)
    curves = [] if curve is None else [np.array([curve["log_snr"], curve["effective_weight"]], float)]
    curves = [c[:, np.isfinite(c).all(axis=0) & (c[0] >= edges[0]) & (c[0] <= edges[-1])] for c in curves]
    measured = table.mean(axis=0) if len(table) else np.full(len(edges) - 1, np.nan)
    shown = np.concatenate([measured[np.isfinite(measured)], *(c[1] for c in curves)])
    if not len(shown):
        return
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(path, title, "effective weight")
        # Unimportant weights fall by many powers of ten, so a linear axis shows the important ones, unless a few noise
        # levels have nearly all of the weight: it would show only these.
        low = 0.0
        if (positive := shown[shown > 0]).size and shown.max() > _PEAK * np.median(positive):
            low = max(positive.min(), shown.max() / _SPAN) / 2
            _log(axes)
        if np.isfinite(measured).any():
            axes.stairs(measured, edges, baseline=low, fill=True, color=BLUE, alpha=0.3,
                        label="of the times drawn, last tenth of the run")
        for log_snr, weight in curves:
            axes.plot(log_snr, weight, color=BLUE, linewidth=2, label="formula")
        axes.set_ylim(low, (2 if low else 1.1) * shown.max())
        if not low:
            axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        axes.set(xlabel=_LOG_SNR, ylabel=r"weight of the error in $\epsilon$ for each unit of log-SNR",
                 xlim=(edges[0], edges[-1]))
        axes.legend(frameon=False)
        _save(figure, path)


def _axes(path: str | os.PathLike, title: str | None, what: str):
    # Without pyplot: no global state, and no search for a display.
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(f"{Path(path).resolve().parent.name if title is None else title}: {what}", loc="left")
    return figure, axes


def _save(figure: Figure, path: str | os.PathLike) -> None:
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=150))


def scale_y(axes, values: np.ndarray) -> None:
    values = values[np.isfinite(values)]
    if values.min() > 0 and values.max() / values.min() > _LOG_FROM:
        _log(axes)
    else:
        axes.set_ylim(bottom=min(0, values.min()))
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))


def _log(axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_PlainLog())
    axes.yaxis.set_minor_formatter(_PlainLog(labelOnlyBase=False, minor_thresholds=(2, 0.8)))


class _PlainLog(LogFormatter):
    """Formats ticks as 0.01, 0.02, 0.1 rather than powers of ten."""

    def _num_to_string(self, x, vmin, vmax):
        return f"{x:g}"


def _running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Mean over `half` rows on each side; near the ends over fewer, equally on both sides, to keep the steep start."""
    sums = np.concatenate([[0], np.cumsum(values)])
    i = np.arange(len(values))
    reach = np.minimum(i, half)
    low, high = i - reach, np.minimum(i + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _finite(value) -> bool:
    return isinstance(value, (int, float)) and np.isfinite(value)


def _count(n: int) -> str:
    return EngFormatter(sep="")(float(f"{n:.3g}"))
