"""Plans step time, communication and memory against the size of a TPU pod.

    python -m benchmarks.plan_scaling --out=docs/planning.json --plot=docs/planning.png      # needs .[tpu], and no TPU

Each point compiles the training step (minutes each, on 2 cores); points already in --out are not compiled again. Weak
scaling: the same number of images per chip; strong scaling: the same batch for all sizes.
"""
import argparse
import importlib
import json
import os
import time
from pathlib import Path

from diffusion.programs.plan import LIBTPU, measure

for name, value in LIBTPU.items():
    os.environ.setdefault(name, value)

import jax  # noqa: E402  (after the settings of libtpu)

from diffusion import config as config_lib  # noqa: E402
from diffusion.io.files import atomic_write  # noqa: E402
from diffusion.planning.chips import chip_of, devices_of  # noqa: E402

CHIPS = {"v5e:4x4": 16, "v5e:8x8": 64, "v5e:16x16": 256, "v5p:2x2x4": 16, "v5p:4x4x4": 64}
BASE = {"cifar10": 512, "imagenet64_adm": 128, "dit": 256}  # images of a step on 16 chips
TITLES = {"cifar10": "DDPM, CIFAR-10, 35.7M", "imagenet64_adm": "ADM, ImageNet 64, 296M", "dit": "DiT-XL/2, 675M"}


def points(configs: list[str], topologies: list[str]):
    for topology in topologies:
        for config in configs:
            batches = {"weak": BASE[config] * CHIPS[topology] // 16, "strong": max(BASE[config], CHIPS[topology])}
            for batch in sorted(set(batches.values()), reverse=True):
                yield config, topology, batch


def compute(config: str, topology: str, batch: int) -> dict:
    values = config_lib.override(importlib.import_module(f"configs.{config}").get_config(), {
        "network.dtype": "bfloat16", "train.batch_size": batch, "data.on_device": False})
    devices = devices_of(topology)
    began = time.perf_counter()
    report = measure(values, devices, chip_of(devices[0].device_kind), sample=False)
    return {"config": config, "topology": topology, "chips": len(devices), "batch": batch,
            "compilation_seconds": round(time.perf_counter() - began), "jax": jax.__version__, **report}


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if "seconds" in row["train"]]
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    values = [("step time, ms", lambda t: t["seconds"]["step"] * 1e3), ("communication, % of the step",
              lambda t: t["seconds"]["communication"] * 100), ("memory, GB a chip", lambda t: t["memory"] / 1e9)]
    for color, config in zip(("tab:blue", "tab:orange", "tab:green"), BASE):
        for family, marker in (("v5e", "o"), ("v5p", "s")):
            for kind, style in (("weak", "-"), ("strong", "--")):
                line = [row for row in rows if row["config"] == config and row["topology"].startswith(family)
                        and row["batch"] == (BASE[config] * row["chips"] // 16 if kind == "weak" else
                                             max(BASE[config], row["chips"]))]
                line.sort(key=lambda row: row["chips"])
                if not line or (kind == "strong" and len(line) < 2):
                    continue
                for ax, (_, of) in zip(axes, values):
                    ax.plot([row["chips"] for row in line], [of(row["train"]) for row in line], style, marker=marker,
                            color=color, fillstyle="full" if kind == "weak" else "none",
                            label=f"{TITLES[config]}: {family}, {kind}")
    for ax, (title, _) in zip(axes, values):
        ax.set(xlabel="chips", title=title, xscale="log")
        ax.set_xticks([16, 64, 256], ["16", "64", "256"])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set_yscale("log")
    for ax in axes[1:]:
        ax.set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default=",".join(BASE))
    parser.add_argument("--topologies", default="v5e:4x4,v5e:16x16,v5p:2x2x4")
    parser.add_argument("--out", type=Path, required=True, help="JSON; saved after each point")
    parser.add_argument("--plot", type=Path, default=None, help="PNG")
    args = parser.parse_args()
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    for config, topology, batch in points(args.configs.split(","), args.topologies.split(",")):
        if not any((row["config"], row["topology"], row["batch"]) == (config, topology, batch) for row in rows):
            rows.append(compute(config, topology, batch))
            atomic_write(args.out, json.dumps(rows, indent=1) + "\n")
        row = next(r for r in rows if (r["config"], r["topology"], r["batch"]) == (config, topology, batch))
        train = row["train"]
        print(f"{config:15} {topology:10} batch {batch:6}: " + (f"does not fit: {train['too_large']}" if "too_large" in
              train else f"{train['seconds']['step'] * 1e3:.4g} ms, {train['seconds']['communication']:.2%} "
              f"communication, {train['memory'] / 1e9:.3g} GB, compiled in {row['compilation_seconds']} s"), flush=True)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
