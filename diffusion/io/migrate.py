"""Converts the configs of older run folders to today's keys, and reads states of older checkpoints."""
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

MARK = "plugins"  # added when members got their own keys: a config without this key is older
# Keys that once took the value of another key.
FOLLOWED = {"likelihood.variance": "sample.variance", "likelihood.variance_share": "sample.variance_share"}
# Former places of the state's arrays in a checkpoint, when a run had one parameter set and one average.
FORMER = {("params", "online"): "params", ("averages", "ema"): "ema", ("opt_state", "online"): "opt_state"}
_DIVIDED = {field for field, _ in FORMER}


def config_values(values: Mapping[str, object], keys_of: Callable[[Mapping[str, object]], Mapping[str, object]],
                  known: Collection[str]) -> dict[str, object]:
    """A run's config by dotted keys, converted to today's keys.

    In a config older than members' own keys, keys of members that are not chosen are dropped, and None becomes the
    member's default. keys_of: dotted values -> the defaults of all keys of the members that they choose; known: the
    keys of all members.
    """
    if MARK in values:
        return dict(values)
    found = {new: values[old] for new, old in FOLLOWED.items() if old in values} | dict(values)
    defaults = keys_of(found)
    return {MARK: ()} | {key: value for key, value in found.items() if key in defaults and (
        value is not None or defaults[key] is None) or key not in known}


def is_former(saved: Mapping[str, Any]) -> bool:
    """Whether a checkpoint with the fields `saved` holds the arrays of a `State` in their former places."""
    return "ema" in saved and "averages" not in saved


def former_state(wanted: Any) -> dict[str, Any]:
    """The shapes of a `State`, or of a part of one as a mapping, in the former places. A set or an average that had no
    place is called FIELD.NAME, so that it is reported as missing."""
    found = {}
    for field, value in _fields(wanted).items():
        if field in _DIVIDED:
            found |= {FORMER.get((field, name), f"{field}.{name}"): part for name, part in value.items()}
        else:
            found["density" if field == "statistics" else field] = value
    return found


def state_of_former(found: Mapping[str, Any], wanted: Any) -> Any:
    """The arrays of `former_state(wanted)` in the places of `wanted`."""
    values = {field: {name: found[FORMER[field, name]] for name in value} if field in _DIVIDED else
              found["density" if field == "statistics" else field] for field, value in _fields(wanted).items()}
    return dataclasses.replace(wanted, **values) if dataclasses.is_dataclass(wanted) else values


def _fields(tree: Any) -> Mapping[str, Any]:
    return vars(tree) if dataclasses.is_dataclass(tree) else tree
