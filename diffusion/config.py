"""The config: run-level keys, defined here, and the keys of the chosen members, defined with the members.

`base(process="edm", ...)` returns the config of these members, `choose` replaces members, `override` sets keys. A
config holds plain values only. It is locked: an unknown key is an error, in a file and on the command line. Durations
are strings with a unit, "2000 steps", "10M images" or "5 epochs". `--keys=FAMILY` and `--keys=FAMILY.MEMBER` of the
main program print the members of a family and the keys of a member.
"""
import contextlib
import functools
from collections.abc import Mapping
from types import ModuleType

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from diffusion import families
from diffusion.config_values import Key, nearest
from diffusion.errors import ConfigError, shown
from diffusion.io import migrate

# Run-level keys whose type their default does not show.
_TYPES = {"sample.clip": bool | None}

# Former names of keys and their current names: both are accepted on the command line, in files and in run folders.
RENAMED = {"sample.given": "sample.custom_times"}


def run_level() -> ConfigDict:
    """The keys that every config has. Their defaults are those of Ho et al. (2020) where the paper has one. A key that
    names a member of a family brings that member's keys."""
    c = ConfigDict()
    c.seed = 0                         # fixes every random draw, together with stream, step and example
    c.plugins = ()                     # user modules that declare members, such as "my_package.parts"

    c.data = d = ConfigDict()
    d.name = "tfds"                    # the data source
    d.split = "train"                  # the split to train on
    d.kind = "image"                   # the kind of data
    d.on_device = False                # hold the whole set on the device; same order, same loss curve
    d.workers = 0                      # processes that read and decode; 0: threads of this process

    c.process = p = ConfigDict()
    p.name = "linear"                  # forward process: a table of beta_1 .. beta_T, or in continuous time

    c.prediction = "eps"               # what the network predicts
    c.sigma_data = 0.5                 # the standard deviation of the data, for the prediction and the weighting edm
    c.learned_range = False            # a second head predicts the variance (Nichol & Dhariwal 2021), for hybrid or vlb

    c.loss = o = ConfigDict()
    o.name = "denoising"               # the training loss
    o.density = "uniform"              # density of the training times
    o.coupling = "independent"         # which noise meets which example of a batch
    o.stratified = False               # spread the times of a batch evenly (Kingma et al. 2021, Appendix I.1)

    c.teacher = ConfigDict()
    c.teacher.source = ""              # a model whose predictions the loss follows: PATH[@STEP][#WEIGHTS], a run folder
                                       # or another model; it is stored in the run folder

    c.network = n = ConfigDict()
    n.name = "unet"
    n.num_classes = 0                  # 0: unconditional; else the number of labels of the data; -1: counted
    n.label_dropout = 0.0              # probability that training drops a label, for guidance (Ho & Salimans 2022): the
                                       # network then has one more label, num_classes

    c.optimizer = o = ConfigDict()
    o.name = "adam"
    o.learning_rate = 2e-4             # peak value
    o.decay = "constant"               # after warm-up: constant; to 0 at train.duration: cosine, linear; by the root of
                                       # the steps since optimizer.decay_from: inverse_sqrt
    o.decay_from = "0 steps"           # inverse_sqrt: where the decay begins (Karras et al. 2024: 35k or 70k steps)
    o.warmup = "5000 steps"            # linear warm-up from 0

    c.ema = ConfigDict()
    c.ema.name = "half_life"           # the average of the parameters that is called "ema"
    c.ema.dtype = "float32"            # of the average: float32, bfloat16 (stochastically rounded)
    c.averages = ()                    # further averages: "NAME: MEMBER, KEY=VALUE, ...", members and keys as for ema,
                                       # such as "long: power, sigma_rel=0.1" or "target: copy, every=100 steps"

    c.train = t = ConfigDict()
    t.batch_size = 128                 # images a step, over all devices
    t.duration = "800k steps"          # length of the whole run
    t.condition_dropout = ()           # "NAME: RATE", the probabilities with which training hides other conditions than
                                       # the label (network.label_dropout)
    t.accumulate = 1                   # micro-batches a step: less memory, same result
    t.steps_per_dispatch = 1           # steps per device call; must divide the intervals below
    t.log_every = "100 steps"          # interval of rows in metrics.jsonl, with means since the previous row
    t.sample_every = "10k steps"       # interval of grids in samples/
    t.checkpoint_every = "10k steps"
    t.keep_checkpoints = 3             # number of newest checkpoints kept
    t.keep_every = "never"             # also keep one checkpoint per interval, such as "10M images"
    t.keep_best = 0                    # also keep this many checkpoints with the lowest train.best_metric
    t.best_metric = "loss"             # a number in metrics.jsonl
    t.nonfinite = "stop"               # at a non-finite loss or gradient: stop, or skip the step and count it
    t.spike = 0.0                      # skip an update whose gradient norm is finite, but more than so many standard
                                       # deviations above its running mean over 100 updates; 0: none
    t.evaluate_every = "never"         # interval of evaluations by config.evaluate, in evaluations/
    t.snapshot_every = "never"         # interval of snapshots of the power averages, from which --weights=posthoc:0.08
                                       # makes others after the training
    t.stall_seconds = 600.0            # a longer step or batch is reported with all threads' stacks; 0: never

    c.mesh = ConfigDict()
    c.mesh.data = -1                   # devices that share the batch; -1: all that remain
    c.mesh.fsdp = 1                    # devices that share the parameters too
    c.mesh.tensor = 1                  # devices that split the work on each image, by the network's own rules
    c.mesh.rules = ()                  # tried first: "REGEX: AXES", mesh axes for the last axes of parameters whose
                                       # path has REGEX, such as "attention.*/[qkv]/kernel: fsdp, tensor"; -: not cut

    c.sample = s = ConfigDict()
    s.solver = "ancestral"             # the method of a step
    s.corrector = "none"               # a corrector before each step
    s.steps = 1000                     # steps per image, at most process.steps
    s.spacing = "linspace"             # spacing of the steps' times
    s.schedule = "model"               # the process to sample along: the model's, or another with its noise levels
    s.between_times = False            # allow a discrete-chain model to be evaluated between its training times
    s.clip = placeholder(bool)         # clip x0 to [-clip_range, clip_range] at each step; None: where data have bounds
    s.clip_range = 1.0
    s.dynamic_threshold = 0.0          # if not 0, instead clip to this quantile of |x0| and divide by it (Saharia et
                                       # al. 2022)
    s.threshold_max = 1.0              # upper limit of that quantile's value
    s.least_noise = 0.0                # of the process flow: the velocity (x - x0) / (1 - alpha) is divided by at least
                                       # this (Li & He 2025, code: 0.05); 0: by 1 - alpha
    s.rederive_eps = True              # recompute eps from the clipped x0 (diffusers' default: False)
    s.guidance = ConfigDict()
    s.guidance.name = "none"
    s.weights = "ema"                  # whose parameters: the name of an average, or raw: not averaged
    s.batch_size = 64                  # images sampled at a time, over all devices
    s.preview = 64                     # images in the grids drawn by training and evaluations

    c.likelihood = k = ConfigDict()
    k.estimator = "vlb"
    k.batch_size = 64                  # images at a time, over all devices

    c.evaluate = v = ConfigDict()
    v.extractor = "efficientnet_lite0"  # network of the features: inception (FID), dinov2, efficientnet_lite0, or a
                                       # classifier of the data's own classes (diffusion.metrics.train_classifier)
    v.weights = ""                     # file or URL of its weights; empty: the file in its package, if it has one
    v.other_weights = False            # allow weights that are not the published ones
    v.resize = ""                      # tensorflow, clean, bilinear, bicubic; empty: the extractor's own
    v.metrics = ("fd", "is", "kid", "prdc", "duplicates")  # also sfd (inception), memorisation, nearest; of classifier
                                       # accuracy, identity, deviation_within_class; and the data's own
    v.images = 50_000                  # samples drawn; papers use 50,000
    v.reference_images = 0             # images to compare with, evenly over config.data; 0: all
    v.keep = 10_000                    # samples, and images of the data, for all metrics but fd, sfd and is
    v.held_out = ""                    # a split of the data that was not trained on, whose own figures stand beside
    return c


def base(*, plugins: tuple[str, ...] = (), **members: str) -> ConfigDict:
    """The default config of these members, locked: `base(network="dit", process="edm")`, by family name.

    plugins: user modules whose members may be named. Raises ConfigError for an unknown family or member, or a family
    whose selector the other members do not bring.
    """
    return _config({"plugins": tuple(plugins)}, members, "config.base")


def choose(config: ConfigDict, *, plugins: tuple[str, ...] = (), **members: str) -> ConfigDict:
    """A copy with other members, by family name: `choose(c, process="edm")`. Keys of replaced members are dropped; a
    key that the new member has too keeps its value, if it was set. Raises ConfigError as `base`."""
    return _config(keys(config) | {"plugins": (*config.plugins, *plugins)}, members, "config.choose")


def override(config: ConfigDict, values: Mapping[str, object], where: str = "the overrides") -> ConfigDict:
    """A copy with the values of dotted keys set: first the selectors of members, as in `choose`, then the other keys.
    Raises ConfigError for an unknown key, a key of a member that is not chosen, or a wrong value."""
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
    """Sets keys of the config's members in place and returns the config. Raises ConfigError as `override`."""
    specs = keys_of(config)
    for key, value in values.items():
        if key not in specs:
            raise ConfigError(not_chosen(config, key, where))
        *path, name = key.split(".")
        section = config
        for part in path:
            section = section[part]
        with section.ignore_type() if specs[key].pair else contextlib.nullcontext():
            section[name] = specs[key].fitted(value, where)
    return config


def _config(values: Mapping[str, object], members: Mapping[str, object], where: str) -> ConfigDict:
    """The config of the members named by `members` (by family) or else by `values` (by dotted key). Values of run-level
    keys are kept, and values of member keys if the member is unchanged or the value was set."""
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
    if name not in section and spec is not None and (spec.default is None or spec.pair):
        section[name] = FieldReference(None, field_type=object) if spec.pair else placeholder(spec.kind)
    if value is not None:
        section[name] = value


def with_chosen(values: Mapping[str, object], where: str) -> ConfigDict:
    """The config of dotted values, in which a selector may have been assigned: its member's keys are added, and the
    previous member's are dropped. Raises ConfigError if a dropped key had been set."""
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
    """The type, limits and default of each key of the config, of its run level and its members."""
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
                entries = tuple[str, ...] if isinstance(value, tuple) else _TYPES.get(prefix + name, type(value))
                found[prefix + name] = Key.from_argument(prefix + name, entries, value)
        return found
    return gather(run_level(), "")


def known() -> dict[str, Key]:
    """All keys of all members by their dotted names. A key of several members is the first member's."""
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
    """Raises ConfigError unless this is the dotted name of a key of some config. where: the message's beginning."""
    if key in known():
        return
    where = f"{where}: " * bool(where)
    if within := [name for name in known() if name.startswith(f"{key}.")]:
        raise ConfigError(f"{where}config.{key} is a group. Set one of its keys: {', '.join(within)}.")
    raise ConfigError(f"{where}Unknown config key {shown(key)}.{nearest(str(key), known())} --keys prints all keys "
                      "and their meaning.")


def not_chosen(config: ConfigDict, key: str, where: str) -> str:
    """The message for a key that the config lacks: which members have it, and which member is chosen. Raises
    ConfigError for a key that no member has."""
    check_key(key, where)
    values, owners = keys(config), {}
    for family in families.FAMILIES:
        for name in family.members():
            if key in family.keys_of(name):
                owners.setdefault(family.selector, []).append(name)
    whose = " and of ".join(f"{selector} = {', '.join(names)}" for selector, names in owners.items())
    now = ", and ".join(f"config.{selector} " + (f"is {values[selector]!r}" if selector in values else
                                                 "is not a key of this config either") for selector in owners)
    that = "that" if sum(map(len, owners.values())) == 1 else "one of those"
    return f"{where}: config.{key} is a key of {whose}, and {now}. Choose {that}, or leave the key out."


def from_dict(values: object, where: str) -> ConfigDict:
    """The config described by nested dicts, as in JSON. Missing keys keep their defaults.

    where: the source named in errors, such as the file. Raises ConfigError for an unknown key or a key of a member that
    is not chosen, and as `Key.fitted` for a value.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where} holds {shown(values)} instead of the keys of a config.")
    flat = {RENAMED.get(key, key): value for key, value in flattened(values).items()}
    if "plugins" in flat:
        flat["plugins"] = run_level_keys()["plugins"].fitted(flat["plugins"], where)
    members = {family.name: flat[family.selector] for family in families.FAMILIES if family.selector in flat}
    config = _config({"plugins": flat.get("plugins", ())}, members, where)
    return set_keys(config, {key: value for key, value in flat.items() if key not in families.BY_SELECTOR}, where)


def adopted(values: object, where: str) -> ConfigDict:
    """The config saved by a run or given by sections of an outside format. In such sections, and in runs from before
    members had their own keys, keys of members that are not chosen are dropped. Raises ConfigError as `from_dict`, and
    for a module that the user has not named, too, since its code would run."""
    if not isinstance(values, Mapping):
        return from_dict(values, where)
    flat = {RENAMED.get(key, key): value for key, value in flattened(values).items()}
    plugins = run_level_keys()["plugins"].fitted(flat.get("plugins", ()), where)
    chosen = {key: str(flat[key]) for key in families.BY_SELECTOR if ":" in str(flat.get(key, ""))}
    flag_of = dict.fromkeys(plugins, f"--config.plugins={','.join(plugins)}") | {
        name.partition(":")[0]: f"--config.{key}={name}" for key, name in chosen.items()}
    if foreign := families.foreign(flag_of):
        raise ConfigError(f"{where} names {', '.join(foreign)}, whose code would be run. If you trust it, name it too: "
                          f"{' '.join(dict.fromkeys(flag_of[module] for module in foreign))}.")
    defaults_of = functools.partial(_defaults_of, where=where)
    return from_dict(migrate.config_values(flat, defaults_of, known()), where)


def adopt_dict(values: object, where: str) -> dict:
    """`adopted`, as nested dicts."""
    return adopted(values, where).to_dict()


def _defaults_of(values: Mapping[str, object], where: str) -> dict[str, object]:
    """The default of each key of the members that `values`, from `where`, choose."""
    chosen = {selector: values[selector] for selector in families.BY_SELECTOR if selector in values}
    return {key: spec.default for key, spec in keys_of(_config(chosen, {}, where)).items()}


def flattened(values: Mapping, prefix: str = "") -> dict[str, object]:
    """The leaves of nested dicts by dotted keys."""
    found = {}
    for name, value in values.items():
        found.update(flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return found
