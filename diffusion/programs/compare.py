"""Compares one model under many samplers, {solver x steps x guidance} from the same noise: quality and cost."""
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffusion.errors import ConfigError, DataError
from diffusion.metrics.frechet import Statistics, frechet_distance, statistics
from diffusion.programs import shared_flags

if TYPE_CHECKING:
    from diffusion import build
    from diffusion.generate import Samples
    from diffusion.kinds.base import Spec

SHOWN = 25  # images in a cell's picture
LISTS = {"solvers": str, "steps": int, "scales": float}
INSTEAD = {"solvers": "--config.sample.solver", "scales": "--config.sample.guidance.scale",
           "steps": "--config.sample.steps, or --config.train.duration for a training run"}


def declare_flags(values: flags.FlagValues) -> None:
    shared_flags.declare_drawing(values)
    shared_flags.declare_num_samples(values)
    flags.DEFINE_list("solvers", ["ddim", "heun", "dpm_solver++m", "unipc"], "Names of config.sample.solver.",
                      flag_values=values)
    flags.DEFINE_list("steps", ["5", "10", "20", "50"], "Numbers of steps.", flag_values=values)
    flags.DEFINE_list("scales", None, "Scales of guidance. Default: the scale of config.sample.guidance.",
                      flag_values=values)
    shared_flags.declare_path("out", "The folder to write. Default: compare in the run folder, or in samples/ for a "
                              "pretrained model.", values)


def prepare_process(values: flags.FlagValues) -> None:
    parse_lists(values)


def run_program(config: ConfigDict, workdir: Path, values: flags.FlagValues) -> None:
    out = Path(values.out or shared_flags.default_folder(workdir, values) / "compare")
    compare(config, workdir, values.from_pretrained, **parse_lists(values), num_samples=values.num_samples,
            seed=values.seed, out=out, checkpoint=values.checkpoint)


def parse_lists(values: flags.FlagValues) -> dict[str, list]:
    return {name: shared_flags.parse_list(name, kind, values) for name, kind in LISTS.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One sampler of the comparison."""
    solver: str
    steps: int
    scale: float
    evaluations: float       # denoiser calls per image
    seconds: float           # for all images, without compilation
    distance: float | None   # Frechet distance of pooled pixels to the training data (not FID); None without the data
    error: float             # root mean square distance, pixel by pixel, to the reference chain's images


def compare(config: ConfigDict, workdir: Path, source: str | None, *, solvers: list[str], steps: list[int],
            scales: list[float] | None, num_samples: int, seed: int, out: Path, checkpoint: int | None) -> None:
    """Samples the model of a run, or of `source`, with every combination, and writes compare.json, quality.png and a
    picture of each cell to the new folder `out`. scales: of guidance; None: the scale of config.sample.guidance.

    The reference of `Cell.error` is DDIM's chain (eta = 0) with as many steps as the model has times (continuous time:
    1000), which is the probability-flow ODE up to its own error; stochastic solvers necessarily differ from it. Each
    solver is compiled once for all steps and scales; config.sample.batch_size images are drawn at a time. Raises
    ConfigError for an impossible combination, before anything is compiled.
    """
    if num_samples < 2:
        raise ConfigError("--num_samples=1 is too few to compare: the distance to the data needs a covariance. Use "
                          "2 or more.")
    from diffusion import build, pretrained
    from diffusion import config as config_lib
    from diffusion.io import sample_set
    from diffusion.io.files import atomic_write
    from diffusion.io.processes import is_primary
    from diffusion.io.progress import Progress, of_chains
    from diffusion.parallel import sharding
    config = build.measured(config)
    if scales is None:
        scales = [config.sample.guidance.scale if config.sample.guidance.name != "none" else 1.0]
    elif config.sample.guidance.name == "none" and (others := [scale for scale in scales if scale != 1]):
        config = build.with_scale(config, others[0])
    model, read = pretrained.open_model(config, source or workdir, checkpoint=checkpoint)
    sample_set.check_samples_folder(out)
    cells = [build_cell(config, model, name, list(steps)) for name in solvers]
    params = read()
    data = data_statistics(config, model.spec)

    longest = getattr(model.process, "t_max", 1.0)
    finest = int(longest) if model.process.discrete else 1000
    exact_chain = config_lib.override(config, {"sample.solver": "ddim", "sample.eta": 0.0})
    reference, (finest_grid,) = build_cell(exact_chain, model, "ddim", [finest])
    rows = min(config.sample.batch_size, sharding.fill(num_samples, model.mesh))
    conditions = build.conditions(config, model)

    def draw(sampler: build.Sampler, grid: np.ndarray, scale: float, count: int = num_samples,
             report: Callable[[int], None] | None = None) -> Iterator[tuple[slice, "Samples"]]:
        """The chains of the first `count` images, `rows` at a time: their places and the drawn images."""
        for first in range(0, count, rows):
            indices = np.arange(first, first + rows, dtype=np.int32)
            yield slice(first, min(first + rows, count)), sampler(
                params, grid, seed, indices, cond=conditions(indices), report=report,
                chain_inputs={} if config.sample.guidance.name == "none" else {"scale": scale})

    results, pictures, exact, grid = [], {}, {}, finest_grid(params)
    for scale in scales:
        progress, report = of_chains(num_samples, batch=rows, steps=len(grid))
        with progress:
            progress.message(f"first the reference for the errors: ddim with {len(grid):,} steps"
                             + f" at the scale {scale:g}" * (len(scales) > 1))
            exact[scale] = np.concatenate([drawn.within(model.spec.bounds)[:at.stop - at.start]
                                           for at, drawn in draw(reference, grid, scale, report=report)])
    with Progress(len(cells) * len(steps) * len(scales), unit="sampler") as progress:
        for (name, (sampler, grids)), scale in itertools.product(zip(solvers, cells), scales):
            for count, grid in zip(steps, [of(params) for of in grids]):
                list(draw(sampler, grid[-1:], scale, 1))  # compiles on the first use
                cell, shown = measure(draw(sampler, grid, scale), exact[scale], data, model.spec)
                results.append(Cell(solver=name, steps=count, scale=scale, **cell))
                pictures[f"{name}_{count}_steps" + (f"_scale_{scale:g}" if len(scales) > 1 else "")] = shown
                progress.update(1)
    if is_primary():
        from diffusion.io import solver_plots  # imports matplotlib, which takes half a second
        out.mkdir(parents=True, exist_ok=True)
        for name, x in pictures.items():
            model.spec.preview(out / f"{name}.png", model.spec.finish(x))
        rows = [dataclasses.asdict(cell) for cell in results]
        atomic_write(out / "compare.json", json.dumps({"seed": seed, "images": num_samples, "cells": rows}, indent=2))
        solver_plots.plot_quality(rows, out / "quality.png")
        print(table(results))
        print(f"quality.png, compare.json and the pictures are in {out}")


def measure(batches: Iterator[tuple[slice, "Samples"]], exact: np.ndarray, data: Statistics | None,
            kind: "Spec") -> tuple[dict[str, float | None], np.ndarray]:
    """The cell's measures of the samples from `batches`, against `exact` [N, ...], and the first SHOWN of them."""
    seconds, squares, evaluations, pooled, shown = 0.0, 0.0, 0.0, [], []
    started = time.perf_counter()
    for at, drawn in batches:
        seconds += time.perf_counter() - started
        x = drawn.within(kind.bounds)[:at.stop - at.start]
        squares += float(np.sum((x - exact[at]) ** 2, dtype=np.float64))
        evaluations += drawn.evaluations * len(x)
        pooled.append(kind.pooled(x))
        shown.extend(x[:SHOWN - len(shown)])
        started = time.perf_counter()
    distance = None if data is None else frechet_distance(statistics(np.concatenate(pooled)), data)
    return {"evaluations": evaluations / len(exact), "seconds": round(seconds, 3), "distance": distance,
            "error": float(np.sqrt(squares / exact.size))}, np.stack(shown)


def build_cell(config: ConfigDict, model: "build.Model", solver: str, counts: list[int]):
    """(sampler, for each number of steps its grid as a function of the parameters)."""
    from diffusion import build
    from diffusion import config as config_lib
    of = lambda count: config_lib.override(config, {"sample.solver": solver, "sample.steps": count})  # noqa: E731
    grids = [build.grid_of(of(count), model) for count in counts]
    return build.sampler(of(counts[0]), model), grids


def data_statistics(config: ConfigDict, spec: "Spec") -> Statistics | None:
    """The statistics of the training data; None, with a note, if they are not available."""
    from diffusion import build
    from diffusion.data.sources import gather_examples
    try:
        source = build.training_images(config)
    except (ConfigError, DataError) as error:
        print(f"note: no distances to the data: {error}")
        return None
    return statistics(np.concatenate([
        spec.pooled(np.asarray(spec.prepare(gather_examples(source, np.arange(i, min(i + 1000, len(source))))).x0))
        for i in range(0, len(source), 1000)]))


def table(cells: list[Cell]) -> str:
    """The cells as a text table."""
    lines = [f"{'solver':<24}{'steps':>6}{'scale':>7}{'NFE':>8}{'seconds':>9}{'distance':>10}{'error':>9}"]
    for c in cells:
        distance = "-" if c.distance is None else f"{c.distance:.4f}"
        lines.append(f"{c.solver:<24}{c.steps:>6}{c.scale:>7g}{c.evaluations:>8g}{c.seconds:>9.2f}{distance:>10}"
                     f"{c.error:>9.4f}")
    return "\n".join(lines)
