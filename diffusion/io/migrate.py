"""Converts the configs of older run folders to today's keys."""
from collections.abc import Callable, Collection, Mapping

MARK = "plugins"  # added when members got their own keys: a config without this key is older
# Keys that once took the value of another key.
FOLLOWED = {"likelihood.variance": "sample.variance", "likelihood.variance_share": "sample.variance_share"}


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
