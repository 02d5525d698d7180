"""Evaluates samples against config.data by config.evaluate: FID and similar metrics."""
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from diffusion.errors import CheckpointError, ConfigError
from diffusion.io.files import check_can_be_written
from diffusion.programs import shared_flags

INSTEAD = {"all_checkpoints": "--checkpoint", "num_seeds": "--seed"}


def declare_flags(values: flags.FlagValues) -> None:
    shared_flags.declare_drawing(values)
    flags.DEFINE_bool("all_checkpoints", False, "Evaluate every checkpoint of the run.", flag_values=values)
    flags.DEFINE_integer("num_seeds", 1, "The number of seeds, from --seed on; the record has all, their mean and the "
                         "best.", lower_bound=1, upper_bound=10**4, flag_values=values)
    shared_flags.declare_path("out", "The folder to write. Default: evaluations in the run folder, or in samples/ for "
                              "a pretrained model.", values)


def prepare_process(values: flags.FlagValues) -> None:
    if values.all_checkpoints and values["checkpoint"].present:
        raise ConfigError("Either --all_checkpoints or --checkpoint=STEP, not both.")
    if values.seed + values.num_seeds - 1 > shared_flags.LARGEST_SEED:
        raise ConfigError(f"--num_seeds={values.num_seeds} from --seed={values.seed} on goes beyond the last seed, "
                          f"{shared_flags.LARGEST_SEED}.")


def run_program(config: ConfigDict, workdir: Path, values: flags.FlagValues) -> None:
    out = Path(values.out or shared_flags.default_folder(workdir, values) / "evaluations")
    evaluate(config, workdir, values.from_pretrained, seed=values.seed, seeds=values.num_seeds, step=values.checkpoint,
             all_checkpoints=values.all_checkpoints, out=out)


def evaluate(config: ConfigDict, workdir: Path, source: str | None, *, seed: int, seeds: int, step: int | None,
             all_checkpoints: bool, out: Path) -> None:
    """Evaluates a run, or `source`, with `seeds` seeds from `seed` on, and writes one record per checkpoint to the
    folder `out`, with a plot of all its records."""
    from diffusion import build, pretrained
    from diffusion import config as config_lib
    from diffusion.build import advice
    from diffusion.io import run_folder
    from diffusion.io.checkpoint import Checkpoints
    from diffusion.io.processes import print_once
    from diffusion.programs import evaluation
    build.extractor(config)  # raises for data that it does not take
    config = build.measured(config)
    if source is None:
        run_folder.open_run(workdir, config.to_dict(), resumable_keys=build.RESUMABLE_KEYS, read_only=True,
                            adopt=config_lib.adopt_dict)
    check_can_be_written(out / "evaluations.png")
    steps: list[int | None] = [step]
    if all_checkpoints:
        if source is not None:
            raise ConfigError("--all_checkpoints is for a run, by --workdir; a pretrained model has only one.")
        steps = list(Checkpoints(workdir / "checkpoints").steps())
        if not steps:
            raise CheckpointError(f"{workdir} holds no checkpoints.")
    evaluate_params = None
    for at in steps:
        model, read = pretrained.open_model(config, source or workdir, checkpoint=at)
        if evaluate_params is None:
            evaluate_params = evaluation.prepare(config, model, evaluation.load_extractor(config),
                                                 out.parent / ".features")
            for note in advice.of_sampling(config):
                print_once(note)
        number = at if at is not None or source else pretrained.newest_step(workdir, config)
        params, what = read(), evaluation.sampling(config, source or workdir, number)
        records, first = zip(*(evaluate_params(params, seed + i, what) for i in range(seeds)))
        evaluation.write(out, evaluation.average_records(records), first[0], model.spec, evaluate_params.titles)
