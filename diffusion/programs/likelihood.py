"""Estimates bits per dimension on config.data."""
import json
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffusion.programs import shared_flags

INSTEAD = {"num_examples": "--num_samples or --config.evaluate.images"}


def declare_flags(values: flags.FlagValues) -> None:
    shared_flags.declare_drawing(values)
    flags.DEFINE_integer("num_examples", None, "The number of images of the data. Default: all.", lower_bound=1,
                         flag_values=values)
    shared_flags.declare_path("out", "The file to write. Default: in the run folder, or in samples/ for a pretrained "
                              "model.", values)


def prepare_process(values: flags.FlagValues) -> None:
    pass


def run_program(config: ConfigDict, workdir: Path, values: flags.FlagValues) -> None:
    name = f"likelihood_{config.likelihood.estimator}_{config.data.split}.json"
    likelihood(config, workdir, values.from_pretrained, num_examples=values.num_examples, seed=values.seed,
               out=Path(values.out or shared_flags.default_folder(workdir, values) / name), step=values.checkpoint)


def likelihood(config: ConfigDict, workdir: Path, source: str | None = None, *, num_examples: int | None, seed: int,
               out: Path, step: int | None) -> None:
    """Writes bits per dimension of the first `num_examples` of config.data (None: all), by config.likelihood, to the
    JSON file `out`, next to a plot of the terms of a bound. Other arguments as in `programs.sample.sample`."""
    from diffusion import build, pretrained
    from diffusion.data.sources import gather_examples
    from diffusion.io.files import atomic_write, check_can_be_written
    from diffusion.io.processes import is_primary, print_once
    from diffusion.io.progress import Progress
    from diffusion.likelihood.vlb import rate_distortion
    config = build.measured(config)
    model, read = pretrained.open_model(config, source or workdir, checkpoint=step)
    evaluator = build.evaluator(config, model, seed)
    check_can_be_written(out)
    images_of = build.training_images(config)
    params = read()
    count = min(num_examples or len(images_of), len(images_of))

    with Progress(count, unit=model.spec.called) as progress:
        found = evaluator(params, lambda indices: gather_examples(images_of, indices), count, progress.update)
    found = {**found, "estimator": config.likelihood.to_dict(), "data": config.data.to_dict(), "seed": seed,
             "clip": build.clips(config)}
    if config.likelihood.estimator == "vlb":
        prior, vlb, x0_mse = (np.array(found["terms"][name]["mean"], float) for name in ("prior", "vlb", "x0_mse"))
        rate, distortion = rate_distortion(prior, vlb, x0_mse, model.spec.levels)
        times = build.likelihood_chain(config, model)[:, 0]
        found |= {"times": times.tolist(), "rate": rate.tolist(), "distortion": distortion.tolist()}
    if is_primary():
        atomic_write(out, json.dumps(found, indent=2))
        if config.likelihood.estimator == "vlb":
            from diffusion.io import likelihood_plots  # imports matplotlib
            likelihood_plots.plot_terms(times, vlb, rate, distortion, out.with_suffix(".png"))
    error = "?" if count == 1 else f"{found['standard_error']:.4f}"
    value, unit = (found["nats"], "nats") if "nats" in found else (found["bits_per_dim"], "bits/dim")
    print_once(f"{value:.4f} +- {error} {unit} over {count:,} {model.spec.called}s of {config.data.split} (standard "
               f"error), by {config.likelihood.estimator}; its terms are in {out}")
