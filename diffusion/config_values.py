"""Values of config keys: types, limits, and their form on a command line."""
import ast
import difflib
import inspect
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass

from diffusion.errors import ConfigError, shown, unprintable

_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text", tuple: "a list"}
# The largest whole numbers, so that a typo ends in a message instead of hours of work or exhausted memory.
_LARGEST = {
    "seed": 2**32 - 1, "data.size": 2**14, "data.channels": 2**10, "data.workers": 2**9, "process.steps": 10**5,
    "process.hidden": 10**5, "network.depth": 10**3, "network.patch": 2**14, "network.channels": 2**16,
    "network.blocks": 10**2, "network.heads": 2**12, "network.head_channels": 2**16, "network.groups": 2**16,
    "network.embedding_channels": 2**20, "network.num_classes": 10**6, "train.batch_size": 10**6,
    "train.accumulate": 10**4, "train.steps_per_dispatch": 10**4, "sample.steps": 10**5,
    "sample.corrector_steps": 10**3, "sample.batch_size": 10**6, "sample.preview": 10**4, "likelihood.steps": 10**6,
    "likelihood.probe_count": 10**5, "likelihood.samples": 10**5, "likelihood.batch_size": 10**6,
    "evaluate.images": 10**7, "evaluate.keep": 10**6}
_LARGEST_OTHER = 2**31 - 1  # an int32, as devices count
_LONGEST = 10**5            # entries of a list
_MAY_BE_INFINITE = {"sample.reach"}  # in addition to the keys that are infinite by default


@dataclass(frozen=True)
class Key:
    """A key of the config: its dotted name, and the type and value of its default. Where that is None, None is
    allowed."""
    name: str
    kind: type
    default: object
    entry: type = float        # of a list: str or float, which stands for all numbers
    choices: tuple = ()        # the only values of a text
    pair: bool = False         # two whole numbers, such as (96, 128), are allowed in place of one

    @classmethod
    def from_argument(cls, name: str, annotation: object, default: object) -> "Key | None":
        """The key for an argument with this annotation and default; None for one that a config cannot hold."""
        parts = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else (
            annotation,)
        parts = [part for part in parts if part is not type(None)]
        pair = set(parts) == {int, tuple[int, int]}
        found = int if pair else parts[0] if len(parts) == 1 else inspect.Parameter.empty
        choices = typing.get_args(found) if typing.get_origin(found) is typing.Literal else ()
        kind = type(choices[0]) if choices else typing.get_origin(found) or found
        if kind not in (bool, int, float, str, tuple):
            kind = type(default)
        if kind not in (bool, int, float, str, tuple):
            return None
        first = [*(type(x) for x in default or ()), *typing.get_args(found), float][0] if kind is tuple else float
        default = float(default) if kind is float and isinstance(default, int) else default
        return cls(name, kind, default, str if first is str else float, choices, pair)

    @property
    def takes(self) -> str:
        """"It takes ...", for a message."""
        if self.choices:
            return f"It can be one of: {', '.join(sorted(map(str, self.choices)))}."
        what = _NAMES[self.kind] + ("" if self.kind is not tuple else " of words" if self.entry is str else
                                    " of numbers")
        what += " or two, such as (96, 128)" if self.pair else ""
        return f"It takes {what}" + (" or None." if self.default is None else f", such as {self.default!r}." if not
                                     self.pair else ".")

    def fitted(self, value: object, where: str) -> object:
        """The value as the config holds it: a list becomes a tuple, and a whole number a float where one is needed.

        Raises ConfigError, which names `where`, for a value of another type, NaN, infinity (unless it is the default),
        a number or a list above its limit, or text with control characters.
        """
        if value is None and self.default is None:
            return None
        value = tuple(value) if isinstance(value, list) else value
        if self.pair and isinstance(value, tuple) and len(value) == 2 and all(_is_a(int, x) for x in value):
            for entry in value:
                self._check_size(entry, where)
            return value[0] if value[0] == value[1] else value
        if not _is_a(self.kind, value):
            raise ConfigError(f"{where}: config.{self.name} = {shown(value)} is not {_NAMES[self.kind]}. {self.takes}")
        if self.kind is float:
            value = _float(value)
        if self.kind is not tuple:
            self._check_size(value, where)
            if self.choices and value not in self.choices:
                raise ConfigError(f"{where}: config.{self.name} = {shown(value)} is not known."
                                  f"{nearest(str(value), map(str, self.choices))} {self.takes}")
            return value
        if len(value) > _LONGEST:
            raise ConfigError(f"{where}: config.{self.name} has {len(value):,} entries; the most are {_LONGEST:,}.")
        for entry in value:
            if not _is_a(self.entry, entry):
                raise ConfigError(f"{where}: config.{self.name} has the entry {shown(entry)}. {self.takes}")
            self._check_size(entry, where)
        return value

    def parsed(self, text: str, where: str) -> object:
        """The value that `text` means on a command line, `fitted`.

        Lists are written (1, 2), [1, 2] or 1,2; words in them need no quotes. mesh.rules and averages, whose entries
        have commas of their own, are one entry unless in brackets. "None" is None where None is allowed.
        """
        word = text.strip()
        found: object = text
        if word == "None" and (self.kind is not str or self.default is None):
            found = None
        elif self.kind is bool:
            found = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}.get(word.lower(), text)
        elif self.kind is tuple or self.pair and ("," in word or word.startswith(("(", "["))):
            found = self._list(word)
        elif self.kind is not str:
            try:
                found = float(word) if self.kind is float else int(word, 0)
            except ValueError:
                pass
        return self.fitted(found, where)

    def _list(self, word: str) -> tuple:
        bracketed = word.startswith(("(", "["))
        found = _literal(word) if bracketed or self.entry is not str else word
        if isinstance(found, str):
            inside = word[1:-1] if bracketed and word.endswith((")", "]")) else word
            parts = [word] if self.name in ("mesh.rules", "averages") and not bracketed else inside.split(",")
            found = tuple(_literal(part.strip()) if self.entry is not str else part.strip() for part in parts
                          if part.strip())
        return tuple(found) if isinstance(found, (tuple, list)) else (found,)

    def _check_size(self, value: object, where: str) -> None:
        wrong, most = "", _LARGEST.get(self.name, _LARGEST_OTHER)
        if isinstance(value, str):
            wrong = "has control characters in it" if unprintable(value) else ""
        elif isinstance(value, float) and not math.isfinite(value):
            allowed = value == self.default or value == math.inf and self.name in _MAY_BE_INFINITE
            wrong = "" if allowed else "is not a finite number"
        elif isinstance(value, int) and abs(value) > most:
            wrong = f"is too large: the largest is {most:,}"
        elif self.name == "seed" and value < 0:
            wrong = f"must not be negative: it is a whole number from 0 to {most:,}"
        if wrong:
            raise ConfigError(f"{where}: config.{self.name} = {shown(value)} {wrong}.")


def _is_a(kind: type, value: object) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _literal(text: str) -> object:
    """The value of a Python literal, or the text itself if it is no literal."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def nearest(name: str, allowed: Iterable[str]) -> str:
    """"Did you mean ...?" with the closest of the allowed names, or nothing."""
    match = difflib.get_close_matches(name[:100], list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""
