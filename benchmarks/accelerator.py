"""What is worth some minutes on an accelerator, as one program: each part a process, in the order of its worth.

    python -m benchmarks.accelerator --minutes=8 --out=accelerator
    python -m benchmarks.accelerator --pack=wheels       # where the machine has no network: what must travel to it

A part that fails or runs out of its time costs itself alone, and nothing is compiled twice. Each part writes
OUT/PART.json and OUT/PART.log, and OUT/report.json has what is known so far. --before=OLD/report.json says what
changed.
benchmarks/accelerator.md describes the parts, and how to run them on a machine without network.
"""
import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import compare

PART = "{python} -m benchmarks.train_step --out={out}/{name}.json {tiny} "
# name: (seconds at most, command); the first are worth the most.
PARTS = {
    "unet_ours": (150, PART + "--config=configs/cifar10.py --batch={b256} --dtype=bfloat16 --ways=ours --rounds=5 "
                  "--steps=20 --trace={out}/unet_trace"),
    "dit_ours": (140, PART + "--config=configs/dit.py --batch={b64} --dtype=bfloat16 --ways=ours --rounds=5 "
                 "--steps=8 --trace={out}/dit_trace"),
    "repeatability": (200, "{python} -m benchmarks.repeatability --config=configs/digits.py {tiny} "
                      "--out={out}/repeatability.json"),
    "unet_torch_compile": (160, PART + "--config=configs/cifar10.py --batch={b256} --dtype=bfloat16 --ways=compile "
                           "--rounds=5 --steps=20"),
    "unet_torch_eager": (70, PART + "--config=configs/cifar10.py --batch={b256} --dtype=bfloat16 --ways=eager "
                         "--rounds=5 --steps=20"),
    "dit_torch_compile": (140, PART + "--config=configs/dit.py --batch={b64} --dtype=bfloat16 --ways=compile "
                          "--rounds=5 --steps=8"),
    "unet_ours_f32": (150, PART + "--config=configs/cifar10.py --batch={b256} --ways=ours --rounds=3 --steps=10"),
}
# What the project needs and a machine with JAX, Flax, Optax, Orbax and PyTorch may lack, by the versions tried.
WHEELS = ("ml_collections", "grain", "array_record", "portpicker", "tensorboardX", "importlib_resources", "zipp",
          "diffusers", "importlib_metadata")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--parts", default=",".join(PARTS), help="Default: all, in this order: " + ", ".join(PARTS))
    parser.add_argument("--out", default="accelerator", help="the folder to write")
    parser.add_argument("--before", default=None, help="a report.json to compare with")
    parser.add_argument("--tiny", action="store_true", help="small networks: whether all parts run, on any machine")
    parser.add_argument("--pack", default=None, metavar="DIR", help="download the wheels to DIR instead")
    parser.add_argument("--python", default="3.12", help="with --pack: the machine's Python")
    args = parser.parse_args()
    if args.pack:
        pack(args.pack, args.python)
        return
    if unknown := set(args.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is not known; it can be of {', '.join(PARTS)}")
    out = Path(args.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    end, report = time.monotonic() + 60 * args.minutes, {}
    for name in args.parts.split(","):
        left = end - time.monotonic()
        report[name] = run(name, out, min(left, PARTS[name][0]), args.tiny) if left > 20 else {"ended": "no time left"}
        (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    if args.before:
        print(changes(json.loads(Path(args.before).read_text()), report))


def run(name: str, out: Path, seconds: float, tiny: bool) -> dict:
    """Runs one part for at most so many seconds; {"ended": why, "seconds": how many, "found": its JSON}."""
    command = PARTS[name][1].format(python=sys.executable, name=name, out=out, tiny="--tiny" if tiny else "",
                                    b256=4 if tiny else 256, b64=2 if tiny else 64)
    print(f"== {name}, at most {seconds:.0f} s", flush=True)
    began, found = time.monotonic(), out / f"{name}.json"
    found.unlink(missing_ok=True)
    with open(out / f"{name}.log", "w") as log:
        process = subprocess.Popen(shlex.split(command), stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                                   env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ)
        try:
            ended = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            ended = "out of time"
    print("\n".join((out / f"{name}.log").read_text().splitlines()[-6:]), flush=True)
    return {"ended": ended, "seconds": round(time.monotonic() - began, 1),
            "found": json.loads(found.read_text()) if found.is_file() else None}


def changes(before: dict, now: dict) -> str:
    """What became slower or faster, of the parts that both have."""
    text = []
    for name, part in now.items():
        old, new = ((one.get("found") or {}).get("rows") for one in (before.get(name, {}), part))
        if old and new:
            text += [f"{name}:", *(f"  {line}" for line in compare.lines(old, new))]
    return "\n".join(text)


def pack(folder: str, python: str) -> None:
    """Downloads WHEELS for Linux and this version of CPython; they are unpacked there by pip install --no-deps
    --no-index --target."""
    for wheel in WHEELS:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                        f"--python-version={python}", "--implementation=cp", "--dest", folder,
                        *(f"--platform={platform}" for platform in PLATFORMS), wheel], check=True)
    size = sum(f.stat().st_size for f in Path(folder).glob("*.whl"))
    print(f"{folder}: {len(list(Path(folder).glob('*.whl')))} wheels, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
