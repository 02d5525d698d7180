"""Plans for the devices of a --topology: a config's memory and time on each, by compiling its training and sampling.

Nothing runs and no data is read, so the topology need not exist: libtpu compiles for TPUs and JAX's CUDA wheels for
NVIDIA GPUs on any machine.
"""
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffusion.errors import ConfigError
from diffusion.io.files import atomic_write, check_can_be_written
from diffusion.planning import gpus, roofline
from diffusion.planning.chips import Chip, chip_of, devices_of
from diffusion.planning.collectives import collectives
from diffusion.planning.kernels import account, kernels
from diffusion.programs import shared_flags
from diffusion.programs.frozen import open_frozen

if TYPE_CHECKING:
    from diffusion import build

INSTEAD: dict[str, str] = {}
# With these settings libtpu compiles without searching for a TPU or a metadata server.
LIBTPU = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
          "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_STDERR_LOG_LEVEL": "3", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
_TRIES = 6  # most settings to compile in the search for one that fits


def declare_flags(values: flags.FlagValues) -> None:
    shared_flags.declare_source(values)
    flags.DEFINE_string("topology", "local", "The devices to compile for, such as v5e:4x4, v5p:2x2x4, h100:8 or, 4 "
                        "hosts of 8, h100:4x8; local: those at hand.", flag_values=values)
    shared_flags.declare_path("out", "The JSON file to write. Default: none.", values)


def prepare_process(values: flags.FlagValues) -> None:
    if gpus.is_gpu(values.topology):
        gpus.prepare()
    elif values.topology != "local":
        for name, value in LIBTPU.items():
            os.environ.setdefault(name, value)


def run_program(config: ConfigDict, workdir: Path, values: flags.FlagValues) -> None:
    plan(config, values.topology, Path(values.out) if values.out else None)


class TooLarge(Exception):
    """The compiler ran out of device memory; carries XLA's message."""


def plan(config: ConfigDict, topology: str, out: Path | None) -> dict:
    """Prints the table, and changes to make if it does not fit; writes both as JSON to `out` and returns them.

    topology: such as v5e:16x16, or local. Raises ConfigError for an unknown topology.
    """
    import jax

    from diffusion.io.processes import print_once
    if out is not None:
        check_can_be_written(out)
    devices = jax.devices() if topology == "local" else devices_of(topology)
    chip = chip_of(devices[0].device_kind)
    print_once(f"compiling for {len(devices)} x {devices[0].device_kind}: a few minutes for a large network")
    report = {"topology": topology, "devices": len(devices), "kind": devices[0].device_kind,
              "chip": chip and vars(chip), **measure(config, devices, chip)}
    print_once(table(report))
    if not report["fits"]:
        report["instead"] = instead = nearest_that_fits(config, devices, chip)
        print_once("warning: this does not fit. " + ("No tried change fits either: " + "; ".join(
            words(changes) for changes, _ in instead["tried"]) if instead["found"] is None else
            f"This does: {words(instead['found'])}"))
        if instead["found"] is not None:
            of_devices = {name: report[name] for name in ("topology", "devices", "kind", "chip")}
            print_once(table(instead["report"] | of_devices))
    if out is not None:
        atomic_write(out, json.dumps(report, indent=1) + "\n")
        print_once(f"the same as JSON: {out}")
    return report


def measure(config: ConfigDict, devices: Sequence, chip: Chip | None, sample: bool = True) -> dict:
    """Costs of the train and the sample step on one device, lower bounds on their times, and whether they fit."""
    from diffusion import build
    from diffusion import config as config_lib
    if devices[0].platform in ("gpu", "cuda"):  # whose programs are counted from their text, with all iterations
        config = config_lib.override(config, {"train.steps_per_dispatch": 1})
    config = build.measured(config, assume=True)
    model = build.model(config, devices=devices, frozen=open_frozen(config, None).configs)
    parts = build.training_step(config, model, None)
    state = parts.abstract_state
    report = {"mesh": dict(model.mesh.shape), "batch_size": config.train.batch_size, "sizes": {
        "parameters": size_of(state.params), "optimizer": size_of(state.opt_state), "average": size_of(state.averages)}}
    step = {"train": lambda: train_costs(config, model, parts)}
    if sample:
        step["sample"] = lambda: sample_costs(config, model)
    fits = True
    for name, find in step.items():
        try:
            found, images, repeats = find()
        except TooLarge as error:
            report[name] = {"too_large": str(error)}
            fits = False
            continue
        report[name] = row = roofline.as_dict(found) | {"images": images}
        if chip is not None:
            row["seconds"] = times = roofline.seconds(found, chip)
            row["images_per_second"] = images / (times["step"] * repeats)
            row["mfu_bound"] = times["compute"] / times["step"]
            fits = fits and found.memory <= chip.memory
            if name == "train":
                row["days"] = times["step"] * parts.plan.total / 86400
    return report | {"fits": fits}


def training_program(config: ConfigDict, model: "build.Model", parts) -> tuple:
    """The compiled training step's function and its abstract arguments."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from diffusion.parallel import sharding
    k, b = parts.plan.steps_per_dispatch, config.train.batch_size
    placed = NamedSharding(model.mesh, PartitionSpec(None, *sharding.over_batch(model.mesh).spec))
    record = {**model.spec.stored, "position": ((), jnp.int32)}
    record |= {name: (one.shape, one.dtype) for name, one in model.conditions.items()}
    batch = {name: jax.ShapeDtypeStruct((k, b, *shape), dtype, sharding=placed)
             for name, (shape, dtype) in record.items()}
    frozen = {name: one.abstract_params for name, one in model.frozen.items()}
    return parts.program(0), parts.abstract_state, batch, None, frozen


def train_costs(config: ConfigDict, model: "build.Model", parts) -> tuple[roofline.Costs, int, int]:
    """Costs of one step, its images, 1."""
    from diffusion.parallel import sharding
    loops = 1 if sharding.on_cpu(model.mesh) else config.train.accumulate
    return costs_of(model, loops, *training_program(config, model, parts)), config.train.batch_size, 1


def sample_costs(config: ConfigDict, model: "build.Model") -> tuple[roofline.Costs, int, int]:
    """Costs of one step of a chain, the images of the chain, and its steps. XLA counts one iteration of its loop."""
    import jax
    import jax.numpy as jnp

    from diffusion import build
    from diffusion.parallel import sharding
    sampler, steps = build.sampler(config, model), build.grid(config.sample, model.process)
    rows = sharding.fill(config.sample.batch_size, model.mesh)
    everywhere, over = sharding.replicated(model.mesh), sharding.over_batch(model.mesh)
    shape = lambda shape, dtype, where: jax.ShapeDtypeStruct(shape, dtype, sharding=where)  # noqa: E731
    x, indices = shape((rows, *model.shape), jnp.float32, over), shape((rows,), jnp.int32, over)
    number, seed = shape((), jnp.int32, everywhere), shape((), jnp.uint32, everywhere)
    cond = {name: shape((rows, *one.shape), one.dtype, over) for name, one in model.conditions.items()}
    times = shape((1024, 2), np.asarray(steps).dtype, everywhere)
    carry = jax.eval_shape(sampler.begin, model.abstract_params, {}, x)
    found = costs_of(model, 1, sampler.advance, model.abstract_params, {}, seed, indices, cond, times, number,
                     number, carry, x)
    return found, rows, len(steps)


def costs_of(model: "build.Model", loops: int, function, *arguments) -> roofline.Costs:
    """The costs of the function, compiled for the model's devices. loops: iterations of its loop, of which XLA counts
    one."""
    from diffusion.parallel import sharding
    from diffusion.planning.flops import matrix_flops
    compiled = compile_for(function, *arguments)
    text = compiled.as_text()
    if sharding.platform(model.mesh) not in ("gpu", "cuda"):
        return roofline.costs(compiled, collectives(text), repeats=loops)
    return roofline.costs(compiled, collectives(text), flops=matrix_flops(function, *arguments) / model.mesh.size,
                          kernels=account(kernels(text)))


def compile_for(function, *arguments):
    """The compiled program. Raises TooLarge if the compiler runs out of device memory."""
    import jax
    try:
        return function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        used = re.search(r"Used [\d.]+[KMGT]? of [\d.]+[KMGT]? \w+", str(error))
        raise TooLarge(used[0] if used else str(error).splitlines()[0]) from error


def size_of(tree) -> int:
    """Bytes of a tree of abstract arrays on one device."""
    import jax
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def nearest_that_fits(config: ConfigDict, devices: Sequence, chip: Chip | None) -> dict:
    """Tries settings that need less memory, smallest changes first: only the last, which halve the batch, change the
    result."""
    from diffusion import config as config_lib
    from diffusion.io.processes import print_once
    tried = []
    for changes in smaller(config, len(devices)):
        try:
            report = measure(config_lib.override(config, changes), devices, chip, sample=False)
        except ConfigError:  # the micro-batches do not divide the batch
            continue
        print_once(f"  {words(changes)}: {'fits' if report['fits'] else 'does not fit'}")
        tried.append((changes, report["fits"]))
        if report["fits"]:
            return {"found": changes, "tried": tried, "report": report}
        if len(tried) == _TRIES:
            break
    return {"found": None, "tried": tried}


def smaller(config: ConfigDict, devices: int):
    """Settings in the order of `nearest_that_fits`."""
    light, full = {"network.remat": "light"}, {"network.remat": "full"}
    if config.network.get("remat") == "none":
        yield light
    if config.network.get("remat", "full") != "full":
        yield full
    if config.mesh.fsdp == 1 and devices > 1:
        yield full | {"mesh.data": 1, "mesh.fsdp": devices // config.mesh.tensor}
    for factor in (2, 4, 8):
        yield full | {"train.accumulate": config.train.accumulate * factor}
    for factor in (2, 4, 8):
        yield full | {"train.batch_size": config.train.batch_size // factor}


def words(changes: dict) -> str:
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())


def table(report: dict) -> str:
    """The report as a text table."""
    chip, lines = report["chip"], []
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items() if size > 1) or "one device"
    lines.append(f"{report['devices']} x {chip['name'] if chip else report['kind']} ({report['topology']}), mesh "
                 f"{mesh}, batch {report['batch_size']:,}. Per device:")
    sizes = report["sizes"]
    lines.append("  " + ", ".join(f"{name} {amount(size)}B" for name, size in sizes.items()))
    for name in ("train", "sample"):
        if (row := report.get(name)) is None:
            continue
        title = f"  {'training step' if name == 'train' else 'sampling step'}, {row.get('images', 0):,} images:"
        if "too_large" in row:
            lines.append(f"{title} the compiler runs out of device memory ({row['too_large']})")
            continue
        of = f" of {amount(chip['memory'])}B ({row['memory'] / chip['memory']:.0%})" if chip else ""
        counted = f"; {row['kernels']:,} kernels, {amount(row['outside'])}B outside of products"
        lines += [title,
                  f"    memory        {amount(row['memory'])}B{of}: arguments {amount(row['arguments'])}B, activations "
                  f"and other temporaries {amount(row['temporaries'])}B",
                  f"    work          {amount(row['flops'])}FLOP, {amount(row['bytes'])}B read and written"
                  + counted * (row["kernels"] > 0)]
        for kind, found in row["collectives"].items():
            lines.append(f"    {kind:<19} {found['count']}, of {amount(found['bytes'])}B; {amount(found['moved'])}B "
                         "sent")
        if chip:
            t = {name: f"{1e3 * value:.3g}" for name, value in row["seconds"].items()}
            parts = (f"compute {t['compute']} + memory {t['memory']} + launches {t['launches']}" if "launches" in t else
                     f"max(compute {t['compute']}, memory {t['memory']})")
            lines.append(f"    time at least {t['step']} ms = {parts} + links {t['links']}; "
                         f"{row['seconds']['communication']:.1%} communication")
            days = f", {row['days']:.3g} days for the config's duration" if "days" in row else ""
            lines.append(f"    at most       {row['images_per_second']:,.4g} images/s, MFU {row['mfu_bound']:.0%}"
                         f"{days}")
    if chip:
        lines.append(f"  {chip['name']}: {amount(chip['flops'])}FLOP/s (bfloat16), {amount(chip['bandwidth'])}B/s, "
                     f"{amount(chip['link'])}B/s per link and direction ({chip['source']})")
    else:
        lines.append(f"  The peak rates of {report['kind']} are unknown here: no times.")
    return "\n".join(lines)


def amount(number: float) -> str:
    """A number with a decimal prefix: 1.12 T, 431 M."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {prefix}"
    return f"{number:.3g} "
