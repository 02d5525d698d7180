"""Writes arrays of floats: samples.npz and scatter plots."""
import math
import os
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffusion.io.files import atomic_write
from diffusion.io.plots import BLUE, STYLE
from diffusion.io.sample_set import check_samples_folder

SHOWN = 10_000  # at most this many arrays are plotted


def save_arrays(folder: str | os.PathLike, batches: Iterable[np.ndarray], *, count: int) -> None:
    """Writes `count` arrays as `arr_0` of samples.npz, and scatter.png of the first. Raises ConfigError if the folder
    holds samples already, CheckpointError if it cannot be written."""
    folder = Path(folder)
    check_samples_folder(folder)
    x = np.concatenate(list(batches))
    if len(x) != count:
        raise ValueError(f"{len(x)} arrays came, but {count} were announced")
    save_scatter(folder / "scatter.png", x)
    atomic_write(folder / "samples.npz", lambda file: np.savez(file, x))


def save_scatter(path: str | os.PathLike, x: np.ndarray) -> None:
    """The first two numbers of each array [N, ...] as points of the plane; of arrays of one number, a histogram."""
    flat = x[:SHOWN].reshape(min(len(x), SHOWN), -1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        if flat.shape[1] == 1:
            axes.hist(flat[:, 0], bins=min(100, 1 + round(math.sqrt(len(flat)))), color=BLUE)
            axes.set(xlabel="x", ylabel="arrays")
        else:
            axes.plot(flat[:, 0], flat[:, 1], ".", color=BLUE, markersize=2, alpha=0.5)
            axes.set(xlabel="first number", ylabel="second number", aspect="equal")
        atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=120))
