"""A self-explanatory run folder: the config, code and machine of the run, and the commands to continue it.

    config.json         the resolved config
    environment.json    a list, one entry for each start: command, time, versions, devices, git commit
    code.diff           uncommitted changes of the code at the first start (code.2.diff at the second, ...)
    README.md           the contents, and the commands
    checkpoints/  samples/  metrics.jsonl  tensorboard/     written by the run
"""
import contextvars
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

import jax

from diffusion.errors import CheckpointError, ConfigError, DiffusionError
from diffusion.io.files import atomic_write, cannot_write, read_json
from diffusion.io.processes import is_primary, primary_says

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_LOCK = ".lock"
_SHOWN = 8  # keys listed in a message
_ABSENT = object()

# In a program of several parts: the command of the part that runs now.
COMMAND: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("COMMAND", default=None)


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The paths of a run. `resumed`: the folder already held this run, with the config `before` by dotted keys, which
    only the first process knows."""
    path: Path
    resumed: bool
    before: dict | None = None
    lock: IO | None = None  # held open by the process that writes here

    def release(self) -> None:
        """Releases the lock, so that another program may write here."""
        if self.lock is not None:
            self.lock.close()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"


def is_run(folder: str | os.PathLike) -> bool:
    """Whether the folder holds a run: others have a config.json, too, but only ours have both files."""
    return all((Path(folder) / name).is_file() for name in ("config.json", "environment.json"))


def read_starts(folder: str | os.PathLike) -> list[dict]:
    """The entries of environment.json, one for each start. Raises CheckpointError if they cannot be read."""
    return read_json(Path(folder) / "environment.json", list, entries=dict)


def open_run(folder: str | os.PathLike, config: dict, *, resumable_keys: Sequence[str] = (),
             adopt: Callable[[dict, str], dict] = lambda values, where: values, read_only: bool = False) -> RunFolder:
    """Makes the run folder, or continues in one that holds a run of the same config. Call it in all processes.

    config: nested dicts of JSON values. resumable_keys: patterns of dotted keys, such as "train.*_every", that may
    differ from the run's; their new values are saved. adopt: (the values of the run's config.json, the file) -> nested
    dicts with today's keys, since the file may be older. read_only: the run must exist, and nothing is written.
    Raises ConfigError if the folder holds a run of another config or other files, CheckpointError if it cannot be read
    or written. Never deletes anything. Unless read_only, it locks out other writers until this program ends.
    """
    path, before, failure, lock = Path(folder), None, None, None
    if is_primary():
        try:
            before, lock = _open(path, _plain(config), lambda file: _plain(adopt(read_json(file), str(file))),
                                 resumable_keys, read_only)
        except DiffusionError as error:
            failure = error
    # The others must not read the folder themselves: the first process may be writing.
    if primary_says(failure is not None):
        raise failure or ConfigError(f"The run folder {path} cannot be used, see the message of process 0.")
    return RunFolder(path=path, resumed=bool(primary_says(before is not None)), before=before, lock=lock)


def _plain(values: dict) -> dict:
    """The values as JSON represents them."""
    return json.loads(json.dumps(values))


def flat_json(values: dict) -> dict:
    """Nested values by dotted keys, as a run's config.json holds them."""
    return _flatten(_plain(values))


def _lock(path: Path) -> IO:
    """An open file that no other program can lock; the system frees it when this program ends, in any way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / _LOCK, "a+")
    except OSError as error:
        raise CheckpointError(cannot_write(path, error)) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise ConfigError(f"Another program trains in {path}: {file.read().strip() or 'unknown'}. Two would spoil each "
                          "other's files. Wait for it or stop it, or give another --workdir.") from None
    except OSError:  # some network file systems have no locks
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    return file


def _open(path: Path, config: dict, read: Callable[[Path], dict], resumable_keys: Sequence[str],
          read_only: bool) -> tuple[dict | None, IO | None]:
    """The config of the run that the folder already held, if any, and the folder's lock."""
    config_file, environment_file = path / "config.json", path / "environment.json"
    before = None
    if is_run(path):  # the config is written last in a new folder
        before = _flatten(read(config_file))
        _check_same(path, before, _flatten(config), resumable_keys)
    elif read_only:
        raise ConfigError(f"There is no run in {path}. Train first, with the same command and --mode=train, or give "
                          "the --workdir of a run.")
    elif (found := _strangers(path)) is not None:
        raise ConfigError(f"{path} {found}, and is not a run folder. Nothing was changed. Give another --workdir, new "
                          "or empty.")
    if read_only:
        return before, None
    lock = _lock(path)
    try:
        starts = read_starts(path) if environment_file.is_file() else []
        diff_name = f"code.{len(starts) + 1}.diff" if starts else "code.diff"
        environment, diff = describe_environment()
        if diff:
            atomic_write(path / diff_name, diff)
            environment["git"]["diff"] = diff_name
        atomic_write(environment_file, _dump([*starts, environment]))
        if not (path / "README.md").exists():
            atomic_write(path / "README.md", _readme(path, environment["command"], config.get("plugins", ())))
        atomic_write(config_file, _dump(config))
    except BaseException:
        lock.close()
        raise
    return before, lock


def _strangers(path: Path) -> str | None:
    """The obstacle to a new run in the folder; None if there is none."""
    if not path.exists():
        return None
    if not path.is_dir():
        return "is a file"
    begun = (path / "environment.json").is_file()
    ours = {_LOCK, "environment.json", "README.md", "code.diff"} if begun else {_LOCK}
    names = sorted(p.name for p in path.iterdir() if p.name not in ours and not fnmatchcase(p.name, ".*.tmp"))
    return f"holds other files ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else None


def _check_same(path: Path, old: dict, new: dict, resumable_keys: Sequence[str]) -> None:
    differing = [key for key in sorted({**old, **new}) if old.get(key, _ABSENT) != new.get(key, _ABSENT)
                 and not any(fnmatchcase(key, pattern) for pattern in resumable_keys)]
    if differing:
        def show(values, key):
            return json.dumps(values[key]) if key in values else "(no such key)"

        lines = [f"  {key}: {show(old, key)} -> {show(new, key)}" for key in differing[:_SHOWN]]
        lines += [f"  and {len(differing) - _SHOWN} more"] if len(differing) > _SHOWN else []
        free = f" These may change: {', '.join(resumable_keys)}." if resumable_keys else ""
        raise ConfigError(f"{path} holds a run of another config (there -> now):\n" + "\n".join(lines)
                          + f"\nGive another --workdir, or the same values (without --config: those of the run).{free}")


def _flatten(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value})
    return flat


def _dump(value) -> str:
    return json.dumps(value, indent=2) + "\n"


def describe_environment() -> tuple[dict, str]:
    """The environment that a result depends on, as JSON, and the code's uncommitted changes as a diff."""
    git, diff = _git_state(Path(__file__).resolve())
    devices = jax.devices()
    return {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command_line(),
        "host": platform.node(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in _PACKAGES},
        "devices": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices),
                    "processes": jax.process_count()},
        "git": git,
    }, diff


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def command_line() -> str:
    """The command that started this program, or this part of it, as typed in a shell."""
    if (given := COMMAND.get()) is not None:
        return shlex.join(given)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name] if spec is not None else sys.argv[:1]
    return shlex.join(["python", *program, *sys.argv[1:]])


def command(folder: str | os.PathLike, *flags: str, plugins: Sequence[str] = ()) -> str:
    """A command for a run, as typed in a shell: the run folder has the config, but not the user's code."""
    named = [f"--config.plugins={','.join(plugins)}"] if plugins else []
    return shlex.join(["python", "-m", "diffusion.main", f"--workdir={folder}", *named, *flags])


def _git_state(file: Path) -> tuple[dict | None, str]:
    """({"commit", "dirty", "changed": lines of `git status`} or None, diff) of the repository that tracks `file`."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(file.parent), *arguments], capture_output=True, text=True, timeout=30,
                              check=True, errors="replace", env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"}).stdout

    try:
        git("ls-files", "--error-unmatch", file.name)  # an environment inside another repository is not that repository
        commit = git("rev-parse", "HEAD").strip()
        changed = git("status", "--porcelain").splitlines()
        diff = git("diff", "HEAD") if changed else ""
    except (OSError, subprocess.SubprocessError):
        return None, ""
    return {"commit": commit, "dirty": bool(changed), "changed": changed[:100]}, diff


def _readme(path: Path, made_by: str, plugins: Sequence[str]) -> str:
    rows, picture = str(path / "metrics.jsonl"), str(path / "loss.png")
    curve = f"from diffusion.io import plots, writers; plots.plot_loss(writers.read_rows({rows!r}), {picture!r})"
    return f"""# Run `{path.resolve().name}`

Made by

    {made_by}

- `config.json`: the resolved config. `environment.json`: for each start, the command, versions, devices and git commit;
  `code.diff` (`code.2.diff`, ...): the uncommitted changes at each start.
- `metrics.jsonl`: one JSON object per line: step, images, loss, gradient norm, images per second, loss by log-SNR, ...
- `tensorboard/`: the same for `tensorboard --logdir=.`.
- `samples/`: one grid of samples per drawing, from the averaged weights.
- `checkpoints/STEP/`: state, place in the data and clock; `sha256sum -c SHA256SUMS` in such a folder checks its files.
- `snapshots/NAME/STEP/`, with `train.snapshot_every`: an average alone, for `--weights=posthoc:0.08`.
- `loss.png`, `loss_by_noise.png`: the curves, drawn at the end. `effective_weight.png`, `.json`: how much the squared
  error in eps counts at each noise level, w(lambda) p(lambda) (Kingma & Gao 2023).

The run folder holds the config: these commands need no other flags. Run them where the run was started.

Resume, after a crash or with a longer duration:

    {command(path, plugins=plugins)} --config.train.duration="..."

Sample:

    {command(path, "--mode=sample", "--num_samples=64", plugins=plugins)}

Draw the loss curve at any time:

    {shlex.join(["python", "-c", curve])}
"""
