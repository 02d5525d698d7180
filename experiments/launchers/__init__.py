"""Commands for clusters, made of the engines' own: sbatch and srun, gcloud, xpk. --dry_run prints them all."""
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

Command = list[str]


class LaunchError(Exception):
    """What a user can mend; printed as one message."""


def training(config: str, flags: list[str], python: str = "python") -> str:
    """The shell command of a training. Raises LaunchError for a config that is none, or is named twice."""
    if not re.search(r"\.(json|py(:.*)?)$", config):  # such as the value of a flag before it
        raise LaunchError(f"{config!r} is no config file, such as configs/cifar10.py. Flags are written --name=value.")
    if again := [flag for flag in flags if re.match(r"--?config(=|$)", flag)]:
        raise LaunchError(f"{again[0]}: the config is named without --config, such as configs/cifar10.py.")
    return shlex.join([python, "-m", "diffusion.main", f"--config={config}", *flags])


def run(commands: list[Command], dry_run: bool, install: str) -> None:
    """Runs them one after the other, each printed before, or only prints them. install: how to get the program.

    Raises LaunchError at the first that fails or is not there.
    """
    for command in commands:
        print(shlex.join(command), flush=True)
        if dry_run:
            continue
        if shutil.which(command[0]) is None:
            raise LaunchError(f"There is no {command[0]} here. {install}")
        if code := subprocess.run(command, cwd=ROOT).returncode:
            raise LaunchError(f"{command[0]} failed with exit code {code}; its message is above. Nothing after it was "
                              "done.")


def whole(text: str) -> int:
    """A whole number above 0, as a `type` of argparse."""
    if not 0 < int(text) < 2**31:
        raise ValueError
    return int(text)


def number(text: str) -> int:
    """The same, or 0."""
    return 0 if text == "0" else whole(text)


def name(text: str) -> str:
    """A name that all of them take (RFC 1035): what argparse needs for its `type`."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", text):
        raise ValueError
    return text


def main(program) -> None:
    """Runs a launcher's main with the command line; an error is one message and exit code 1."""
    try:
        for word in sys.argv[1:]:
            if not word.isprintable():  # it would be a line of its own in a script, or no script at all
                raise LaunchError(f"{word!r} has a line break or another control character in it. Leave it out.")
        program(sys.argv[1:])
    except LaunchError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or ''}: {error.strerror or error}")
    except KeyboardInterrupt:  # which is how the logs are left
        sys.exit(130)
