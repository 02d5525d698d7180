"""Runs a user's Python file, such as a config, and reports an error in one message with its line."""
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from diffusion.errors import ConfigError, DiffusionError, shown


def run(path: str | Path, what: str) -> ModuleType:
    """The file, run as a module, which can import its neighbours and, by its folder's name, `from FOLDER import`.

    what: the kind of file for messages, such as "config". Raises ConfigError if it cannot be read or raises anything.
    """
    path = Path(path)
    try:
        source = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"The {what} file {shown(str(path))} cannot be read: {reason}.") from error
    folder = path.resolve().parent
    sys.path.extend(str(place) for place in (folder, folder.parent) if str(place) not in sys.path)
    module = ModuleType(f"{what}_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look it up there
    call(path, what, lambda: exec(compile(source, str(path), "exec"), vars(module)))
    return module


def call(path: str | Path, what: str, function: Callable, *arguments: Any,
         explain: Callable[[BaseException], str | None] = lambda error: None) -> Any:
    """Calls a function of the file. Raises ConfigError for any exception in it; `explain` may reword the message."""
    try:
        return function(*arguments)
    except DiffusionError as error:
        raise ConfigError(f"{_place(error, path)}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a file may also exit
        if (words := explain(error)) is not None:
            raise ConfigError(f"{_place(error, path)}: {words}") from error
        text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
        text = text if len(text) <= 300 else f"{text[:145]} ... {text[-150:]}"
        raise ConfigError(f"{_place(error, path)}: the {what} file cannot be run: {type(error).__name__}"
                          f"{': ' * bool(text)}{text.rstrip('.')}.") from error


def _place(error: BaseException, path: str | Path) -> str:
    """"FILE, line N": the place of the mistake in the file, or in its imports."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{error.filename}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)
