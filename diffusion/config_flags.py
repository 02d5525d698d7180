"""The config of a command line: --config=SOURCE, and --config.KEY=VALUE for single keys of it.

SOURCE is a Python file whose get_config() makes a config, FILE:ARGUMENT for one that takes an argument, or the
config.json of a run.
"""
import contextlib
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping

from ml_collections import ConfigDict

from diffusion import config as config_lib
from diffusion import user_file
from diffusion.errors import ConfigError, DataError, shown
from diffusion.io.files import read_json


def split(words: list[str]) -> tuple[str | None, dict[str, str], list[str]]:
    """(SOURCE or None, the text of each KEY that is given, the other words) of a command line.

    As with other flags, one dash or two may begin them, a space may stand for the equals sign, the last of several
    counts, and --config.KEY and --noconfig.KEY are True and False. Raises ConfigError for an unknown key.
    """
    source, given, rest = None, {}, []
    left = iter(words)
    for word in left:
        if word == "--":
            return source, given, [*rest, word, *left]
        name, equals, value = word.partition("=")
        name = name.removeprefix("-").removeprefix("-") if name.startswith("-") else ""
        if name == "config":
            source = value if equals else next(left, "")
        elif name.startswith("config."):
            key = name.removeprefix("config.")
            config_lib.check_key(key)
            if not equals and config_lib.known()[key].kind is bool:
                value = "true"
            given[key] = value if equals or value else next(left, "")
        elif name.startswith("noconfig."):
            key = name.removeprefix("noconfig.")
            config_lib.check_key(key)
            if equals or config_lib.known()[key].kind is not bool:
                raise ConfigError(f"{word} is not a flag: --noconfig.KEY turns a key that is True or False off.")
            given[key] = "false"
        else:
            rest.append(word)
    return source, given, rest


def with_given(config: ConfigDict, given: Mapping[str, str]) -> ConfigDict:
    """The config with the keys that a command line gives, and with all others set. Raises ConfigError for a value that
    the key cannot have."""
    return config_lib.override(config, {key: config_lib.known()[key].parsed(text, "the command line")
                                        for key, text in given.items()}, "the command line")


@contextlib.contextmanager
def naming(source: str, config: ConfigDict, given: Collection[str]) -> Iterator[None]:
    """Adds to a ConfigError or DataError which of the keys that it names `source`, a file or a model, has set, and no
    flag did."""
    try:
        yield
    except (ConfigError, DataError) as error:
        values, defaults = config_lib.keys(config), config_lib.keys(config_lib.base())
        named = dict.fromkeys(re.findall(r"\bconfig\.(\w+(?:\.\w+)*)", str(error)))
        theirs = [f"config.{key}" for key in named if key in values and key not in given and
                  values[key] != defaults[key]]
        if theirs and source not in str(error):
            error.args = (f"{error} ({' and '.join(theirs)} {'is' if len(theirs) == 1 else 'are'} set in {source}.)",)
        raise


def load(source: str) -> ConfigDict:
    """The config of SOURCE, for `with_given`.

    Raises ConfigError, with the file and its line, for what is wrong with it; CheckpointError for a config.json that
    cannot be read.
    """
    if source.endswith(".json"):
        return config_lib.from_dict(read_json(source), source)
    file, colon, argument = (source, "", "") if os.path.isfile(source) else source.partition(":")
    module = user_file.run(file, "config")
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"{file} has no function get_config() that returns a config. The files in configs/ show how.")
    arguments = [argument] if colon else []
    if not _takes(get_config, arguments):
        raise ConfigError(f"get_config() of {file} takes no argument: leave {colon}{argument} out." if colon else
                          f"get_config() of {file} needs an argument: write --config={file}:ARGUMENT.")
    return checked(user_file.call(file, "config", get_config, *arguments), file)


def checked(config: object, where: str) -> ConfigDict:
    """A config with just the keys of `base()` and values that they can have, locked; `where` is its file. Raises
    ConfigError for any other."""
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"get_config() of {where} returned {shown(config)}, and no config. Start from "
                          "`config.base()`, change values, and return it, as the files in configs/ do.")
    if strange := {str(key) for key in config_lib.keys(config)} ^ set(config_lib.known()):
        raise ConfigError(f"{where} does not have the keys of diffusion/config.py: {', '.join(sorted(strange))}. Start "
                          "from `config.base()` and change values, as the files in configs/ do.")
    return config_lib.from_dict(config.to_dict(), where, final=False)


def _takes(function: Callable, arguments: list) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # a function that does not say what it takes
        pass
    return True
