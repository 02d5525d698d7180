"""Pretrained models in five lines:

    from diffusion import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained("google/ddpm-cifar10-32")
    images = pipe(batch_size=16, num_inference_steps=1000, seed=0).images
    images[0].save("out.png")
"""
import inspect
import json
import numbers
import operator
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from diffusion import build, config_flags, families, pretrained
from diffusion import config as config_lib
from diffusion.config_values import nearest
from diffusion.errors import CheckpointError, ConfigError, shown
from diffusion.interop import folder, scheduler, unet2d
from diffusion.io.images import picture
from diffusion.io.progress import Progress
from diffusion.parallel import sharding

# Keys of config.sample that only define the time grid or are arguments of the chain: one compiled sampler serves all.
NOT_COMPILED = {"steps", "spacing", "offset", "constant_stride", "end", "rho", "custom_times", "t_min", "between_times",
                "batch_size", "preview", "guidance.scale"}


@dataclass(frozen=True)
class PipelineOutput:
    """`images`: a list of B PIL images, or float32 [B, H, W, C] in [0, 1]; of other kinds of data their arrays."""
    images: list[Image.Image] | np.ndarray


class DiffusionPipeline:
    """A model and its weights, for sampling. `config` is the whole config, `params` the (averaged) parameters."""

    def __init__(self, config: ConfigDict, params: Any, guide: ConfigDict | None = None, *,
                 model: build.Model | None = None):
        """`params` must fit `build.model(config).abstract_params`. guide: the config of the model that guides it
        (config.sample.guidance.name="autoguidance"), with parameters params["guide"]. model: the model of the configs,
        if already built. Raises ConfigError if the config cannot be built, or the parameters do not fit it."""
        model = build.model(config, guide) if model is None else model
        check_params(params, model.abstract_params)
        self.config, self.params, self._guide = config, params, guide
        self._models: dict[str, build.Model] = {config.network.get("dtype"): model}
        self._samplers: dict[str, build.Sampler] = {}

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, *, checkpoint: int | None = None, layout: str | None = None,
                        settings: str | dict[str, Any] = "", weights: str | None = None,
                        overrides: dict[str, Any] | None = None, **unknown: Any) -> "DiffusionPipeline":
        """Loads a model, with its sampler's settings.

        Args:
          source: a run folder of ours; a folder in diffusers' layout, flat or with unet/ and scheduler/, its weights
            .safetensors or .bin (no pickle in it is executed); or a name on the Hugging Face hub, such as
            "google/ddpm-cifar10-32" (needs the extra `hub`; cached afterwards).
          checkpoint: the step of a run folder's checkpoint. Default: the newest.
          layout, settings: for a weight file of another project, "improved-diffusion", "guided-diffusion" or
            "score_sde", and its flags or config values there, such as "--image_size 64 --num_channels 128"
            (docs/interop.md).
          weights: chooses one of several sets: an average of a run, "posthoc:0.08", the average of that width, made of
            a run's snapshots, or "raw" for its parameters themselves; a key of a PyTorch file, such as "ema"; "unet" or
            "unet_ema" of a folder in diffusers' layout.
          overrides: config keys to change, such as {"network.head_channels": 0, "sample.steps": 50}.

        Raises CheckpointError if files are missing, damaged or do not fit, ConfigError if a setting cannot run.
        """
        refuse_unknown(unknown, DiffusionPipeline.from_pretrained)
        if not isinstance(overrides, dict | None) or any(not isinstance(key, str) for key in overrides or {}):
            raise ConfigError(f"overrides = {shown(overrides)} must be a dict of config keys and their values, such as "
                              "{'sample.steps': 50}.")
        if isinstance(plugins := (overrides or {}).get("plugins"), tuple | list):
            families.load_plugins(map(str, plugins))  # a run with the user's own parts names plugins, too
        families.trust(value for key, value in (overrides or {}).items() if key in families.BY_SELECTOR)
        weights = weights or (overrides or {}).get("sample.weights")
        loaded = pretrained.load(source, checkpoint=checkpoint, layout=layout, settings=settings, weights=weights)
        config = config_lib.override(loaded.config, overrides or {})
        guide = pretrained.load_guide(config)
        with config_flags.naming(str(source), config, overrides or {}):
            model = build.model(config, guide and guide.config)
        params = loaded.params(model.abstract_params)
        if guide is None:
            return cls(config, params, model=model)
        return cls(config, {**params, "guide": guide.params(model.guide.abstract_params)}, guide.config, model=model)

    def __call__(self, batch_size: int = 1, num_inference_steps: int | None = None, seed: int = 0, *,
                 sampler: str | None = None, eta: float | None = None, initial_noise: np.ndarray | None = None,
                 class_labels: Any = None, conditions: dict[str, Any] | None = None,
                 guidance_scale: float | None = None, unconditional_label: int | None = None,
                 dtype: str | None = None, output_type: Literal["pil", "np"] = "pil",
                 progress_bar: bool = True, **unknown: Any) -> PipelineOutput:
        """Draws images. Image i depends only on the seed, i and the settings, not on the batch size.

        Args:
          batch_size: the number of images in one chain; each size compiles once, for any number of steps.
          num_inference_steps: network evaluations for an image. Default: the source's `sample.steps`.
          seed: the seed of all noise.
          sampler: a name of config.sample.solver, such as "ancestral", "ddim" or "unipc". Default: the source's.
          eta: for ddim: 0 deterministic .. 1 like ancestral with the small variance. Default: the source's.
          initial_noise: float [B, H, W, C], x at the chain's start instead of drawn noise.
          class_labels: for a model with classes: an int, or ints [B]. Default: the classes in turn.
          conditions: the network's other conditions by name, each [B, ...]. Default: the network's own, or, where it
            has none, those of the data's records in order.
          guidance_scale: for the guidance that the source's `sample.guidance` names, or classifier-free guidance (Ho
            & Salimans 2022) if it names none; 1 turns it off. Default: the source's.
          unconditional_label: the label for "no class" in training, which is never drawn. Our models have it; for
            others, `sample.guidance.null_label` sets it.
          dtype: "float32" or "bfloat16", for the network's computation. Default: the source's.
          output_type: "pil", or "np" for float32 in [0, 1].
          progress_bar: shows a bar on a terminal, lines elsewhere. Without it, the chain is one call of the device.

        Raises ConfigError for an argument that the model cannot take, DivergedError if an image contains NaN.
        """
        refuse_unknown(unknown, DiffusionPipeline.__call__)
        if output_type not in ("pil", "np"):
            raise ConfigError(f"output_type = {shown(output_type)} is not known. It can be 'pil' or 'np'.")
        batch_size, seed = whole("batch_size", batch_size, 1, 2**20), whole("seed", seed, 0, 2**32 - 1)
        if num_inference_steps is not None:
            num_inference_steps = whole("num_inference_steps", num_inference_steps, 1, 2**20)
        if unconditional_label is not None:
            unconditional_label = whole("unconditional_label", unconditional_label, 0, 2**31 - 1)
        eta, guidance_scale = finite("eta", eta), finite("guidance_scale", guidance_scale)
        given = {"network.dtype": dtype, "sample.solver": sampler, "sample.eta": eta,
                 "sample.steps": num_inference_steps, "sample.guidance.null_label": unconditional_label}
        given = {key: value for key, value in given.items() if value is not None}
        config = config_lib.override(self.config, given, "this call")
        if guidance_scale is not None:
            config = build.with_scale(config, guidance_scale)
        model = self._model(config)
        if output_type == "pil" and model.spec.called != "image":
            raise ConfigError(f"Samples of data.kind = {config.data.kind!r} are not pictures: use output_type='np'.")
        if output_type == "pil" and model.shape[-1] not in (1, 3):
            raise ConfigError(f"Images of {model.shape[-1]} channels are not pictures: use output_type='np'.")
        run = self._sampler(config, model)
        steps = build.grid_of(config, model)(self.params)
        # The chains are sharded over the devices; images that only fill the last shard are dropped.
        rows = sharding.fill(batch_size, model.mesh)
        cond = self._conditions(class_labels, conditions, batch_size, rows, config, model)
        noise = self._noise(initial_noise, (batch_size, *model.shape), rows)
        guidance = config.sample.guidance
        given = {} if guidance.name == "none" else {"scale": guidance.scale}
        indices = np.arange(rows, dtype=np.int32)
        if progress_bar:
            with Progress(len(steps), unit="step", images_per_unit=batch_size / len(steps)) as progress:
                drawn = run(self.params, steps, seed, indices, cond=cond, noise=noise, chain_inputs=given,
                            report=progress.update)
        else:
            drawn = run(self.params, steps, seed, indices, cond=cond, noise=noise, chain_inputs=given)
        x = drawn.within(model.spec.bounds)
        pixels = model.spec.finish(x[:batch_size])  # also checks for NaN
        if model.spec.called != "image":
            return PipelineOutput(pixels)
        return PipelineOutput([picture(image) for image in pixels] if output_type == "pil"
                              else (x[:batch_size] + 1) / 2)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Writes a new folder that diffusers' pipelines load, and that loads here as the same model and sampler.

        The pipeline is DDPMPipeline, or the sampler's own. Raises CheckpointError, with nothing written, if diffusers
        cannot express a setting, which the message names, or the folder cannot be written.
        """
        c, target = self.config.to_dict(), folder.as_path(directory, "directory")
        if (called := build.spec(self.config).called) != "image":
            raise CheckpointError(f"diffusers' pipelines draw images, but data.kind = {self.config.data.kind!r} is of "
                                  f"{called}s.")
        c["sample"]["clip"] = build.clips(self.config)
        classes = c["network"]["num_classes"] + (c["network"]["label_dropout"] > 0)  # the last label means no class
        unet = unet2d.write_settings(c["network"] | {"num_classes": classes}, size=c["data"]["size"],
                                     channels=c["data"]["channels"], learned_range=c["learned_range"])
        try:
            betas = build.betas(self.config.process)
        except ConfigError as error:
            raise CheckpointError(f"diffusers' chains are of betas: {error}") from error
        schedule = scheduler.write_settings(c["process"], c["sample"], c["prediction"], betas)
        folder.write(target, unet=unet, schedule=schedule, state=unet2d.write_params(self.params["params"]),
                     readme=folder.readme(unet, schedule, self.config.sample.steps), check=self._check_export)

    def _check_export(self, written: Path) -> None:
        """Raises CheckpointError if the written files do not hold this model with this sampler."""
        back = pretrained.load(written)
        model = build.model(back.config)
        params = back.params(model.abstract_params)["params"]
        if not all(jax.tree.leaves(jax.tree.map(np.array_equal, params, dict(self.params["params"])))):
            raise CheckpointError("The written parameters differ from those of this model.")
        same = {"sample.steps": min(self.config.sample.steps, self.config.process.steps)}  # the file cannot hold it
        if "constant_stride" in self.config.sample:  # docs/interop.md, DDIM with linspace
            same["sample.constant_stride"] = self.config.sample.constant_stride
        ours, theirs = (chain(config_lib.override(config, same), model.process)
                        for config in (self.config, back.config))
        for name in ours:
            if not np.array_equal(ours[name], theirs[name]):
                raise CheckpointError(f"diffusers cannot express config.sample.{name} of this model: read back, it is "
                                      f"{theirs[name]} instead of {ours[name]}.")

    def _model(self, config: ConfigDict) -> build.Model:
        dtype = config.network.get("dtype")
        if dtype not in self._models:
            self._models[dtype] = build.model(config, self._guide)
        return self._models[dtype]

    def _sampler(self, config: ConfigDict, model: build.Model) -> build.Sampler:
        settings = {key: value for key, value in config_lib.keys(config.sample).items() if key not in NOT_COMPILED}
        per_step = config.sample.steps if config.sample.get("churn") else None  # S_churn is divided among the steps
        key = json.dumps([config.network.get("dtype"), settings, per_step])
        if key not in self._samplers:
            self._samplers[key] = build.sampler(config, model)
        return self._samplers[key]

    @staticmethod
    def _conditions(labels: Any, others: Any, count: int, rows: int, config: ConfigDict,
                    model: build.Model) -> dict[str, np.ndarray]:
        """The conditions of `rows` images, of which `count` are wanted."""
        if not isinstance(others, dict | None) or "label" in (others or {}):
            raise ConfigError("conditions must be a dict of arrays [B, ...] by name, without the label, which is "
                              f"class_labels; got {shown(others)}.")
        try:
            given = {name: np.asarray(value) for name, value in (others or {}).items()}
        except ValueError as error:  # for rows of unequal length
            raise ConfigError(f"conditions must be arrays [{count}, ...]: {error}.") from error
        for name, value in given.items():
            if value.shape[:1] != (count,):
                raise ConfigError(f"The condition {name!r} must be [{count}, ...] (batch_size), got "
                                  f"{list(value.shape)}.")
        given = {name: np.resize(value, (rows, *value.shape[1:])) for name, value in given.items()}
        if of_records := set(build.needs_records(model.conditions)) - set(given):
            given = build.conditions(config, model)(np.arange(rows, dtype=np.int32)) | given
        found = DiffusionPipeline._labels(labels, count, config, model)
        if found is not None and not (of_records and labels is None):
            given |= {"label": found[np.arange(rows) % len(found)]}
        return given

    @staticmethod
    def _labels(labels: Any, count: int, config: ConfigDict, model: build.Model) -> np.ndarray | None:
        """The labels of the images, in order."""
        if labels is None or not model.num_classes:
            if labels is not None:
                raise ConfigError("class_labels were given, but the model is unconditional.")
            return build.classes(config, model)
        try:
            labels = np.asarray(labels)
        except ValueError as error:  # for rows of unequal length
            raise ConfigError(f"class_labels must be one integer or {count} of them (batch_size): {error}.") from error
        if labels.shape not in ((), (count,)) or not np.issubdtype(labels.dtype, np.integer):
            raise ConfigError(f"class_labels must be one integer or {count} of them (batch_size), got {labels.dtype} "
                              f"{list(labels.shape)}.")
        return build.classes(config, model, labels.reshape(-1).tolist())

    @staticmethod
    def _noise(noise: np.ndarray | None, shape: tuple[int, ...], rows: int) -> np.ndarray | None:
        if noise is None:
            return None
        try:
            noise = np.asarray(noise)
            noise = noise.astype(np.float32, casting="same_kind" if noise.dtype.kind in "fc" else "unsafe")
        except (TypeError, ValueError) as error:
            raise ConfigError(f"initial_noise must be an array of numbers: {error}.") from error
        if noise.shape != shape:
            raise ConfigError(f"initial_noise must be [B, H, W, C] = {list(shape)}, got {list(noise.shape)}.")
        return np.resize(noise, (rows, *shape[1:]))


def refuse_unknown(unknown: dict[str, Any], method: Callable) -> None:
    """Raises ConfigError for arguments that the method does not have, with the nearest known one."""
    known = [parameter.name for parameter in inspect.signature(method).parameters.values()
             if parameter.kind is not parameter.VAR_KEYWORD and parameter.name != "self"]
    for name in unknown:
        raise ConfigError(f"{method.__qualname__} has no argument {shown(name)}.{nearest(name, known)} It "
                          f"has: {', '.join(known)}.")


def whole(name: str, value: Any, least: int, most: int) -> int:
    """The argument as an int, from any integer type. Raises ConfigError if it is not an integer or out of range."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not least <= number <= most:
        raise ConfigError(f"{name} = {shown(value)} must be a whole number in {least} .. {most}.")
    return number


def finite(name: str, value: Any) -> float | None:
    """The argument as a float, from any type of number, or None. Raises ConfigError if it is not a finite number."""
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else np.nan
    except OverflowError:  # for a whole number beyond all floats
        number = np.nan
    if not np.isfinite(number):
        raise ConfigError(f"{name} = {shown(value)} must be a finite number.")
    return number


def check_params(params: Any, abstract: Any) -> None:
    """Raises ConfigError unless the parameters have all arrays that the model needs, in its shapes."""
    shapes = {jax.tree_util.keystr(path): np.shape(leaf)
              for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    wrong = [f"{name} {list(leaf.shape)}" + (f", which is {list(shapes[name])}" if name in shapes else "")
             for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
             if shapes.get(name := jax.tree_util.keystr(path)) != leaf.shape]
    if wrong:
        raise ConfigError(f"The parameters do not fit the config: {len(wrong)} are missing or of another shape, "
                          f"the first {wrong[0]}. build.model(config).abstract_params lists all.")


def chain(config: ConfigDict, process: Any) -> dict[str, Any]:
    """The sampler's settings by key of config.sample, without arguments of diffusers' pipeline calls (eta) and intended
    differences (rederive_eps, docs/interop.md)."""
    s = config.sample
    clip = build.clips(config)
    levels = (True, 1.0) if s.dynamic_threshold and s.threshold_max == 1 else (clip, clip and s.clip_range)
    if s.dynamic_threshold and s.threshold_max != 1:
        levels = (s.dynamic_threshold, s.threshold_max)
    solver = config_lib.override(config, {"sample.eta": 0.0} if s.solver == "ddim" else {}).sample
    return {"solver": build.solver(solver), "spacing": build.grid(s, process), "clip": levels,
            "schedule": (s.schedule, s.get("scaling"))}
