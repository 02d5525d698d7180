"""Builds the averages of the parameters: the one named "ema" from config.ema, the others from config.averages."""
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from diffusion.build.rules import lookup, require_key
from diffusion.config_values import nearest
from diffusion.errors import ConfigError, FieldError, shown
from diffusion.families import BY_NAME, naming_keys
from diffusion.train import durations, posthoc
from diffusion.train.averages import Average, HalfLife, Power
from diffusion.train.state import ONLINE, RAW

_FAMILY = BY_NAME["average"]
DTYPES = {"float32", "bfloat16"}


def averages(config: ConfigDict, epoch_size: int | None) -> dict[str, Average]:
    """All averages of a run by name. Raises ConfigError for a wrong setting, or two averages of one name."""
    c = config
    lookup(DTYPES, "ema.dtype", c.ema.dtype)
    convert = {f"{unit}_of": partial(_convert, getattr(durations, f"to_{unit}"), batch_size=c.train.batch_size,
                                     epoch_size=epoch_size) for unit in ("images", "steps")}
    found = {"ema": Average(rule=_FAMILY.make(c.ema, **_of_key(convert, "ema.")), dtype=c.ema.dtype)}
    others = [RAW, ONLINE, *(["teacher"] if c.teacher.source else [])]  # sets and frozen sets
    for text in c.averages:
        name, average = _parse(text, convert)
        require_key(name not in (*found, *others), "averages", text, f"the name {name!r} is taken: "
                    f"{', '.join([*found, *others])} are. Give each average another.")
        found[name] = average
    return found


def check_lengths(config: ConfigDict, found: dict[str, Average], images: int) -> None:
    """Raises ConfigError for an average that would still be mostly the untrained network after `images` images."""
    for name, average in found.items():
        rule = average.rule
        key, value = ("ema.half_life", config.ema.get("half_life")) if name == "ema" else ("averages", name)
        require_key(not isinstance(rule, HalfLife) or rule.warmup_ratio or rule.half_life <= images, key, value, "is "
                    f"longer than the training ({images:,} images) and its warmup_ratio = 0: the average would still "
                    "be mostly the untrained network, and samples noise. Shorten it, or let it ramp up (Karras et al. "
                    "2022, code: ema.warmup_ratio=0.05).")


def snapshots(config: ConfigDict, found: dict[str, Average]) -> dict[str, float]:
    """The averages of which config.train.snapshot_every takes snapshots, power functions of the parameters, and their
    exponents; none if it is "never". Raises ConfigError if there are no such averages."""
    if config.train.snapshot_every == "never":
        return {}
    kept = {}
    for name, average in found.items():
        if isinstance(average.rule, Power) and average.of == ONLINE and average.rule.gamma not in kept.values():
            kept[name] = average.rule.gamma
    require_key(kept, "train.snapshot_every", config.train.snapshot_every, "takes snapshots of power function "
                "averages, and there are none: choose ema.name=power, or add a line to config.averages, such as "
                "\"long: power, sigma_rel=0.1\" (Karras et al. 2024: 0.05 and 0.10).")
    return kept


def posthoc_width(name: str) -> float | None:
    """The width of weights called "posthoc:0.08"; None for others. Raises ConfigError if it is not a number."""
    if not name.startswith(posthoc.PREFIX):
        return None
    try:
        return float(name.removeprefix(posthoc.PREFIX))
    except ValueError:
        raise ConfigError(f"config.sample.weights = {shown(name)} (--weights): write {posthoc.PREFIX} and sigma_rel, "
                          f"the width of the average, such as {posthoc.PREFIX}0.08.") from None


def posthoc_coefficients(name: str, images: Sequence[int], gammas: Sequence[float]) -> list[float]:
    """The coefficients of snapshots for the weights "posthoc:WIDTH" at the last one's images. Raises ConfigError for a
    width that they cannot reach."""
    with naming_keys("sample.weights, "):
        return posthoc.coefficients(images, gammas, images[-1], posthoc_width(name)).tolist()


def check_trained_weights(config: ConfigDict) -> None:
    """Raises ConfigError unless a training of this config can sample from config.sample.weights."""
    name = config.sample.weights
    require_key(not name.startswith(posthoc.PREFIX), "sample.weights", name, "is an average that is made of snapshots, "
                "after the training: give it to --mode=sample or evaluate.")
    check_weights(config, name, "this training")


def names(config: ConfigDict) -> list[str]:
    """The names that config.sample.weights may have: raw, ema and those of config.averages."""
    return [RAW, "ema", *(text.partition(":")[0].strip() for text in config.averages)]


def check_weights(config: ConfigDict, name: str, where: str) -> None:
    """Raises ConfigError unless a run of this config keeps the weights `name`, or the snapshots for them. where: the
    run, for the message."""
    if posthoc_width(name) is not None:
        require_key(config.train.snapshot_every != "never", "sample.weights", name, f"(--weights) is made of snapshots "
                    f"of averages, and {where} takes none (config.train.snapshot_every): train with it.")
        return
    if name not in (kept := names(config)):
        raise ConfigError(f"config.sample.weights = {shown(name)} (--weights) is not in {where}.{nearest(name, kept)} "
                          f"It keeps: {', '.join(kept)}.")


def dtype_of(config: ConfigDict, name: str) -> str:
    """The dtype in which a run of this config keeps the weights `name`."""
    if name == RAW:
        return "float32"
    return config.ema.dtype if name == "ema" else averages(config, epoch_size=1)[name].dtype


def _parse(text: str, convert: dict[str, Callable]) -> tuple[str, Average]:
    """An entry of config.averages, "NAME: MEMBER, KEY=VALUE, ..."."""
    where = f"config.averages: {shown(text)}"
    name, _, rest = (part.strip() for part in text.partition(":"))
    words = [word.strip() for word in rest.split(",")]
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or not words[0] or not all("=" in word for word in words[1:]):
        raise ConfigError(f"{where} is not an average: write \"NAME: MEMBER, KEY=VALUE, ...\", such as \"long: power, "
                          "sigma_rel=0.1\".")
    member = _FAMILY.member(words[0], where)
    given = dict((part.strip() for part in word.split("=", 1)) for word in words[1:])
    dtype = lookup(DTYPES, "averages", given.pop("dtype", "float32"))
    if unknown := set(given) - set(member.keys):
        key = sorted(unknown)[0]
        raise ConfigError(f"{where}: {member.name} has no key {key!r}.{nearest(key, [*member.keys, 'dtype'])} It has: "
                          f"{', '.join([*member.keys, 'dtype'])}.")
    values = {key: member.keys[key].parsed(value, where) for key, value in given.items()}
    arguments = {key: spec.default for key, spec in member.keys.items()} | values
    try:
        rule = member.make(**arguments, **{key: value for key, value in _of_key(convert, f"averages, {name}: ").items()
                                           if key in member.given})
    except FieldError as error:
        raise ConfigError(f"{where}: {error}") from error
    return name, Average(rule=rule, dtype=dtype)


def _of_key(convert: dict[str, Callable], prefix: str) -> dict[str, Callable]:
    return {name: partial(function, prefix) for name, function in convert.items()}


def _convert(to: Callable, prefix: str, text: str, field: str, **sizes: Any) -> float:
    return to(text, key=prefix + field, **sizes)
