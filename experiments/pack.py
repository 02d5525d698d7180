"""Several trainings in one program, whose steps are compiled together; the results are those of separate programs.

  python -m experiments.pack FLAGS OF ONE -- FLAGS OF ANOTHER ...

The flags are those of diffusion.main --mode=train (--config, --workdir, --config.KEY=VALUE); `experiments.run --pack=N`
calls it. Each training is a part of its own in one compiled step, so that anything may differ between them, and nothing
is summed in another order than alone; one that fails leaves the others.
"""
import contextlib
import contextvars
import itertools
import sys
import time

STARTED = time.perf_counter()

from pathlib import Path  # noqa: E402  (the clock starts before the imports)

import jax  # noqa: E402
from absl import flags  # noqa: E402
from ml_collections import ConfigDict, config_flags  # noqa: E402

from diffusion import config as config_lib  # noqa: E402
from diffusion import modes, runtime  # noqa: E402
from diffusion.errors import ConfigError, DiffusionError, Interrupted  # noqa: E402
from diffusion.io import run_folder  # noqa: E402
from diffusion.train.interrupts import Interrupts  # noqa: E402


def parsed(words: list[str]) -> tuple[ConfigDict, Path]:
    """(config, workdir) of a training's flags. Raises ConfigError for what is wrong with them."""
    known = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", lock_config=True, flag_values=known,
                                             sys_argv=["pack", *words])
    workdir = flags.DEFINE_string("workdir", None, "", flag_values=known)
    flags.DEFINE_enum("mode", "train", ["train"], "", flag_values=known)
    config_lib.check_flags(words)
    try:
        rest = known(["pack", *words])
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ConfigError(config_lib.explain(error)) from error
    if len(rest) > 1 or not workdir.value or config.value is None:
        raise ConfigError(f"Each training needs --config and --workdir, and flags only; got {' '.join(words)!r}.")
    return config.value, Path(workdir.value)


class Member:
    """A training that is advanced from step to step. `error`: what ended it before its end."""

    def __init__(self, words: list[str], interrupts: Interrupts):
        config, workdir = parsed(words)
        self.context, self.reply, self.error = contextvars.copy_context(), None, None
        self.context.run(run_folder.COMMAND.set, ["python", "-m", "diffusion.main", *words])
        self.workdir, self.training = workdir, modes.training(config, workdir, STARTED, interrupts)

    def next(self):
        """The step that it asks for; None: it has ended."""
        try:
            return self.context.run(self.training.send, self.reply)
        except StopIteration:
            return None
        except DiffusionError as error:
            self.error = error
            return None


def together(members: list[Member]) -> None:
    """Runs them to their ends; those that go on make each step in one dispatch."""
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
    """One step of each: (states, batches, datasets) -> [(state, metrics)]."""
    return lambda *arguments: [function(*one) for function, one in zip(functions, zip(*arguments))]


def main(argv: list[str]) -> int:
    groups = [list(words) for divider, words in itertools.groupby(argv, lambda word: word == "--") if not divider]
    if not groups:
        raise ConfigError("No trainings are given; see experiments/pack.py, or experiments.run --pack.")
    with Interrupts() as interrupts:
        members = [Member(words, interrupts) for words in groups]
        runtime.keep_compilations(members[0].workdir.parent)
        runtime.keep_memory()
        together(members)
    for member in members:
        if member.error is not None:
            print("\n".join([f"error: {member.workdir}: {member.error}", *getattr(member.error, "__notes__", [])]),
                  file=sys.stderr)
    stopped = [member.error for member in members if isinstance(member.error, Interrupted)]
    return stopped[0].exit_code if stopped else any(member.error is not None for member in members)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except DiffusionError as error:
        sys.exit(f"error: {error}")
