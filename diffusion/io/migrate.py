"""Run folders of before, read as those of today."""
from collections.abc import Callable, Collection, Mapping

MARK = "plugins"  # a key that came when members got keys of their own: a config without it is older
# Keys that followed another's value until they were their own.
FOLLOWED = {"likelihood.variance": "sample.variance", "likelihood.variance_share": "sample.variance_share"}


def config_values(values: Mapping[str, object], keys_of: Callable[[Mapping[str, object]], Mapping[str, object]],
                  known: Collection[str]) -> dict[str, object]:
    """A run's config by dotted keys, with the keys of today.

    Of a config that is older than members' own keys: those of members that are not chosen are left out, and None
    becomes the member's default. keys_of: dotted values -> the default of each key that the members they choose have;
    known: the keys of all members.
    """
    if MARK in values:
        return dict(values)
    found = {new: values[old] for new, old in FOLLOWED.items() if old in values} | dict(values)
    defaults = keys_of(found)
    return {MARK: ()} | {key: value for key, value in found.items() if key in defaults and (
        value is not None or defaults[key] is None) or key not in known}
