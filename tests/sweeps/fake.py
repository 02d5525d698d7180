"""A stand-in for diffusion/main.py: the same flags and files, numbers that are a function of the flags, and no work."""
import os
import stat
import sys
from pathlib import Path

from experiments.jobs import Runner
from experiments.sweep import expand
from experiments.table import Cell, Column, Finding, Row, Scale, Table

PROGRAM = '''#!{python}
import hashlib, itertools, json, os, signal, subprocess, sys, time
from pathlib import Path
if sys.argv[2] == "experiments.pack":
    groups = [list(words) for divider, words in itertools.groupby(sys.argv[3:], lambda w: w == "--") if not divider]
    (Path("{folder}") / "packs").open("a").write(str(len(groups)) + " ")
    sys.exit(max([subprocess.call([sys.argv[0], "-m", "diffusion.main", *words]) for words in groups]))
flags = dict(word[2:].split("=", 1) for word in sys.argv[3:])
mode, seed = flags["mode"], int(flags.get("seed", flags.get("config.seed", 0)))
trouble = Path("{folder}") / "trouble"
if trouble.exists() and trouble.read_text() in " ".join(sys.argv):
    sys.exit("error: there is trouble")
def number(*keys):
    text = json.dumps([v for k, v in sorted(flags.items()) if k.startswith(keys)])
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 2**24
if mode == "train":
    run = Path(flags["workdir"])
    run.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (run / "cores").write_text(json.dumps(sorted(os.sched_getaffinity(0))))
    log = run / "metrics.jsonl"
    done = len(log.read_text().splitlines()) if log.exists() else 0
    for step in range(done, 5):  # goes on where it was
        time.sleep({pause})
        row = {{"step": step + 1, "images": 64 * step + 64, "loss": number("config") / (step + 1)}}
        with open(log, "a") as file:
            file.write(json.dumps(row) + "\\n")
    (run / "checkpoints" / "5").mkdir(parents=True, exist_ok=True)
elif mode == "evaluate":
    out = Path(flags["out"])
    out.mkdir(parents=True, exist_ok=True)
    value = float(flags.get("config.sample.steps", 10)) + number("config", "seed") / 10
    steps = float(flags.get("config.sample.steps", 10))
    from PIL import Image
    Image.new("L", (4, 4), int(steps)).save(out / "step_00000005_small.png")
    (out / "a.json").write_text(json.dumps({{"metrics": {{"fd_small": {{"value": value, "images": 4}}}},
                                            "samples": {{"evaluations": steps}},
                                            "protocol": {{"extractor": "small", "images": 4}}}}))
else:
    out = Path(flags["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({{"train": {{"flops": 1e9}}, "bits_per_dim": 3.0 + number("config"), "examples": 8,
                               "estimator": {{"estimator": "vlb"}}, "data": {{"split": "test"}}}}))
'''
ROWS = [Row("five", {"sample.steps": 5}, {"FID": 3.0}), Row("ten", {"sample.steps": 10}, {"FID": Cell(4.0, 0.1)}),
        Row("ten, linear", {"sample.steps": 10, "process.name": "linear"}, {"FID": Cell(9.0, doubt="recalled")}),
        Row("no cell", {"sample.steps": 20})]


def table(rows=ROWS, columns=(Column("FID", "fd"),), **more) -> Table:
    return Table(title="A table", source="Nobody 2020", columns=columns, rows=rows, name="fake",
                 findings=[Finding("fewer steps are better", "FID", [("five", "ten"), ("ten", "no cell")]),
                           Finding("the wrong way round", "FID", [("ten", "five")])],
                 scales={"mini": Scale("configs/digits.py", {"train.duration": "900 steps"}, "Small.")}, **more)


def python(folder: Path, pause: float = 0.0) -> str:
    """The program's path. A file `trouble` in the folder makes it fail where its flags hold that text."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "python"
    file.write_text(PROGRAM.format(python=sys.executable, folder=folder, pause=pause))
    os.chmod(file, os.stat(file).st_mode | stat.S_IXUSR)
    return str(file)


def runner(folder: Path, seeds: int = 2, pause: float = 0.0, of: Table | None = None, **more) -> Runner:
    return Runner(expand(of or table(), "mini", seeds, folder / "sweep"), python=python(folder, pause), **more)
