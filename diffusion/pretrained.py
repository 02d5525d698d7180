"""Loads pretrained models: our runs, models in diffusers' layout on disk or the hub, weight files of other projects.

Each yields a config, from which `build` makes the parts, and parameters that fit it.
"""
import ast
import numbers
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion import build
from diffusion import config as config_lib
from diffusion.build import averages
from diffusion.config_values import nearest
from diffusion.errors import CheckpointError, ConfigError, shown
from diffusion.interop import edm, edm_pickle, folder, openai, score_sde, transformers, unet2d
from diffusion.interop.tensor_files import read_tensors
from diffusion.io import run_folder, snapshots
from diffusion.io.checkpoint import Checkpoints
from diffusion.io.files import read_json

# Other projects' weight files: (settings, where) -> sections of our config; (path, which) -> tensors; the reader of
# parameters.
LAYOUTS = {
    "improved-diffusion": (partial(openai.read_settings, codebase="improved-diffusion"), read_tensors,
                           openai.read_params),
    "guided-diffusion": (partial(openai.read_settings, codebase="guided-diffusion"), read_tensors, openai.read_params),
    "score_sde": (score_sde.read_settings, score_sde.read_checkpoint, score_sde.read_params),
    **{kind: (partial(transformers.read_settings, kind=kind), read_tensors,
              partial(transformers.read_params, kind=kind)) for kind in ("DiT", "SiT", "JiT")},
    "edm": (edm.read_settings, edm_pickle.read_state, edm.read_params),
}
# Of those whose files may tell the settings themselves: (path, which) -> settings, {} where the file does not.
TOLD = {"edm": edm_pickle.read_settings}
# The keys that define the function of the weights.
NETWORK = ("network", "data.kind", "data.size", "data.channels", "data.shape", "data.mean", "data.deviation",
           "learned_range")
FREE_KEYS = {"network.dropout", "network.dtype", "network.remat"}  # may differ from training


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A config, and a function that loads parameters by the shapes and shardings of a tree of jax.ShapeDtypeStruct.
    where: the source, for a record."""
    config: ConfigDict
    params: Callable[[Any], Any]
    where: str = ""


def load_source(text: str, checkpoint: int | None = None) -> Pretrained:
    """The model of PATH[@STEP][#WEIGHTS], the form of a teacher, a guide and the start of a training; a path that
    exists is taken as it is. checkpoint: the step if the text has none. Raises the errors of `load`."""
    path, step, weights = re.fullmatch(r"(.*?)(?:@(\d+))?(?:#([\w:.]+))?", text, re.DOTALL).groups()
    if os.path.exists(text):
        path, step, weights = text, None, None
    step = checkpoint if step is None else step
    try:
        found = load(path, checkpoint=None if step is None else int(step), weights=weights)
    except (CheckpointError, ConfigError) as error:
        raise type(error)(f"The source {shown(text)}, PATH[@STEP][#WEIGHTS]: {error}") from error
    return replace(found, where=text)


def load(source: str | os.PathLike, *, checkpoint: int | None = None, layout: str | None = None,
         settings: str | dict[str, Any] = "", weights: str | None = None) -> Pretrained:
    """Loads a pretrained model: a run folder of ours, a folder in diffusers' layout, or a name on the Hugging Face hub.

    checkpoint: the step for a run folder; the newest if None. layout: one of LAYOUTS, if `source` is a weight file of
    another project, and `settings` describes its model there: {"image_size": 32, ...}, or text as on a command line,
    "--image_size 32" or "image_size=32"; a pickled network of EDM needs none. weights: chooses one of several sets: an
    average of a run, "posthoc:0.08", which is made of its snapshots, or "raw" (default: the run's sample.weights); a
    key of a PyTorch file, such as "ema"; or "unet" or "unet_ema" of a folder in diffusers' layout. The weights are read
    only when needed. Raises CheckpointError or ConfigError if the model does not exist or cannot be read or expressed.
    """
    check_arguments(checkpoint, settings, weights)
    if layout is not None:
        return load_other(folder.as_path(source, "source"), layout, settings, weights)
    if settings:
        raise ConfigError(f"settings are for the weight files of other projects: name one by layout = "
                          f"{' or '.join(LAYOUTS)}.")
    path = folder.find(source)
    if run_folder.is_run(path):
        config = config_lib.adopted(read_json(path / "config.json"), str(path / "config.json"))
        weights = config.sample.weights if weights is None else weights
        averages.check_weights(config, weights, f"the run {path}")
        made_of = None if averages.posthoc_width(weights) is None else find_posthoc(path, config, weights, checkpoint)

        def as_stored(abstract, name):
            dtype = averages.dtype_of(config, name)
            return jax.tree.map(lambda x: x.update(dtype=dtype if x.dtype == jnp.float32 else x.dtype), abstract)

        def restore(abstract):
            if made_of is not None:
                return snapshots.combine(path, made_of, lambda name: as_stored(abstract, name))
            kept = as_stored(abstract, weights)
            name = "params.online" if weights == averages.RAW else f"averages.{weights}"
            with Checkpoints(path / "checkpoints", keep=None) as checkpoints:
                found = checkpoints.restore_part(name, kept, checkpoint)
            return jax.tree.map(lambda value, wanted: value.astype(wanted.dtype), found, abstract)

        return Pretrained(config=config, params=restore)
    if checkpoint is not None:
        raise ConfigError(f"{source} is not a run folder of ours: it has no checkpoint {checkpoint}, but one set "
                          "of weights.")
    return from_sections(folder.read_settings(path, weights),
                         lambda abstract: unet2d.read_params(abstract, folder.read_weights(path, weights), str(path)),
                         str(source))


def find_posthoc(path: Path, config: ConfigDict, weights: str, step: int | None = None
                 ) -> list[tuple[snapshots.Snapshot, float]]:
    """The snapshots of the run `path`, with their coefficients, that make the average called "posthoc:WIDTH" at `step`
    (the newest if None); the last is one of that step. Raises CheckpointError for missing or foreign snapshots,
    ConfigError for a width that they cannot reach."""
    found = snapshots.find(path, averages.snapshots(config, averages.averages(config, epoch_size=1)))
    steps = sorted({one.step for one in found})
    step = steps[-1] if step is None else step
    if step not in steps:
        raise CheckpointError(f"The run {path} has no snapshots of step {step}, at which {weights} would be made: name "
                              f"one of {', '.join(map(str, steps))}, or none for the newest.")
    used = sorted((one for one in found if one.step <= step), key=lambda one: one.step)
    return list(zip(used, averages.posthoc_coefficients(weights, [one.images for one in used],
                                                        [one.gamma for one in used])))


def newest_step(run: Path, config: ConfigDict) -> int:
    """The step of the run's newest checkpoint, or of its newest snapshots if config.sample.weights is made of those."""
    if averages.posthoc_width(config.sample.weights) is not None:
        return find_posthoc(run, config, config.sample.weights)[-1][0].step
    return Checkpoints(run / "checkpoints", keep=None).steps()[-1]


def check_arguments(checkpoint: Any, settings: Any, weights: Any) -> None:
    """Raises ConfigError for arguments of `load` of a wrong type."""
    step = isinstance(checkpoint, numbers.Integral) and not isinstance(checkpoint, bool) and checkpoint >= 0
    if checkpoint is not None and not step:
        raise ConfigError(f"checkpoint = {shown(checkpoint)} is not a step of a run: give a whole number, or None "
                          "for the newest.")
    if not isinstance(settings, str) and not (isinstance(settings, dict) and all(isinstance(x, str) for x in settings)):
        raise ConfigError(f"settings = {shown(settings)} must be text, such as \"--image_size 32\", or a "
                          "dict of values by name.")
    if weights is not None and not isinstance(weights, str):
        raise ConfigError(f"weights = {shown(weights)} must be the name of a set of weights, such as \"ema\".")


def load_other(path: Path, layout: str, settings: str | dict[str, Any], weights: str | None = None) -> Pretrained:
    """Loads a weight file of another project."""
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise ConfigError(f"layout = {shown(layout)} is not known.{nearest(str(layout), LAYOUTS)} "
                          f"It can be one of: {', '.join(LAYOUTS)}.")
    settings_of, tensors_of, params_of = LAYOUTS[layout]
    given = parse_settings(settings) if isinstance(settings, str) else settings
    if not given and layout in TOLD:
        given = TOLD[layout](path, weights)
    return from_sections(settings_of(given, f"settings of {path.name}"), lambda abstract: params_of(
        abstract, tensors_of(path, weights), str(path), settings=given), str(path))


def open_model(config: ConfigDict, source: str | os.PathLike, *,
               checkpoint: int | None = None) -> tuple[build.Model, Callable[[], Any]]:
    """The model of `config`, and a function that reads its parameters from `source` (`load`), with the parameters of
    config.sample.guidance.guide as "guide", if it names a model. config.sample.weights chooses whose they are.

    Raises ConfigError if `config` differs from the source's in other keys than may be chosen, and the errors of `load`.
    """
    weights = config.sample.weights  # models of others have no average called "ema", the default
    loaded = load(source, checkpoint=checkpoint,
                  weights=weights if weights != "ema" or run_folder.is_run(source) else None)
    check_same(config, loaded.config, source, (*NETWORK, "process", "prediction"))
    guide = load_guide(config)
    model = build.model(config, guide and guide.config)
    build.check_memory(config, model, model.abstract_params, rows=config.sample.batch_size, key="sample.batch_size")

    def read() -> Any:
        params = loaded.params(shared(config, loaded.config, model.abstract_params))
        return {**params, "guide": guide.params(model.guide.abstract_params)} if guide else params
    return model, read


def load_guide(config: ConfigDict) -> Pretrained | None:
    """The model that config.sample.guidance.guide names for autoguidance, if any."""
    g = config.sample.guidance
    return load_source(g.guide, g.guide_checkpoint) if g.get("guide") else None


def shared(config: ConfigDict, source: ConfigDict, abstract: dict[str, Any]) -> dict[str, Any]:
    """The part of the parameters `abstract` of config's model that the source also has: the network's, and a learned
    schedule if the process is the same. Parameters that only a loss learns are not shared between runs."""
    same = config.process.to_dict() == source.process.to_dict()
    return {name: part for name, part in abstract.items() if name == "params" or name == "schedule" and same}


def parse_settings(text: str) -> dict[str, Any]:
    """"--image_size 32 --ch_mult=(1,2)" or "image_size=32 ch_mult=(1,2)" -> {"image_size": 32, "ch_mult": (1, 2)}.

    Lists without brackets stay text, as in the flags of OpenAI's programs.
    """
    try:
        words = [part for word in shlex.split(text) for part in word.split("=", 1)]
    except ValueError as error:  # from unbalanced quotes
        raise ConfigError(f"The settings {shown(text)} cannot be split into words: {error}.") from error
    if len(words) % 2:
        raise ConfigError(f"The settings {shown(text)} are not pairs of a name and a value, such as "
                          "--image_size 32.")

    def value(word: str) -> Any:
        try:
            found = ast.literal_eval(word)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # not a literal, or too many brackets
            return word
        return word if isinstance(found, tuple) and not word.startswith("(") else found

    return {name.lstrip("-"): value(word) for name, word in zip(words[::2], words[1::2])}


def from_sections(sections: dict[str, Any], read: Callable[[Any], Any], where: str) -> Pretrained:
    """A model from sections of our config and a reader of its parameters (the tree under "params")."""
    def place(abstract):
        return jax.tree.map(lambda value, leaf: jax.make_array_from_callback(
            leaf.shape, leaf.sharding, lambda index: value[index]), {"params": read(abstract["params"])}, abstract)

    return Pretrained(config=config_lib.adopted(sections, where), params=place)


def check_same(config: ConfigDict, source: ConfigDict, where: str | os.PathLike, sections: tuple[str, ...]) -> None:
    """Raises ConfigError unless both configs agree in the sections, so that the weights of one fit the other."""
    if differing := [key for key in differences(config, source, sections) if key not in FREE_KEYS]:
        theirs = config_lib.keys(source)
        flags = " ".join(f"--config.{key}={str(theirs[key]).replace(' ', '')}" for key in differing if key in theirs)
        raise ConfigError(f"This config does not match the model in {where}. Leave --config out, or give: {flags}")


def differences(config: ConfigDict, source: ConfigDict, sections: tuple[str, ...]) -> list[str]:
    """The dotted keys with different values, in the sections or equal to one of them."""
    ours, theirs = config_lib.keys(config), config_lib.keys(source)
    within = tuple(f"{name}." for name in sections)
    return [key for key in {**ours, **theirs} if key.startswith(within) or key in sections
            if ours.get(key) != theirs.get(key)]
