"""Reads and writes models in diffusers' layout, on disk or on the Hugging Face hub.

    model_index.json            the pipeline's class (may be missing in a flat folder)
    unet/config.json            UNet2DModel; flat: config.json; unet_ema/: the averaged weights
    unet/diffusion_pytorch_model.safetensors (or .bin, or either in shards with an .index.json)
    scheduler/scheduler_config.json             flat: scheduler_config.json
"""
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.errors import CheckpointError, ConfigError, shown
from diffusion.interop import fields, scheduler, unet2d
from diffusion.interop.tensor_files import read_sharded, read_tensors, write_safetensors
from diffusion.io.files import atomic_write, cannot_write, read_json

# The pipelines that can be read; two of them draw with their own scheduler, made from the file's settings.
PIPELINES = {"DDPMPipeline": None, "DDIMPipeline": "DDIMScheduler", "PNDMPipeline": "PNDMScheduler"}
WEIGHTS = "diffusion_pytorch_model"
AVERAGE = "unet_ema"  # as the training scripts of diffusers save it
HUB_FILES = ["*.json", f"*{WEIGHTS}.safetensors", f"*{WEIGHTS}.bin", f"*{WEIGHTS}-*-of-*.safetensors",
             f"*{WEIGHTS}-*-of-*.bin"]
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def as_path(value: Any, name: str) -> Path:
    """The path that an argument gives. Raises ConfigError if it is of another type, empty, or not a valid file name."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise ConfigError(f"{name} = {shown(value)} is not a path: give a string or a pathlib.Path.")
    text = os.fspath(value)
    if not text or "\0" in text or any(len(os.fsencode(part)) > 255 for part in text.split("/")) or len(text) > 4000:
        raise ConfigError(f"{name} = {shown(text)} is not a path: it is empty, too long, or has a null byte.")
    return Path(text)


def find(source: str | os.PathLike) -> Path:
    """The folder of a source: the given folder, or the cached copy of a hub name such as "google/ddpm-cifar10-32".

    Raises CheckpointError if there is no such folder and the name is not on the hub, or the hub cannot be reached, and
    ConfigError if `source` is not a path.
    """
    path = as_path(source, "source")
    try:
        found, other = path.is_dir(), path.exists()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be accessed: {error.strerror}.") from error
    if found:
        return path
    if other:
        raise CheckpointError(f"{path} is a file. Name the folder of the model: a run folder of ours, or a folder with "
                              "config.json or unet/ of diffusers. Weights of other projects: see docs/interop.md.")
    if not HUB_NAME.fullmatch(str(source)) or ".." in str(source):
        raise CheckpointError(f"There is no folder {path}, and it is no name on the hub: these are OWNER/NAME, such as "
                              "google/ddpm-cifar10-32.")
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(f"There is no folder {path}. To load it by that name from the Hugging Face hub, install "
                              "the extra: pip install diffusion[hub]") from None
    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=HUB_FILES))
    except Exception as error:  # from the library, its HTTP client or the system: offline, no such name, a full disk
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"There is no folder {path}, and {source} could not be loaded from the Hugging Face hub ({reason}). Where "
            f"there is a connection, run `hf download {source} --local-dir DIR`, copy DIR here and name it instead."
        ) from error


def read_settings(folder: Path, weights: str | None = None) -> dict[str, Any]:
    """Our config sections for a model in diffusers' layout.

    weights: "unet" or "unet_ema", if both exist. Raises CheckpointError if a file is missing or not JSON, or a setting
    is not supported.
    """
    index, kind = folder / "model_index.json", None
    if index.is_file():
        name = fields.read_one(read_json(index).get("_class_name"), fields.choice(None, tuple(PIPELINES)),
                               f"{index}: _class_name")
        kind = PIPELINES[name]
    unet, beside = network_folder(folder, weights), part(folder, "scheduler")
    if weights is None and unet.name == "unet" and (folder / AVERAGE).is_dir():
        warnings.warn(f"{folder} also has {AVERAGE}/, the average of a training run. As in diffusers, unet/ "
                      f"is loaded; weights={AVERAGE!r} loads the average.", stacklevel=4)
    for file in (unet / "config.json", beside / "scheduler_config.json"):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing. A model in diffusers' layout has config.json, "
                                  f"scheduler_config.json and {WEIGHTS}.safetensors (or .bin), in one folder or in "
                                  f"unet/ and scheduler/. {folder} has: {contents(folder)}.")
    settings, where = read_json(unet / "config.json"), str(unet / "config.json")
    if "attention_head_dim" not in settings and settings.get("_class_name") == "UNet2DModel":
        warnings.warn(f"{where} has no attention_head_dim. diffusers then takes heads of 8 channels, and so does "
                      "this; the networks of Ho et al. (2020), such as google/ddpm-cifar10-32, were trained with one "
                      "head: for that, set attention_head_dim to null in the file, or network.head_channels to 0.",
                      stacklevel=4)
    schedule, at = read_json(beside / "scheduler_config.json"), str(beside / "scheduler_config.json")
    return unet2d.read_settings(settings, where) | scheduler.read_settings(
        schedule | ({"_class_name": kind} if kind else {}), at)


def read_weights(folder: Path, weights: str | None = None) -> dict[str, np.ndarray]:
    """The state dict of a model in diffusers' layout; weights as for `read_settings`.

    Raises CheckpointError if it is missing, truncated or carries code.
    """
    folder = network_folder(folder, weights)
    for suffix in (".safetensors", ".bin"):
        if (folder / f"{WEIGHTS}{suffix}").is_file():
            return read_tensors(folder / f"{WEIGHTS}{suffix}")
        if (folder / f"{WEIGHTS}{suffix}.index.json").is_file():
            return read_sharded(folder, f"{WEIGHTS}{suffix}.index.json")
    raise CheckpointError(f"{folder} has no weights: {WEIGHTS}.safetensors or {WEIGHTS}.bin is needed, but it has: "
                          f"{contents(folder)}.")


def network_folder(folder: Path, weights: str | None) -> Path:
    """The folder of config.json and the weights: the named folder, unet/, the average if only it exists, or the flat
    folder itself. Raises CheckpointError if a named folder is missing."""
    there = [name for name in ("unet", AVERAGE) if (folder / name).is_dir()]
    if weights is not None and weights not in there:
        raise CheckpointError(f"{folder} has no {shown(weights)} to take weights from. It has: "
                              f"{', '.join(there) or 'one set of weights, not in a subfolder'}.")
    return folder / (weights or there[0]) if there else folder


def part(folder: Path, name: str) -> Path:
    """The folder of a part, or the model's folder if the layout is flat."""
    return folder / name if (folder / name).is_dir() else folder


def contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"


def write(folder: Path, *, unet: dict[str, Any], schedule: dict[str, Any], state: dict[str, np.ndarray],
          readme: str, check: Callable[[Path], None] = lambda folder: None) -> None:
    """Writes a pipeline that diffusers loads to a new or empty folder, whole or not at all.

    check: reads the written files before the folder gets its name, and raises for errors. Raises CheckpointError if the
    folder is not empty or cannot be written.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise CheckpointError(f"{folder} is there already. Nothing was changed. Name a new or empty folder.")
    pipeline = scheduler.pipeline_of(schedule)
    files = {"model_index.json": {"_class_name": pipeline, "unet": ["diffusers", "UNet2DModel"],
                                  "scheduler": ["diffusers", schedule["_class_name"]]},
             "unet/config.json": unet, "scheduler/scheduler_config.json": schedule}
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        temporary.chmod(0o755)  # mkdtemp's folder is only for the owner
        for name, value in files.items():
            atomic_write(temporary / name, json.dumps(value, indent=2) + "\n")
        atomic_write(temporary / "README.md", readme)
        write_safetensors(temporary / "unet" / f"{WEIGHTS}.safetensors", state, {"format": "pt"})
        check(temporary)
        os.replace(temporary, folder)  # also over an empty folder
    except OSError as error:
        raise CheckpointError(cannot_write(folder, error)) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def readme(unet: dict[str, Any], schedule: dict[str, Any], steps: int) -> str:
    """README.md of an exported model: a description, and how each side loads it; the settings cannot hold `steps`."""
    pipeline = scheduler.pipeline_of(schedule)
    size, channels = unet["sample_size"], unet["in_channels"]
    height, width = (size, size) if isinstance(size, int) else size
    labels = f"""
The network takes one of {unet["num_class_embeds"]} labels, which diffusers' pipelines do not pass on. With diffusers,
call `pipe.unet(x, t, class_labels=labels)` in your own loop over `pipe.scheduler`.
""" if unet["num_class_embeds"] else ""
    return f"""# A diffusion model of {height}x{width}x{channels} images

Trained with `diffusion` (JAX), written in the layout of diffusers: a `UNet2DModel` and a `{schedule["_class_name"]}`.

With diffusers (PyTorch):

    from diffusers import {pipeline}

    pipe = {pipeline}.from_pretrained("THIS FOLDER")
    pipe(batch_size=4, num_inference_steps={steps}).images[0].save("out.png")

With `diffusion` (JAX):

    from diffusion import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained("THIS FOLDER")
    pipe(batch_size=4, num_inference_steps={steps}).images[0].save("out.png")

If x0 is clipped, `diffusion` makes eps consistent with the clipped x0 in DDIM steps of its own models. diffusers does
so with `use_clipped_model_output=True` in the call of a DDIMPipeline.
{labels}"""
