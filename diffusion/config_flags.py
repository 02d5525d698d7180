"""The config of a command line: --config=SOURCE, and --config.KEY=VALUE for single keys of it.

SOURCE is a Python file whose get_config() makes a config, FILE:ARGUMENT for one that takes an argument, or the
config.json of a run.
"""
import contextlib
import inspect
import os
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping

from ml_collections import ConfigDict

from diffusion import config as config_lib
from diffusion import families, user_file
from diffusion.errors import ConfigError, DataError, shown
from diffusion.io.files import read_json


class Bare(str):
    """The text of a flag without a value, which only a key that is True or False can take."""


def split(words: list[str]) -> tuple[str | None, dict[str, str], list[str]]:
    """(SOURCE or None, the text of each KEY that is given, the other words) of a command line.

    As with other flags, they may begin with one dash or two, a space may replace the equals sign, the last occurrence
    counts, and --config.KEY and --noconfig.KEY are True and False. `with_given` checks that the keys exist.
    """
    source, given, rest = None, {}, []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            return source, given, [*rest, word, *left]
        name, equals, value = word.partition("=")
        name = name.removeprefix("-").removeprefix("-") if name.startswith("-") else ""
        follows = bool(left) and not left[0].startswith("--")
        if name == "config":
            source = value if equals or not left else left.pop(0)
        elif name.startswith("config."):
            given[name.removeprefix("config.")] = value if equals else left.pop(0) if follows else Bare("true")
        elif name.startswith("noconfig."):
            if equals:
                raise ConfigError(f"{word} is not a flag: --noconfig.KEY turns a key that is True or False off.")
            given[name.removeprefix("noconfig.")] = Bare("false")
        else:
            rest.append(word)
    return source, given, rest


def load_plugins(given: Mapping[str, str]) -> None:
    """Imports the modules that --config.plugins names, so that their members are known."""
    if "plugins" in given:
        families.load_plugins(config_lib.run_level_keys()["plugins"].parsed(given["plugins"], "the command line"))


def with_given(config: ConfigDict, given: Mapping[str, str], note: Callable[[str], None] = print) -> ConfigDict:
    """The config with the command line's keys set, selectors of members first. Raises ConfigError for an invalid value
    and for a key of a member that is not chosen.

    note: called with a message about keys of the config that are dropped because their member was replaced.
    """
    where, given = "the command line", {config_lib.RENAMED.get(key, key): text for key, text in given.items()}
    load_plugins(given)
    chosen = config_lib.override(config, {key: text.strip() for key, text in given.items()
                                          if key in families.BY_SELECTOR}, where)
    before, left = config_lib.keys(config), config_lib.keys(chosen)
    defaults = config_lib.keys_of(config)
    if dropped := [key for key in before if key not in left and before[key] != defaults[key].default]:
        note(f"note: {', '.join(f'config.{key}' for key in dropped)} of the config "
             f"{'is' if len(dropped) == 1 else 'are'} dropped: the command line chooses another member.")
    specs = config_lib.keys_of(chosen)
    for key, text in given.items():
        if key not in specs:
            raise ConfigError(config_lib.not_chosen(chosen, key, where))
        if isinstance(text, Bare) and specs[key].kind is not bool:
            raise ConfigError(f"{where}: config.{key} needs a value: write --config.{key}=VALUE. {specs[key].takes}")
    return config_lib.set_keys(chosen.copy_and_resolve_references(), {
        key: specs[key].parsed(text, where) for key, text in given.items() if key not in families.BY_SELECTOR}, where)


@contextlib.contextmanager
def naming(source: str, config: ConfigDict, given: Collection[str]) -> Iterator[None]:
    """Adds to a ConfigError or DataError which of its keys were set by `source` (file or model) and not by a flag."""
    try:
        yield
    except (ConfigError, DataError) as error:
        values, defaults = config_lib.keys(config), {key: spec.default for key, spec in
                                                     config_lib.keys_of(config).items()}
        named = dict.fromkeys(re.findall(r"\bconfig\.(\w+(?:\.\w+)*)", str(error)))
        theirs = [f"config.{key}" for key in named if key in values and key not in given and
                  values[key] != defaults[key]]
        if theirs and source not in str(error):
            error.args = (f"{error} ({' and '.join(theirs)} {'is' if len(theirs) == 1 else 'are'} set in {source}.)",)
        raise


def load(source: str, given: Mapping[str, str] = types.MappingProxyType({})) -> ConfigDict:
    """The config of SOURCE, for `with_given`. given: the keys of the command line; the run's config may name the user
    modules that they name.

    Raises ConfigError, with the file and its line, for an error in the file; CheckpointError for a config.json that
    cannot be read.
    """
    if source.endswith(".json"):
        families.trust(text.strip() for key, text in given.items() if key in families.BY_SELECTOR)
        return config_lib.adopted(read_json(source), source)
    file, colon, argument = (source, "", "") if os.path.isfile(source) else source.partition(":")
    module = user_file.run(file, "config")
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"{file} has no function get_config() that returns a config. The files in configs/ show how.")
    arguments = [argument] if colon else []
    if not _takes(get_config, arguments):
        raise ConfigError(f"get_config() of {file} takes no argument: leave {colon}{argument} out." if colon else
                          f"get_config() of {file} needs an argument: write --config={file}:ARGUMENT.")
    return checked(user_file.call(file, "config", get_config, *arguments, explain=explained), file)


def explained(error: BaseException) -> str | None:
    """A hint about a key that the config lacks, instead of ConfigDict's message; None for other errors."""
    match = re.search(r"Key [\"'](\w+)[\"'] does not exist", str(error))
    if not isinstance(error, (AttributeError, KeyError)) or not match:
        return None
    if renamed := [new for old, new in config_lib.RENAMED.items() if old.rpartition(".")[2] == match[1]]:
        return f"the config key {match[1]!r} is called config.{renamed[0]} now."
    owners = [f"{family.selector} = {member.name}" for family in families.FAMILIES
              for member in family.members().values() if match[1] in member.keys]
    if not owners:
        return None
    return (f"the config has no key {match[1]!r}: it is one of {', '.join(owners)}. Members that are named in "
            "config.base(...) or config.choose(c, ...) bring their keys, such as config.base(network='dit').")


def checked(config: object, where: str) -> ConfigDict:
    """The config, locked, with exactly the keys of its members and valid values; `where` is its file. A member that was
    chosen by assignment brings its keys. Raises ConfigError for anything but a config."""
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"get_config() of {where} returned {shown(config)} instead of a config. Start from "
                          "`config.base()`, change values, and return it, as the files in configs/ do.")
    values = config_lib.keys(config)
    if lacking := sorted(key for key in config_lib.run_level_keys() if key not in values):
        raise ConfigError(f"{where} does not have the keys of a config: {', '.join(lacking[:10])}. Start from "
                          "`config.base()` and change values, as the files in configs/ do.")
    return config_lib.with_chosen(values, where)


def _takes(function: Callable, arguments: list) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # a function without a readable signature
        pass
    return True
