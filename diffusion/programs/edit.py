"""`--mode=sample --task=NAME`: makes images from given images by one trained model: inpainting, colorisation,
super-resolution, SDEdit, DDIM inversion."""
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffusion.errors import ConfigError, DataError
from diffusion.programs import shared_flags

if TYPE_CHECKING:
    from diffusion import build
    from diffusion.core.processes import Process
    from diffusion.kinds.base import Spec

MEASURED = ("inpaint", "colorise", "upscale")  # a part of the image is known
INVERTED = ("reconstruct", "interpolate")      # through the noise from which DDIM makes the image
TASKS = (*MEASURED, "vary", *INVERTED)
SHOWN = 24  # images in task.png
# flag -> the tasks that read it
READ_BY = {"image": TASKS, "label": TASKS, "mask": ("inpaint",), "gap": ("inpaint",), "factor": ("upscale",),
           "jump": MEASURED, "repeats": MEASURED, "reconstruction": MEASURED, "strength": ("vary",),
           "iterations": INVERTED}
INSTEAD = {name: f"--mode=sample --task={' or '.join(tasks)}" for name, tasks in READ_BY.items()}

# The sampler settings that DDIM's inversion inverts.
DDIM = {"sample.solver": "ddim", "sample.eta": 0.0, "sample.corrector": "none", "sample.clip": False,
        "sample.dynamic_threshold": 0.0, "sample.end": 0, "sample.constant_stride": False}


def declare_flags(values: flags.FlagValues) -> None:
    """Declares the flags of the program `sample` for tasks."""
    flags.DEFINE_enum("task", None, TASKS, "The task for given images. inpaint, colorise, upscale: fill in missing "
                      "parts; vary: SDEdit; reconstruct, interpolate: DDIM inversion.", flag_values=values)
    shared_flags.declare_path("image", "For a task: a picture, a folder or npz of pictures; for other kinds of data a "
                              "recording or clip, or a folder of them. Default: config.data.", values)
    shared_flags.declare_path("mask", "inpaint: a picture, white where it is drawn anew. Default: the middle.", values)
    flags.DEFINE_list("gap", None, "inpaint: FROM,TO, the seconds of sound or the frames of a clip that are drawn "
                                   "anew. "
                      "Default: the middle half.", flag_values=values)
    flags.DEFINE_integer("label", None, "For a task: the class of the pictures in --image.", flag_values=values)
    flags.DEFINE_integer("factor", 4, "upscale: the factor of height and width.", lower_bound=1, upper_bound=2**10,
                         flag_values=values)
    flags.DEFINE_integer("jump", 10, "inpaint, colorise, upscale: RePaint's steps back up ...", lower_bound=1,
                         upper_bound=10**4, flag_values=values)
    flags.DEFINE_integer("repeats", 1, "... and the number of passes over each step; 1: no returns.", lower_bound=1,
                         upper_bound=100, flag_values=values)
    flags.DEFINE_float("reconstruction", 0.0, "inpaint, colorise, upscale: the weight of guidance by the "
                       "reconstruction of the known part (Ho et al. 2022, Video Diffusion Models); 0: replacement "
                       "alone.", lower_bound=0.0, flag_values=values)
    flags.DEFINE_float("strength", 0.5, "vary: the share of the steps to take.", flag_values=values)
    flags.DEFINE_integer("iterations", 3, "reconstruct, interpolate: iterations to invert each step.", lower_bound=1,
                         upper_bound=1000, flag_values=values)


def check_uses(values: flags.FlagValues) -> None:
    """Raises ConfigError for a given flag that the task does not read."""
    for name, readers in READ_BY.items():
        if values[name].present and values.task not in readers:
            raise ConfigError(f"--{name} is for --task={' or '.join(readers)}."
                              + " Instead: --classes, for samples without a task." * (name == "label"))


def run_program(config: ConfigDict, workdir: Path, values: flags.FlagValues) -> None:
    path = lambda text: Path(text) if text else None  # noqa: E731
    gap = shared_flags.parse_list("gap", float, values)
    if gap is not None and len(gap) != 2:
        raise ConfigError(f"--gap={','.join(map(str, gap))} must be two numbers, FROM,TO.")
    settings = Settings(task=values.task, image=path(values.image), mask=path(values.mask), gap=gap, label=values.label,
                        factor=values.factor, jump=values.jump, repeats=values.repeats,
                        reconstruction=values.reconstruction, strength=values.strength, iterations=values.iterations)
    out = shared_flags.default_folder(workdir, values) / f"{values.task}_{values.seed}"
    edit(config, workdir, values.from_pretrained, settings, num_samples=values.num_samples, seed=values.seed,
         out=Path(values.out or out), checkpoint=values.checkpoint)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of the tasks; each comment names its tasks."""
    task: str
    image: Path | None = None  # pictures, for `io.pictures.read_picture`, or files; None: the first of config.data
    label: int | None = None   # of the pictures, for a model with classes
    mask: Path | None = None   # inpaint: white is drawn anew; None: the middle, of half the height and width
    gap: Sequence[float] | None = None  # inpaint, of sound and clips: (from, to) are drawn anew; None: the middle half
    factor: int = 4            # upscale: the factor of height and width
    jump: int = 10             # inpaint, colorise, upscale: RePaint's steps up (Lugmayr et al. 2022) ...
    repeats: int = 1           # ... and the passes over each step (in the paper 10); 1: only replacement
    reconstruction: float = 0.0  # inpaint, colorise, upscale: weight of guidance by the known part; 0: none
    strength: float = 0.5      # vary: the share of the steps to take (Meng et al. 2022)
    iterations: int = 3        # reconstruct, interpolate: iterations to invert each step


def edit(config: ConfigDict, workdir: Path, source: str | None, settings: Settings, *, num_samples: int, seed: int,
         out: Path, checkpoint: int | None) -> None:
    """Draws `num_samples` images by the task, from as many given images, which repeat, into the new folder `out`; also
    sounds and clips, for the tasks that need no pixels.

    out/task.png shows the task's input (left), its result, and the original image (right). The model is a run's or
    that of `source` (`pretrained.load`). Raises ConfigError for wrong settings and DataError for wrong pictures, before
    anything is compiled.
    """
    import jax

    from diffusion import build, pretrained
    from diffusion import config as config_lib
    from diffusion.io import images, sample_set
    from diffusion.io.progress import Progress
    from diffusion.parallel import sharding
    if settings.task in ("colorise", "upscale"):
        build.require_images(config, f"--task={settings.task}")
    if jax.process_count() > 1:
        raise ConfigError("--task runs in one process: leave --coordinator out.")
    config = build.measured(config_lib.override(config, DDIM) if settings.task in INVERTED else config)
    model, read = pretrained.open_model(config, source or workdir, checkpoint=checkpoint)
    kind = model.spec
    check(settings, model.shape)
    sample_set.check_samples_folder(out)
    step_table(config, model, settings, model.process)  # raises for wrong settings
    given = given_records(config, model, settings)
    number = len(given[kind.field])
    if settings.task == "interpolate" and number < 2:
        raise DataError(f"--task=interpolate goes from one {kind.called} to another: give two, or a folder of them.")
    mask = None if settings.task != "inpaint" else keep_mask(settings, kind)
    params = read()
    steps = step_table(config, model, settings, model.process_of(params))

    def take_rows(indices):
        example = kind.prepare({name: rows[indices % number] for name, rows in given.items()})
        return np.asarray(example.x0), {name: example.cond[name] for name in model.conditions if name in example.cond}

    draw = make(config, model, settings, params, steps, seed, mask, num_samples, take_rows)
    shown, batch = [], config.sample.batch_size

    def batches(report: Callable[[int], None]):
        for first in range(0, num_samples, batch):
            count = min(batch, num_samples - first)
            rows = sharding.fill(count, model.mesh)
            x, *sides = draw(np.arange(first, first + rows, dtype=np.int32))
            if first < SHOWN:
                shown.extend([picture for row in zip(sides[0], x, sides[1]) for picture in row][:3 * count])
            report(count)
            yield kind.finish(x[:count])

    with Progress(num_samples, unit=kind.called) as progress:
        kind.write(out, batches(progress.update), num_samples)
    rows = kind.finish(np.stack(shown[:3 * SHOWN]))
    if kind.called == "image":
        images.save_png(out / "task.png", images.grid(rows, columns=6))
    else:
        kind.preview(out / "task.png", rows, ("given", "made", "original") * (len(rows) // 3))
    print(f"{num_samples:,} {kind.called}s, samples.npz and task.png (given, made, original) are in {out}", flush=True)


def make(config: ConfigDict, model: "build.Model", settings: Settings, params: Any, steps: np.ndarray, seed: int,
         mask: np.ndarray | None, count: int, rows_of: Callable) -> Callable[[np.ndarray], tuple]:
    """indices [B] -> (result, the task's input, the original), each float [B, H, W, C]."""
    import jax

    from diffusion import build, tasks
    from diffusion.core.streams import example_keys
    if settings.task in MEASURED:
        project = projection(settings.task, settings.factor)

        def replaced(solver, given):
            own = {"known": given.get("known"), "project": lambda x: project(x, given.get("mask"))}
            if settings.reconstruction:
                solver = tasks.Reconstruction(solver=solver, weight=settings.reconstruction, **own)
            return tasks.Replacement(solver=solver, **own)
        task = build.sampler(config, model, wrap=replaced)

        def measured(indices):
            known, cond = rows_of(indices)
            given = {"known": known}
            if mask is not None:
                given["mask"] = np.broadcast_to(mask, (len(known), *mask.shape)).astype(np.float32)
            drawn = task(params, steps, seed, indices, cond=cond, chain_inputs=given)
            return drawn.within(model.spec.bounds), np.asarray(project(known, given.get("mask"))), known
        return measured

    forwards, bounds = build.sampler(config, model), model.spec.bounds
    seen = lambda x: x if bounds is None else np.clip(x, *bounds)  # noqa: E731
    if settings.task == "vary":
        target = build.sampling_process(config.sample, model.process)  # or the model's own, which may be learned
        process = lambda params: model.process_of(params) if target is model.process else target  # noqa: E731
        start = jax.jit(lambda params, known, t, keys: tasks.start(process(params), known, t, keys))

        def varied(indices):
            known, cond = rows_of(indices)
            keys = example_keys(jax.random.key(np.uint32(seed)), "sample", 0, indices)
            x = np.asarray(start(params, known, steps[0, 0], keys))
            return forwards(params, steps, seed, indices, cond=cond, noise=x).within(bounds), seen(x), known
        return varied

    backwards = build.sampler(config, model, wrap=lambda solver, given: tasks.Inversion(iterations=settings.iterations))
    noise_of = lambda known, cond, indices: backwards(  # noqa: E731
        params, tasks.reverse_grid(steps), seed, indices, cond=cond, noise=known).x

    def reconstructed(indices):
        known, cond = rows_of(indices)
        noise = noise_of(known, cond, indices)
        return forwards(params, steps, seed, indices, cond=cond, noise=noise).within(bounds), seen(noise / 3), known

    def interpolated(indices):
        """The interpolation from the first image to the second, in `count` images."""
        (a, cond_a), (b, cond_b) = (rows_of(np.full_like(indices, i)) for i in (0, 1))
        share = np.minimum(indices / max(count - 1, 1), 1).astype(np.float32)
        noise = np.asarray(tasks.slerp(noise_of(a, cond_a, indices), noise_of(b, cond_b, indices), share))
        nearer = lambda a, b: np.where((share < 0.5).reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
        cond = jax.tree.map(nearer, cond_a, cond_b)
        return forwards(params, steps, seed, indices, cond=cond, noise=noise).within(bounds), a, b
    return reconstructed if settings.task == "reconstruct" else interpolated


def projection(task: str, factor: int) -> Callable:
    """(x, mask) -> the part of x that is known."""
    from diffusion import tasks
    return {"inpaint": lambda x, mask: tasks.pixel_projection(mask)(x),
            "colorise": lambda x, mask: tasks.grey_projection(x),
            "upscale": lambda x, mask: tasks.block_mean_projection(factor)(x)}[task]


def check(settings: Settings, shape: tuple[int, ...]) -> None:
    """Raises ConfigError for a wrong setting of the task."""
    s = settings
    rules = [
        (s.task in TASKS, "task", s.task, f"is not known. It can be one of: {', '.join(TASKS)}."),
        (s.mask is None or s.task == "inpaint", "mask", s.mask, "is for --task=inpaint."),
        (s.gap is None or s.task == "inpaint", "gap", s.gap, "is for --task=inpaint."),
        (s.task != "colorise" or shape[-1] == 3, "task", s.task, f"needs a model of colours, this one has {shape[-1]} "
         "channels."),
        (s.task != "upscale" or s.factor > 1 and not (shape[0] % s.factor or shape[1] % s.factor), "factor",
         s.factor, f"must be above 1 and divide the model's height and width, {' and '.join(map(str, shape[:2]))}: "
                   "the means of "
         "such squares are known."),
        (s.jump >= 1 and s.repeats >= 1, "repeats", s.repeats, "and --jump must be 1 or more (Lugmayr et al. 2022: "
         "both 10)."),
        (s.repeats == 1 or s.task in MEASURED, "repeats", s.repeats, f"is for {', '.join(MEASURED)}."),
        (0 <= s.reconstruction < math.inf, "reconstruction", s.reconstruction, "must be 0 or positive."),
        (not s.reconstruction or s.task in MEASURED, "reconstruction", s.reconstruction, f"is for "
         f"{', '.join(MEASURED)}."),
        (0 < s.strength <= 1, "strength", s.strength, "is the share of the steps, in (0, 1]."),
        (s.iterations >= 1, "iterations", s.iterations, "must be 1 or more."),
    ]
    for holds, name, value, message in rules:
        if not holds:
            raise ConfigError(f"--{name}={value} {message}")


def step_table(config: ConfigDict, model: "build.Model", settings: Settings, process: "Process") -> np.ndarray:
    """The steps of config.sample, cut or with returns for the task."""
    from diffusion import build, tasks
    c, steps = config.sample, build.grid(config.sample, process)
    build.check_sample_batch(c, model)
    if settings.task == "vary":
        steps = tasks.truncate_grid(steps, settings.strength)
        if not len(steps):
            raise ConfigError(f"--strength={settings.strength} of {c.steps} steps is not one step: set more of "
                              "either.")
    if settings.task in MEASURED and settings.repeats > 1:
        if np.any(steps[1:, 0] != steps[:-1, 1]):
            raise ConfigError("--repeats needs steps that each end where the next begins: set "
                              "config.sample.constant_stride=False.")
        if settings.jump >= len(steps):
            raise ConfigError(f"--jump={settings.jump} must be below the number of steps, {len(steps)}.")
        steps = tasks.repaint(steps, jump=settings.jump, repeats=settings.repeats)
    return steps


def given_records(config: ConfigDict, model: "build.Model", settings: Settings) -> dict[str, np.ndarray]:
    """The stored arrays of the given examples by name, each [N, ...]: the data's field, and conditions."""
    from diffusion import build
    from diffusion.data import sources
    from diffusion.data.folder import folder
    from diffusion.families import user_function
    from diffusion.io import pictures
    kind = model.spec
    if settings.image is None:
        if settings.label is not None:
            raise ConfigError(f"--label is for the {kind.called}s of --image; those of config.data have labels.")
        found = build.training_images(config)
        return sources.gather_examples(found, np.arange(min(len(found), 256)))
    if kind.called == "image":
        given = {kind.field: pictures.read_picture(settings.image, model.shape)}
    else:
        source = folder(split="train", kind=kind, embedder=user_function, dir=str(settings.image))
        if kind.needs_load(getattr(source, "encoded", False)):
            source = sources.Loaded(source, kind.load)
        given = sources.gather_examples(source, np.arange(min(len(source), 256)))
    if not model.num_classes:
        if settings.label is not None:
            raise ConfigError("--label was given, but the model is unconditional.")
        return given
    if settings.label is None or not 0 <= settings.label < model.num_classes:
        raise ConfigError(f"The model has classes: --label must give the class of the {kind.called}s, in 0 .. "
                          f"{model.num_classes - 1}; got {settings.label}.")
    return given | {"label": np.full(len(given[kind.field]), settings.label, np.int32)}


def keep_mask(settings: Settings, kind: "Spec") -> np.ndarray:
    """float32, broadcasts to x0 without B: 1 where it is known. Raises ConfigError for a mask or gap that the kind of
    data does not have."""
    from diffusion.errors import FieldError
    from diffusion.io import pictures
    images, shape = kind.called == "image", kind.shape
    if settings.mask is not None and not images:
        raise ConfigError(f"--mask is a picture, but the data are {kind.called}s: use --gap=FROM,TO.")
    if settings.gap is not None and not hasattr(kind, "gap"):
        raise ConfigError(f"--gap is for sound and clips, but the data are {kind.called}s"
                          + (": use --mask." if images else "."))
    if not images:
        if not hasattr(kind, "gap"):
            raise ConfigError(f"--task=inpaint needs images, sound or clips, but the data are {kind.called}s.")
        whole = kind.length / kind.rate if hasattr(kind, "rate") else shape[0]
        first, last = settings.gap or (whole / 4, 3 * whole / 4)
        try:
            return (~kind.gap(first, last)).astype(np.float32)
        except FieldError as error:
            raise ConfigError(f"--gap={first:g},{last:g} {error.rule}") from error
    if settings.mask is not None:
        anew = pictures.read_mask(settings.mask, shape)
    else:
        anew = np.zeros((*shape[:2], 1), bool)
        h, w = shape[0] // 4, shape[1] // 4
        anew[h:shape[0] - h, w:shape[1] - w] = True
    return (~anew).astype(np.float32)
