"""Builds what concerns a network's conditions: their dropout in training, and the conditions of samples."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffusion.build.rules import require_key
from diffusion.core import conditions as core
from diffusion.core.conditions import Condition
from diffusion.errors import ConfigError

# indices int32 [B] of samples -> their conditions
ConditionsOf = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def declared(config: ConfigDict, net: Any) -> dict[str, Condition]:
    """The conditions of the network, with the label for "no class" if training hides labels."""
    found = dict(getattr(net, "cond", {}))
    c = config.network
    require_key(("label" in found) == (c.num_classes > 0), "network.num_classes", c.num_classes,
                f"does not fit network.name = {c.name!r}, whose `cond` declares "
                f"{'the' if 'label' in found else 'no'} condition 'label'.")
    if c.label_dropout:
        found["label"] = replace(found["label"], null=c.num_classes)
    return found


def dropout_rates(config: ConfigDict, declared: Mapping[str, Condition]) -> dict[str, float]:
    """The probabilities with which training hides conditions: network.label_dropout, and "NAME: RATE" of
    train.condition_dropout. Raises ConfigError for a condition that cannot be hidden."""
    key = "train.condition_dropout"
    rates = {"label": config.network.label_dropout} if config.network.label_dropout else {}
    for text in config.train.condition_dropout:
        name, colon, number = (part.strip() for part in text.partition(":"))
        try:
            rate = float(number)
        except ValueError:
            rate = -1.0
        require_key(name and colon and 0 <= rate < 1, key, text, "is not \"NAME: RATE\", such as \"text: 0.1\", with a "
                    "probability below 1.")
        require_key(name != "label", key, text, "is the label's: network.label_dropout, which also gives the network "
                    "the label for no class.")
        require_key(name in declared, key, text, f"names a condition that network.name = {config.network.name!r} does "
                    f"not declare. It declares: {', '.join(declared) or 'none'}.")
        require_key(declared[name].null is not None, key, text, f"cannot be hidden: network.name = "
                    f"{config.network.name!r} declares no value for {name!r} not given (its `null`).")
        require_key(name not in rates, key, text, f"gives {name!r} a second rate.")
        rates[name] = rate
    return rates


def needs_records(declared: Mapping[str, Condition]) -> list[str]:
    """The conditions that only the data's records have: those without default, except the label."""
    return [name for name, one in declared.items() if one.default is None and name != "label"]


def check_classes(proper: Sequence[int], null: int | None, chosen: Sequence[int]) -> np.ndarray:
    """The chosen labels int32 [K]. Raises ConfigError for one that is neither `proper` nor that for no class."""
    allowed = {*proper, *(() if null is None else (null,))}
    if not len(chosen) or (wrong := sorted({*chosen} - allowed)):
        raise ConfigError(f"Classes must be labels of the model, 0 .. {max(proper, default=0)}"
                          + ("" if null is None else f", or {null} for no class")
                          + (f"; got {wrong[0]}." if len(chosen) else "; got none."))
    return np.array(chosen, np.int32)


def complete_for(config: ConfigDict, declared: Mapping[str, Condition]) -> Callable:
    """`core.complete` of this network: (cond, count) -> cond."""
    who = f"network.name = {config.network.name!r}"
    return lambda cond, count: core.complete(declared, cond, count, who)
