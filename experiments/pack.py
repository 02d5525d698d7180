"""Runs several trainings in one program with jointly compiled steps; the results equal those of separate programs.

  python -m experiments.pack FLAGS OF ONE -- FLAGS OF ANOTHER ...

The flags are those of diffusion.main --mode=train (--config, --workdir, --config.KEY=VALUE); `experiments.run --pack=N`
calls it. Each training is a separate part of one compiled step, so that anything may differ between them, and sums have
the same order as in separate programs; if one fails, the others continue.
"""
import contextlib
import contextvars
import itertools
import sys

from diffusion import program

if __name__ == "__main__":
    program.begin()

from pathlib import Path  # noqa: E402

import jax  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from diffusion import config_flags, runtime  # noqa: E402  (after program.begin)
from diffusion.errors import ConfigError, DiffusionError, Interrupted, shown  # noqa: E402
from diffusion.io import run_folder  # noqa: E402
from diffusion.programs.train import training  # noqa: E402
from diffusion.train.interrupts import Interrupts  # noqa: E402


def parsed(words: list[str]) -> tuple[ConfigDict, Path]:
    """(config, workdir) from a training's flags. Raises ConfigError for wrong flags."""
    source, given, rest = config_flags.split(words)
    workdir = [word.removeprefix("--workdir=") for word in rest if word.startswith("--workdir=")]
    if strange := [word for word in rest if word != "--mode=train" and not word.startswith("--workdir=")]:
        raise ConfigError(f"A training takes --config, --config.KEY and --workdir; got {shown(strange[0])}.")
    if not source or not workdir or not workdir[-1]:
        raise ConfigError(f"Each training needs --config=FILE and --workdir=FOLDER; got {shown(' '.join(words))}.")
    return config_flags.with_given(config_flags.load(source), given), Path(workdir[-1])


class Member:
    """A training that is advanced step by step. `error`: the error that ended it early."""

    def __init__(self, words: list[str], interrupts: Interrupts):
        config, workdir = parsed(words)
        self.context, self.reply, self.error = contextvars.copy_context(), None, None
        self.context.run(run_folder.COMMAND.set, ["python", "-m", "diffusion.main", *words])
        self.workdir, self.training = workdir, training(config, workdir, program.STARTED, interrupts)

    def next(self):
        """The step that it requests; None: it has ended."""
        try:
            return self.context.run(self.training.send, self.reply)
        except StopIteration:
            return None
        except DiffusionError as error:
            self.error = error
            return None


def run_jointly(members: list[Member]) -> None:
    """Runs the members to their ends; all unfinished members make each step in one dispatch."""
    compiled = {}
    with contextlib.ExitStack() as stack:
        for member in members:
            stack.enter_context(contextlib.closing(member.training))
        going = members
        while going:
            asked = [(member, request) for member in going if (request := member.next()) is not None]
            going = [member for member, _ in asked]
            if not going:
                return
            functions, states, *rest = zip(*(request for _, request in asked))
            if functions not in compiled:
                compiled[functions] = jax.jit(joint(functions), donate_argnums=0)
            with jax.transfer_guard("disallow"):
                replies = compiled[functions](states, *rest)
            for member, reply in zip(going, replies):
                member.reply = reply


def joint(functions):
    """A function that makes one step of each: (states, batches, datasets) -> [(state, metrics)]."""
    return lambda *arguments: [function(*one) for function, one in zip(functions, zip(*arguments))]


def main(argv: list[str]) -> int:
    groups = [list(words) for divider, words in itertools.groupby(argv, lambda word: word == "--") if not divider]
    if not groups:
        raise ConfigError("No trainings are given; see experiments/pack.py, or experiments.run --pack.")
    runtime.check_flags()
    with Interrupts() as interrupts:
        members = [Member(words, interrupts) for words in groups]
        runtime.check_devices()
        runtime.keep_compilations(members[0].workdir.parent)
        runtime.keep_memory()
        run_jointly(members)
    for member in members:
        if member.error is not None:
            print("\n".join([f"error: {member.workdir}: {member.error}", *getattr(member.error, "__notes__", [])]),
                  file=sys.stderr)
    stopped = [member.error for member in members if isinstance(member.error, Interrupted)]
    return stopped[0].exit_code if stopped else any(member.error is not None for member in members)


if __name__ == "__main__":
    program.interruptible()
    program.run(lambda: main(sys.argv[1:]))
