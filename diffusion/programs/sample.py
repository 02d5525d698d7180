"""Draws images from a model, or makes them from given images by a --task."""
import collections
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from diffusion.errors import ConfigError
from diffusion.programs import edit, shared_flags

INSTEAD = edit.INSTEAD


def declare_flags(values: flags.FlagValues) -> None:
    shared_flags.declare_drawing(values)
    shared_flags.declare_num_samples(values)
    flags.DEFINE_list("classes", None, "The classes of the images, used in turn, such as 3,3,7. Default: all classes "
                      "in turn.", flag_values=values)
    shared_flags.declare_path("out", "The folder to write. Default: in the run folder, or in samples/ for a pretrained "
                              "model.", values)
    edit.declare_flags(values)


def prepare_process(values: flags.FlagValues) -> None:
    edit.check_uses(values)
    if not values.task:
        shared_flags.parse_list("classes", int, values)
    elif values["classes"].present:
        raise ConfigError("--classes is for samples without a --task; --label is the class of the pictures in --image.")


def run_program(config: ConfigDict, workdir: Path, values: flags.FlagValues) -> None:
    source = values.from_pretrained
    if values.task:
        edit.run_program(config, workdir, values)
        return
    out = workdir / f"samples_{values.seed}" if source is None else f"samples/{Path(source).name}_{values.seed}"
    sample(config, workdir, source, num_samples=values.num_samples, seed=values.seed, out=Path(values.out or out),
           step=values.checkpoint, classes=shared_flags.parse_list("classes", int, values))


def sample(config: ConfigDict, workdir: Path, source: str | None = None, *, num_samples: int, seed: int, out: Path,
           step: int | None, classes: list[int] | None = None) -> None:
    """Draws `num_samples` images into `out` from the run in `workdir` or another model, `source` (`pretrained.load`).

    classes: of the images, in turn; None: all classes of the model. `config` may differ from the model's only in the
    sampler. `step`: the run's checkpoint; default the newest. A run's weights are the averaged ones.
    """
    from diffusion import build, pretrained
    from diffusion import config as config_lib
    from diffusion.build import advice
    from diffusion.io import sample_set
    from diffusion.io.processes import is_primary, print_once
    from diffusion.io.progress import of_chains
    from diffusion.io.run_folder import open_run
    config = build.measured(config)
    if source is None:
        open_run(workdir, config.to_dict(), resumable_keys=build.RESUMABLE_KEYS, read_only=True,
                 adopt=config_lib.adopt_dict)
    model, read = pretrained.open_model(config, source or workdir, checkpoint=step)
    generate = build.generate(config, model, classes)
    for note in advice.of_sampling(config):
        print_once(note)
    sample_set.check_samples_folder(out)
    params = read()
    progress, report = of_chains(num_samples, batch=config.sample.batch_size,
                                 steps=len(build.grid_of(config, model)(params)))
    with progress:
        batches, written = map(model.spec.finish, generate(params, seed, 0, num_samples, report)), ""
        if is_primary():
            written = model.spec.write(out, batches, num_samples, build.titles(config, model, num_samples, classes))
        else:  # every process computes its share
            collections.deque(batches, maxlen=0)
    print_once(f"{num_samples:,} {model.spec.called}s, {written} are in {out}")
