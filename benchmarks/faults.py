"""Tests that training survives kills, signals, damaged files, a full disk and a lost host, against an undisturbed run.

    python -m benchmarks.faults --kills=100 --out=faults.json

Each case trains a small model with the real program, disturbs it, and starts the same command again, repeatedly for the
kills. At the end all arrays of its last checkpoint, its clock, the rows of its log and its last grid of samples must
equal the undisturbed run's, bit for bit. Moments and places are drawn from --seed. A failed case keeps its folder. The
full disk needs the right to mount a tmpfs (root), and is otherwise skipped with a note.
"""
import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tqdm

from diffusion import build
from diffusion import config as config_lib
from diffusion.data import sources
from diffusion.data.prepare import writer
from diffusion.io.checkpoint import Checkpoints
from diffusion.io.writers import read_rows
from diffusion.programs.verify import digests
from diffusion.train import loop

STEPS = 120
VALUES = {
    "data.name": "tfds", "data.dataset": "small", "data.size": 8, "data.channels": 3, "data.flip": True,
    "network.channels": 8, "network.multipliers": (1,), "network.blocks": 1, "network.attention_resolutions": (),
    "network.groups": 4, "network.dropout": 0.1, "process.steps": 20, "sample.steps": 5, "sample.batch_size": 8,
    "sample.preview": 8, "train.batch_size": 16, "train.duration": f"{STEPS} steps", "train.log_every": "7 steps",
    "train.sample_every": "40 steps", "train.checkpoint_every": "4 steps", "optimizer.warmup": "5 steps"}


class Campaign:
    """A data set, the undisturbed run, and the tools of a case for starting programs and comparing."""

    def __init__(self, folder: Path):
        self.folder, self.data = folder, folder / "data"
        images = np.repeat(sources.digits("train").images[:200], 3, axis=-1)
        writer.write(self.data / "small" / "1.0.0", {"train": (images, np.zeros(len(images), np.int32))},
                     writer.Layout(name="small", description="", class_names=("a",), shape=images.shape[1:]))
        self.config = config_lib.override(config_lib.base(), VALUES | {"data.dir": str(self.data)})
        self.file = folder / "small.py"
        self.file.write_text("from diffusion import config\n\n\ndef get_config():\n    return config.override("
                             f"config.base(), {VALUES!r})\n")
        self.parts = build.training(self.config, build.model(self.config))
        whole = folder / "undisturbed"
        began = time.monotonic()
        self.end(self.start(whole))
        self.seconds = time.monotonic() - began
        began = time.monotonic()  # again: now its compilations are cached
        shutil.rmtree(whole)
        self.end(self.start(whole))
        self.seconds = time.monotonic() - began
        self.expected = self.outcome(whole)

    def start(self, workdir: Path, *flags: str, data: Path | None = None) -> subprocess.Popen:
        workdir.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
                       "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
                       "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        with open(self.log(workdir), "a") as log:
            return subprocess.Popen([sys.executable, "-m", "diffusion.main", f"--config={self.file}",
                                     f"--config.data.dir={data or self.data}", f"--workdir={workdir}", *flags],
                                    env=environment, stdout=log, stderr=log)

    def log(self, workdir: Path) -> Path:
        """The output of a case's programs, not on a disk that the case fills."""
        return self.folder / f"{workdir.relative_to(self.folder).parts[0]}.log"

    def end(self, process: subprocess.Popen) -> None:
        if code := process.wait(timeout=600):
            raise RuntimeError(f"exit code {code}")

    def outcome(self, workdir: Path) -> dict[str, str]:
        """Digests of all results of a finished run."""
        data = self.parts.data
        state, clock = Checkpoints(workdir / "checkpoints", keep=None).restore(self.parts.abstract_state, data, STEPS)
        found = digests(state, loop.restored_clock(clock, 16), read_rows(workdir / "metrics.jsonl"), data)
        return found | {"samples": (workdir / "samples" / f"step_{STEPS:08d}.png").read_bytes().hex()}

    def finish(self, workdir: Path, *flags: str) -> None:
        """Runs the command to its end and compares the results."""
        self.end(self.start(workdir, *flags))
        found = self.outcome(workdir)
        if wrong := [name for name in self.expected if found[name] != self.expected[name]]:
            raise RuntimeError(f"differs from the undisturbed run in {', '.join(wrong[:5])}")


def kills(campaign: Campaign, workdir: Path, rng: random.Random, count: int) -> Counter:
    """SIGKILL `count` times: at a random moment, or during or just after the writing of a checkpoint."""
    seen = Counter()
    for _ in range(count):
        moment = rng.choice(["at any time", "at any time", "in a checkpoint", "after a checkpoint"])
        process, folder = campaign.start(workdir), workdir / "checkpoints"
        before = set(folder.iterdir()) if folder.exists() else set()
        deadline = time.monotonic() + (rng.uniform(0, 1.2 * campaign.seconds) if moment == "at any time" else 60)
        skip = rng.randrange(4)  # not always the first one
        while process.poll() is None and time.monotonic() < deadline:
            new = (set(folder.iterdir()) if folder.exists() else set()) - before
            if moment == "in a checkpoint" and sum(".orbax-checkpoint-tmp" in p.name for p in new) and not (
                    skip := skip - 1) >= 0:
                break
            if moment == "after a checkpoint" and sum(p.name.isdigit() for p in new) > skip:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        if process.poll() is None:
            process.kill()
            seen[f"killed {moment}"] += 1
        elif process.wait() != 0:
            raise RuntimeError(f"exit code {process.returncode} without a kill")
        else:
            seen["ended before the kill"] += 1
        process.wait()
    campaign.finish(workdir)
    return seen


def signals(campaign: Campaign, workdir: Path, rng: random.Random) -> Counter:
    """SIGTERM at a random moment: exit code 75, or the code for a signal before the program's own first line."""
    process = campaign.start(workdir)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(rng.uniform(0.2, 1.0) * campaign.seconds)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=100)
    if code not in (75, 0, -signal.SIGTERM):
        raise RuntimeError(f"exit code {code} after SIGTERM")
    campaign.finish(workdir)
    return Counter({75: ["saved and left with 75"], 0: ["had just ended"]}.get(code, ["left before its first line"]))


def spoil(file: Path, rng: random.Random) -> str:
    content = bytearray(file.read_bytes())
    if content and rng.random() < 0.5:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        return "a bit flipped"
    file.write_bytes(content[:rng.randrange(max(len(content), 1))])
    return "truncated"


def damaged_checkpoint(campaign: Campaign, workdir: Path, rng: random.Random) -> Counter:
    """Damages a file of the newest checkpoint; the program sets it aside and resumes from the previous one."""
    campaign.end(campaign.start(workdir))
    newest = workdir / "checkpoints" / str(STEPS)
    file = rng.choice(sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size))
    how = spoil(file, rng)
    campaign.finish(workdir)
    return Counter({f"{how}, in {file.name if file.parent == newest else file.relative_to(newest).parts[0]}": 1})


def damaged_shard(campaign: Campaign, workdir: Path, rng: random.Random) -> Counter:
    """Damages a file of the data: the program names it and stops; with the right file again it resumes."""
    data = Path(f"{workdir}.data")
    shutil.copytree(campaign.data, data)
    (shard,) = (data / "small" / "1.0.0").glob("*array_record*")
    good = shard.read_bytes()
    how = spoil(shard, rng)
    process = campaign.start(workdir, data=data)
    code = process.wait(timeout=300)
    if code not in (0, 1) or (code == 1 and str(data) not in campaign.log(workdir).read_text()):
        raise RuntimeError(f"exit code {code} on a damaged shard, or no message about it")
    shard.write_bytes(good)
    campaign.finish(workdir, f"--config.data.dir={data}")
    return Counter({f"{how}: " + ("named, then repaired" if code else "in no example's bytes"): 1})


def full_disk(campaign: Campaign, workdir: Path, rng: random.Random) -> Counter:
    """Fills a tmpfs with ballast at a random moment; after its removal, the program resumes."""
    workdir.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(workdir)], capture_output=True)
    if done.returncode:
        return Counter({"left out: no right to mount a tmpfs": 1})
    try:
        run = workdir / "run"
        process = campaign.start(run)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.4, 0.8) * campaign.seconds)
        with contextlib.suppress(OSError), open(workdir / "ballast", "wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        code = process.wait(timeout=300)
        if code not in (0, 1) or (code == 1 and "disk is full" not in campaign.log(run).read_text()):
            raise RuntimeError(f"exit code {code} on a full disk, or no message about it")
        (workdir / "ballast").unlink()
        campaign.finish(run)
    finally:
        subprocess.run(["umount", str(workdir)], check=True)
    return Counter({"reported it, and resumed with free space" if code else "had ended before": 1})


def lost_host(campaign: Campaign, workdir: Path, rng: random.Random) -> Counter:
    """SIGKILL for one of two processes; the other gives up, and both are started again."""
    def start(folder: Path) -> list[subprocess.Popen]:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            address = f"--coordinator=127.0.0.1:{s.getsockname()[1]}"
        return [campaign.start(folder, address, "--num_processes=2", "--heartbeat_seconds=10", f"--process_id={i}")
                for i in range(2)]

    # Sums over two devices have another order, so compare with an undisturbed run of two processes.
    for process in start(Path(f"{workdir}.undisturbed")):
        campaign.end(process)
    processes, victim = start(workdir), rng.randrange(2)
    time.sleep(rng.uniform(0.6, 1.5) * campaign.seconds)
    processes[victim].kill()
    codes = [process.wait(timeout=300) for process in processes]
    for process in start(workdir):
        campaign.end(process)
    if campaign.outcome(workdir) != campaign.outcome(Path(f"{workdir}.undisturbed")):
        raise RuntimeError("differs from the undisturbed run of two processes")
    return Counter({f"process {victim} killed, the other left with {codes[1 - victim]}": 1})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    counts = {"kills": 100, "sigterms": 20, "damaged_checkpoints": 20, "damaged_shards": 10, "full_disks": 5,
              "lost_hosts": 3}
    for name, count in counts.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--kills_of_a_run", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cases at a time")
    parser.add_argument("--folder", default=None, help="the folder for the runs; default: a temporary folder")
    parser.add_argument("--out", default=None, help="JSON of the figures")
    args = parser.parse_args()

    folder = Path(args.folder or tempfile.mkdtemp(prefix="faults_"))
    campaign = Campaign(folder)
    print(f"the undisturbed run takes {campaign.seconds:.1f} s", flush=True)
    of_kills = [min(args.kills_of_a_run, args.kills - n) for n in range(0, args.kills, args.kills_of_a_run)]
    cases = [("kills", lambda *a, n=n: kills(*a, n)) for n in of_kills]
    cases += [("sigterms", signals)] * args.sigterms + [("damaged checkpoints", damaged_checkpoint)
                                                         ] * args.damaged_checkpoints
    cases += [("damaged shards", damaged_shard)] * args.damaged_shards + [("full disks", full_disk)] * args.full_disks
    cases += [("lost hosts", lost_host)] * args.lost_hosts

    def run(number: int):
        name, case = cases[number]
        workdir = folder / f"case_{number:03d}"
        try:
            seen, failure = case(campaign, workdir, random.Random(f"{args.seed} {number}")), None
            for path in folder.glob(f"{workdir.name}*"):
                path.unlink() if path.is_file() else shutil.rmtree(path)
        except Exception as error:  # any error fails only this case; the others continue
            seen, failure = Counter(), f"{workdir}: {type(error).__name__}: {error}"
        return name, seen, failure

    report, failures, began = {}, [], time.monotonic()
    with ThreadPoolExecutor(args.jobs) as pool:
        for name, seen, failure in tqdm.tqdm(pool.map(run, range(len(cases))), total=len(cases), unit="case"):
            row = report.setdefault(name, {"runs": 0, "bit-equal at the end": 0, "seen": Counter()})
            row["runs"] += 1
            row["bit-equal at the end"] += failure is None
            row["seen"] += seen
            failures += [failure] if failure else []
    report = {"seed": args.seed, "seconds": round(time.monotonic() - began), "cases": report, "failures": failures}
    text = json.dumps(report, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")
    if not failures and args.folder is None:
        shutil.rmtree(folder)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
