"""Plots the terms of a likelihood bound as PNGs."""
import os

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffusion.io.files import atomic_write
from diffusion.io.plots import BLUE, STYLE


def plot_terms(times: np.ndarray, terms: np.ndarray, rate: np.ndarray, distortion: np.ndarray,
               path: str | os.PathLike) -> None:
    """Plots a variational bound's terms: each L_t of `times` [S], the last from the decoder, and rate and distortion
    [S + 1] of the progressive code (Ho et al. 2020, Figs. 5 and 6).

    terms [S]: bits per dimension. Raises CheckpointError if the file cannot be written.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        left.plot(times, np.maximum(terms, 1e-12), ".-", color=BLUE, markersize=3, linewidth=1)
        left.set(xlabel="t:  data $\\leftarrow$ $\\rightarrow$ noise", ylabel="$L_{t-1}$, bits/dim", yscale="log",
                 xscale="log" if len(times) > 50 else "linear", title="terms of the bound")
        right.plot(rate, distortion, color=BLUE, linewidth=2)
        right.set(xlabel="rate, bits/dim", ylabel="distortion, root mean square error in levels", xlim=(0, None),
                  ylim=(0, None), title="rate and distortion of the progressive code")
        atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=150))
