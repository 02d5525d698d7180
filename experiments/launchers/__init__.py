"""Launches training on clusters through the engines' own commands: sbatch and srun, gcloud, xpk. --dry_run prints
them."""
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

Command = list[str]


class LaunchError(Exception):
    """An error that a user can correct; printed as one message."""


def training(config: str, flags: list[str], python: str = "python") -> str:
    """The shell command of a training. Raises LaunchError for a config that is not a config file, or is named twice."""
    if not re.search(r"\.(json|py(:.*)?)$", config):  # such as the value of a flag before it
        raise LaunchError(f"{config!r} is no config file, such as configs/cifar10.py. Flags are written --name=value.")
    if again := [flag for flag in flags if re.match(r"--?config(=|$)", flag)]:
        raise LaunchError(f"{again[0]}: the config is named without --config, such as configs/cifar10.py.")
    return shlex.join([python, "-m", "diffusion.main", f"--config={config}", *flags])


def run(commands: list[Command], dry_run: bool, install: str) -> None:
    """Prints and runs the commands one after the other, or only prints them. install: how to get the program.

    Raises LaunchError at the first command that fails or is not installed.
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
    """A whole number from 0, as a `type` of argparse."""
    return 0 if text == "0" else whole(text)


def name(text: str) -> str:
    """A name valid on all engines (RFC 1035), as a `type` of argparse."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", text):
        raise ValueError
    return text


def main(program) -> None:
    """Runs a launcher's main with the command line; an error gives one message and exit code 1."""
    try:
        for word in sys.argv[1:]:
            if not word.isprintable():  # it would begin a new line of a script, or break it
                raise LaunchError(f"{word!r} contains a line break or another control character. Leave it out.")
        program(sys.argv[1:])
    except LaunchError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or ''}: {error.strerror or error}")
    except KeyboardInterrupt:  # the way to leave the logs
        sys.exit(130)
