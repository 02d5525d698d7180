"""The config: run-level keys, which are here, and the keys of the members that it chooses, which are with the members.

`base(process="edm", ...)` is the config of these members, `choose` chooses again in a config, `override` sets keys. A
config holds plain values only. It is locked: a key that it has not is an error, in a file and on the command line.
Durations are strings with a unit, "2000 steps", "10M images" or "5 epochs". `--keys=FAMILY` and `--keys=FAMILY.MEMBER`
of the main program print the members of a family and the keys of a member.
"""
import functools
from collections.abc import Collection, Mapping
from types import ModuleType

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from diffusion import families
from diffusion.config_values import Key, nearest
from diffusion.errors import ConfigError, shown
from diffusion.io import migrate

# Keys of before, and their names of today: both are understood, on the command line, in files and in run folders.
RENAMED = {"sample.given": "sample.custom_times"}


def run_level() -> ConfigDict:
    """The keys that every config has, with their defaults: the choices of Ho et al. (2020) where there is one. Those
    that name a member of a family bring its keys."""
    c = ConfigDict()
    c.seed = 0                         # fixes every random draw, together with stream, step and example
    c.plugins = ()                     # modules of one's own that declare members, such as "my_package.parts"

    c.data = d = ConfigDict()
    d.name = "tfds"                    # where the data are from
    d.split = "train"                  # which part to train on
    d.size = 32                        # height and width of an image, pixels
    d.channels = 3                     # of an image
    d.flip = False                     # mirror each image with probability 1/2
    d.on_device = False                # hold the whole set on the device; same order, same loss curve
    d.workers = 0                      # processes that read and decode; 0: threads of this one

    c.process = p = ConfigDict()
    p.name = "linear"                  # the noising: a table of beta_1 .. beta_T, or a process in continuous time

    c.prediction = "eps"               # what the network predicts
    c.sigma_data = 0.5                 # the standard deviation of the data, for the prediction and the weighting edm
    c.learned_range = False            # and, by a second head, the variance (Nichol & Dhariwal 2021): hybrid or vlb

    c.loss = o = ConfigDict()
    o.name = "denoising"               # what is minimised
    o.density = "uniform"              # of the times
    o.stratified = False               # the times of a batch evenly spread (Kingma et al. 2021, Appendix I.1)

    c.network = n = ConfigDict()
    n.name = "unet"
    n.num_classes = 0                  # 0: unconditional; else the number of labels of the data
    n.label_dropout = 0.0              # probability that training hides a label, for guidance (Ho & Salimans 2022): the
                                       # network then knows one label more, num_classes

    c.optimizer = o = ConfigDict()
    o.name = "adam"
    o.learning_rate = 2e-4             # peak
    o.decay = "constant"               # after warm-up: constant; to 0 at train.duration: cosine, linear
    o.warmup = "5000 steps"            # linear from 0

    c.ema = ConfigDict()
    c.ema.half_life = "887184 images"  # of the average of the parameters; decay 0.9999 a step at batch 128
    c.ema.warmup_ratio = 0.05          # half-life <= this * images seen (EDM's ramp-up); 0: full length at once
    c.ema.dtype = "float32"            # in which it is kept: float32, bfloat16 (rounded up or down at random)

    c.train = t = ConfigDict()
    t.batch_size = 128                 # images a step, over all devices
    t.duration = "800k steps"          # of the whole run
    t.accumulate = 1                   # micro-batches a step: less memory, same result
    t.steps_per_dispatch = 1           # steps in one call of the device; must divide the intervals below
    t.log_every = "100 steps"          # a row of metrics.jsonl, means since the last one
    t.sample_every = "10k steps"       # a grid in samples/
    t.checkpoint_every = "10k steps"
    t.keep_checkpoints = 3             # the newest are kept ...
    t.keep_every = "never"             # ... and one each so often, such as "10M images" ...
    t.keep_best = 0                    # ... and so many of the lowest train.best_metric, a number of metrics.jsonl
    t.best_metric = "loss"
    t.nonfinite = "stop"               # at a loss or gradient that is not: stop, or skip the step, and count
    t.evaluate_every = "never"         # by config.evaluate, into evaluations/
    t.stall_seconds = 600.0            # a step or batch that takes longer is reported with all stacks; 0: never

    c.mesh = ConfigDict()
    c.mesh.data = -1                   # devices that share the batch; -1: all that remain
    c.mesh.fsdp = 1                    # devices that share the parameters too
    c.mesh.tensor = 1                  # devices that share the work of an image, by the network's own rules
    c.mesh.rules = ()                  # before those: "REGEX: AXES", AXES of the last axes of the parameters whose path
                                       # has REGEX in it, such as "attention.*/[qkv]/kernel: fsdp, tensor"; -: not cut

    c.sample = s = ConfigDict()
    s.solver = "ancestral"             # how a step is made
    s.corrector = "none"               # before each step
    s.steps = 1000                     # steps for one image, at most process.steps
    s.spacing = "linspace"             # of the times of those steps
    s.schedule = "model"               # along which process: the model's own, or another of its noise levels
    s.between_times = False            # let a model of a table be asked at times between those it was trained at
    s.clip = True                      # clip x0 to [-clip_range, clip_range] at each step
    s.clip_range = 1.0
    s.dynamic_threshold = 0.0          # instead, if not 0: clip and scale by this quantile of |x0| (Saharia et al.
                                       # 2022)
    s.threshold_max = 1.0              # and by this at most
    s.rederive_eps = True              # make eps consistent with the clipped x0 (diffusers' default: not)
    s.guidance = ConfigDict()
    s.guidance.name = "none"
    s.batch_size = 64                  # images a chain, over all devices
    s.preview = 64                     # images of the grids that training and evaluations draw

    c.likelihood = k = ConfigDict()
    k.estimator = "vlb"
    k.batch_size = 64                  # images at a time, over all devices

    c.evaluate = v = ConfigDict()
    v.extractor = "efficientnet_lite0"  # whose features are compared: inception (FID), dinov2, efficientnet_lite0
    v.weights = ""                     # the file of its weights or its URL; empty: that of its package, if there is one
    v.other_weights = False            # allow weights that are not the published ones
    v.resize = ""                      # tensorflow, clean, bilinear, bicubic; empty: the extractor's own
    v.metrics = ("fd", "is", "kid", "prdc", "duplicates")  # also sfd (inception), memorisation
    v.images = 50_000                  # samples that are drawn; papers take 50,000
    v.reference_images = 0             # of config.data they are compared with, from the first on; 0: all
    v.keep = 10_000                    # of them, and of the data, for kid, prdc, duplicates, memorisation
    v.held_out = ""                    # memorisation: the split of the data that was not trained on
    return c


def base(*, plugins: tuple[str, ...] = (), **members: str) -> ConfigDict:
    """The default config of these members, locked: `base(network="dit", process="edm")`, by family name.

    plugins: modules of one's own whose members may be named. Raises ConfigError for a family or member that is not
    known, or a family that the other members leave no place for.
    """
    return _config({"plugins": tuple(plugins)}, members, "config.base")


def choose(config: ConfigDict, *, plugins: tuple[str, ...] = (), **members: str) -> ConfigDict:
    """A copy with other members, by family name: `choose(c, process="edm")`. The keys of the members before are
    dropped; one that the new member has too keeps its value, if it was set. Raises ConfigError as `base`."""
    return _config(keys(config) | {"plugins": (*config.plugins, *plugins)}, members, "config.choose")


def override(config: ConfigDict, values: Mapping[str, object], where: str = "the overrides") -> ConfigDict:
    """A copy with the keys set that `values` names, dotted: first those that choose a member, as in `choose`, then the
    others. Raises ConfigError for an unknown key, a key of a member that is not chosen, or a wrong value."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"Overrides are a dict from keys to values, such as {{'sample.steps': 50}}; got "
                          f"{shown(values)}.")
    values = {RENAMED.get(key, key): value for key, value in values.items()}
    if isinstance(given := values.get("plugins"), (list, tuple)):
        families.load_plugins(map(str, given))
    members = {family.name: values[family.selector] for family in families.FAMILIES if family.selector in values}
    found = _config(keys(config), members, where)
    return set_keys(found, {key: value for key, value in values.items() if key not in families.BY_SELECTOR}, where)


def set_keys(config: ConfigDict, values: Mapping[str, object], where: str) -> ConfigDict:
    """The config itself, with these keys of its members set. Raises ConfigError as `override`."""
    specs = keys_of(config)
    for key, value in values.items():
        if key not in specs:
            raise ConfigError(not_chosen(config, key, where))
        *path, name = key.split(".")
        section = config
        for part in path:
            section = section[part]
        section[name] = specs[key].fitted(value, where)
    return config


def _config(values: Mapping[str, object], members: Mapping[str, object], where: str) -> ConfigDict:
    """The config of the members that `values`, by dotted keys, or before them `members`, by family, name; with the
    values of run-level keys, and of those of members that are the same or were set."""
    families.load_plugins(values.get("plugins", ()))
    c, left = run_level(), dict(members)
    for key in keys(c):
        if key in values and key not in families.BY_SELECTOR:
            _set(c, key, values[key], None)
    for family in families.FAMILIES:
        if (default := keys(c).get(family.selector)) is None:
            continue
        before = values.get(family.selector)
        name = left.pop(family.name, default if before is None else before)
        old = {} if before is None or name == before else family.keys_of(before)
        _set(c, family.selector, family.member(name, where).name, None)
        for key, spec in family.keys_of(name).items():
            kept = key in values and (name == before or key in old and values[key] != old[key].default)
            _set(c, key, values[key] if kept else spec.default, spec)
    for name in left:
        if name not in families.BY_NAME:
            raise ConfigError(f"{where}: there is no family {shown(name)}.{nearest(str(name), families.BY_NAME)} "
                              f"Families: {', '.join(families.BY_NAME)}.")
        raise ConfigError(not_chosen(c, families.BY_NAME[name].selector, where))
    return c.lock()


def _set(config: ConfigDict, key: str, value: object, spec: Key | None) -> None:
    *path, name = key.split(".")
    section = config
    for part in path:
        section = section[part]
    if name not in section and spec is not None and spec.default is None:
        section[name] = placeholder(spec.kind)
    if value is not None:
        section[name] = value


def with_chosen(values: Mapping[str, object], where: str) -> ConfigDict:
    """The config of dotted values, in which a selector may have been assigned: its member's keys are added, and those
    of the member before are left out. Raises ConfigError if one of them was set, which would be lost."""
    chosen = {selector: values[selector] for selector in families.BY_SELECTOR if selector in values}
    config = _config(chosen | {"plugins": values["plugins"]}, {}, where)
    specs = keys_of(config)
    for key, value in values.items():
        if key not in specs and not any(value == spec.default for spec in _specs_of(key)):
            raise ConfigError(not_chosen(config, key, where))
    return set_keys(config, {key: value for key, value in values.items() if key in specs
                             and key not in families.BY_SELECTOR}, where)


def _specs_of(key: str) -> list[Key]:
    return [spec for family in families.FAMILIES for name in family.members()
            for dotted, spec in family.keys_of(name).items() if dotted == key]


def keys(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """All leaves by their dotted names."""
    found = {}
    for name, value in config.items():
        found.update(keys(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {f"{prefix}{name}": value})
    return found


def keys_of(config: ConfigDict) -> dict[str, Key]:
    """The type, limits and default of each key that the config's members and its run level have."""
    found, values = dict(run_level_keys()), keys(config)
    for family in families.FAMILIES:
        if family.selector in values:
            found |= family.keys_of(values[family.selector])
    return found


@functools.cache
def run_level_keys() -> dict[str, Key]:
    """The keys that every config has, by their dotted names."""
    def gather(section: ConfigDict, prefix: str) -> dict[str, Key]:
        found = {}
        for name, value in section.items():
            if isinstance(value, ConfigDict):
                found |= gather(value, f"{prefix}{name}.")
            else:
                entries = tuple[str, ...] if isinstance(value, tuple) else type(value)
                found[prefix + name] = Key.from_argument(prefix + name, entries, value)
        return found
    return gather(run_level(), "")


def known() -> dict[str, Key]:
    """All keys by their dotted names, of whatever member. Of a key of several, that of the first."""
    return _known(families.plugin_modules())


@functools.cache
def _known(plugins: tuple[ModuleType, ...]) -> dict[str, Key]:
    found = dict(run_level_keys())
    for family in families.FAMILIES:
        for name in family.members():
            for key, spec in family.keys_of(name).items():
                found.setdefault(key, spec)
    return found


def check_key(key: str, where: str = "") -> None:
    """Raises ConfigError unless this is the dotted name of a key of some config. where: what a message begins with."""
    if key in known():
        return
    where = f"{where}: " * bool(where)
    if within := [name for name in known() if name.startswith(f"{key}.")]:
        raise ConfigError(f"{where}config.{key} is a group. Set one of its keys: {', '.join(within)}.")
    raise ConfigError(f"{where}Unknown config key {shown(key)}.{nearest(str(key), known())} --keys prints all keys "
                      "and their meaning.")


def not_chosen(config: ConfigDict, key: str, where: str) -> str:
    """A sentence on a key that the config has not: which members have it, and what is chosen instead. Raises
    ConfigError for a key that no member has."""
    check_key(key, where)
    values, owners = keys(config), {}
    for family in families.FAMILIES:
        for name in family.members():
            if key in family.keys_of(name):
                owners.setdefault(family.selector, []).append(name)
    selector, names = next(iter(owners.items()))
    now = f"is {values[selector]!r}" if selector in values else "is not a key of this config either"
    that = "one of those" if len(names) > 1 else "that"
    return (f"{where}: config.{key} is a key of {selector} = {', '.join(names)}, and config.{selector} {now}. Choose "
            f"{that}, or leave the key out.")


def from_dict(values: object, where: str) -> ConfigDict:
    """The config that nested dicts describe, as JSON holds them. Keys that they lack keep their defaults.

    where: what errors name, such as the file. Raises ConfigError for a key that is not known or is that of a member
    that is not chosen, and as `Key.fitted` for a value.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where} holds {shown(values)}, where the keys of a config are needed.")
    flat = {RENAMED.get(key, key): value for key, value in flattened(values).items()}
    if "plugins" in flat:
        flat["plugins"] = run_level_keys()["plugins"].fitted(flat["plugins"], where)
    members = {family.name: flat[family.selector] for family in families.FAMILIES if family.selector in flat}
    config = _config({"plugins": flat.get("plugins", ())}, members, where)
    return set_keys(config, {key: value for key, value in flat.items() if key not in families.BY_SELECTOR}, where)


def adopted(values: object, where: str, trusted: Collection[str] = ()) -> ConfigDict:
    """The config that a run wrote down, today or before members had keys of their own, or that sections of an outside
    format say: there keys of members that are not chosen are left out. Raises ConfigError as `from_dict`, and for a
    plugin that the user has not named too, which is neither loaded nor `trusted`: its code would be run."""
    if not isinstance(values, Mapping):
        return from_dict(values, where)
    flat = {RENAMED.get(key, key): value for key, value in flattened(values).items()}
    chosen = [str(flat.get(selector, "")) for selector in families.BY_SELECTOR]
    named = {str(name) for name in flat.get("plugins", None) or ()} | {
        name.partition(":")[0] for name in chosen if ":" in name}
    if foreign := sorted(named - set(families.loaded_plugins()) - set(trusted)):
        raise ConfigError(f"{where} names {', '.join(foreign)}, whose code would be run. If you trust it, name it too: "
                          f"--config.plugins={','.join(foreign)}.")
    return from_dict(migrate.config_values(flat, _defaults_of, known()), where)


def adopt_dict(values: object, where: str) -> dict:
    """`adopted`, as nested dicts."""
    return adopted(values, where).to_dict()


def _defaults_of(values: Mapping[str, object]) -> dict[str, object]:
    """The default of each key that the members have which `values` name, as far as they leave a place for them."""
    chosen = {selector: values[selector] for selector in families.BY_SELECTOR if selector in values}
    return {key: spec.default for key, spec in keys_of(_config(chosen, {}, "the config")).items()}


def flattened(values: Mapping, prefix: str = "") -> dict[str, object]:
    """The leaves of nested dicts by dotted keys."""
    found = {}
    for name, value in values.items():
        found.update(flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return found
