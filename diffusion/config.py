"""Every key of a config, its meaning and its default. Files in configs/ start from `base()` and change values.

A config holds plain values only. It is locked: a key that is not here is an error, in a file and on the command line.
Durations are strings with a unit, "2000 steps", "10M images" or "5 epochs".
"""
import difflib
import re

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from diffusion.errors import ConfigError


def base() -> ConfigDict:
    """The default config, locked: the choices of Ho et al. (2020) where there is one, and no data set."""
    c = ConfigDict()
    c.seed = 0                         # fixes every random draw, together with stream, step and example

    c.data = d = ConfigDict()
    d.name = "tfds"                    # digits (embedded 8x8), idx (files in MNIST's format), tfds (prepared)
    d.dataset = "cifar10"              # tfds: name of the prepared data set
    d.dir = "data"                     # idx: the folder of the files; tfds: the data_dir of the prepare program
    d.split = "train"                  # which part to train on
    d.size = 32                        # height and width of an image, pixels
    d.channels = 3                     # of an image
    d.flip = False                     # mirror each image with probability 1/2
    d.on_device = False                # hold the whole set on the device; same order, same loss curve
    d.workers = 0                      # processes that read and decode; 0: threads of this one

    c.process = p = ConfigDict()
    p.name = "linear"                  # linear (Ho et al. 2020), cosine (Nichol & Dhariwal 2021), scaled_linear,
                                       # sigmoid
    p.steps = 1000                     # T
    p.beta_start = 1e-4                # linear, scaled_linear, sigmoid: beta_1
    p.beta_end = 0.02                  # linear, scaled_linear, sigmoid: beta_T
    p.offset = 0.008                   # cosine: s
    p.max_beta = 0.999                 # cosine: betas are clipped here
    p.betas = ()                       # name "table": beta_1 .. beta_T themselves
    p.rescale_times = False            # the network is told (t - 1) 1000 / T, as in improved-diffusion, not t - 1
    p.zero_terminal_snr = False        # rescale so that nothing of the data is left at T (Lin et al. 2024)

    c.prediction = "eps"               # what the network predicts: eps, x0, v
    c.learned_range = False            # and, by a second head, the variance (Nichol & Dhariwal 2021); to sample only

    c.loss = ConfigDict()
    c.loss.weighting = "simple"        # of the error in eps: simple, truncated_snr, snr_plus_one (= 1 on v), min_snr
    c.loss.gamma = 5.0                 # min_snr: the SNR above which the weight on x0 no longer grows

    c.network = n = ConfigDict()
    n.name = "unet"                    # unet (Ho et al. 2020, and its variants by the keys below)
    n.channels = 128                   # of the first level
    n.multipliers = (1, 2, 2, 2)       # channels of each level / network.channels; each further level halves H and W
    n.blocks = 2                       # residual blocks of a level
    n.attention_resolutions = (16,)    # heights of the feature maps that get attention
    n.up_attention_resolutions = placeholder(tuple)  # the same on the way up, where they differ
    n.heads = 1                        # of attention ...
    n.head_channels = 0                # ... or, if not 0, the channels of one head
    n.groups = 32                      # of group normalisation
    n.norm_epsilon = 1e-6              # of group normalisation
    n.activation = "swish"             # of the blocks: swish, relu, gelu, mish
    n.dropout = 0.0                    # probability of dropping
    n.scale_shift = False              # the embedding scales and shifts (Nichol & Dhariwal 2021) or only shifts
    n.downsample = ("conv",)           # of each level or one for all: conv, resblock (Dhariwal & Nichol 2021)
    n.upsample = ("conv",)             # of each level or one for all: conv, resblock
    n.pad_around = False               # a conv downsample pads all around, or after the last row and column
    n.middle = "attention"             # attention between two blocks, plain: two blocks, none
    n.middle_divisor = 1.0             # of the sums in the middle's blocks
    n.middle_groups = placeholder(int)  # of its attention's normalisation; None: network.groups, 0: not normalised
    n.embedding = "positional"         # of the time: positional; fourier, for noise levels above 0 alone
    n.embedding_channels = 0           # 0: 4 * network.channels
    n.freq_shift = 1.0                 # positional: 1 (Ho et al. 2020), 0 (Nichol & Dhariwal 2021)
    n.cos_first = False                # cosines before sines
    n.center_input = False             # the network sees 2x - 1
    n.num_classes = 0                  # 0: unconditional; else the number of labels of the data
    n.dtype = "float32"                # of the computation: float32, bfloat16; parameters are float32

    c.optimizer = o = ConfigDict()
    o.name = "adam"                    # adam
    o.learning_rate = 2e-4             # peak
    o.decay = "constant"               # after warm-up: constant, cosine (to 0 at train.duration)
    o.warmup = "5000 steps"            # linear from 0
    o.beta1 = 0.9                      # Adam
    o.beta2 = 0.999                    # Adam
    o.epsilon = 1e-8                   # Adam
    o.clip_norm = 1.0                  # of the global gradient; 0: no clipping

    c.ema = ConfigDict()
    c.ema.half_life = "887184 images"  # of the average of the parameters; decay 0.9999 a step at batch 128
    c.ema.warmup_ratio = 0.05          # half-life <= this * images seen (EDM's ramp-up); 0: full length at once

    c.train = t = ConfigDict()
    t.batch_size = 128                 # images a step, over all devices
    t.duration = "800k steps"          # of the whole run
    t.accumulate = 1                   # micro-batches a step: less memory, same result
    t.steps_per_dispatch = 1           # steps in one call of the device; must divide the intervals below
    t.log_every = "100 steps"          # a row of metrics.jsonl, means since the last one
    t.sample_every = "10k steps"       # a grid in samples/
    t.checkpoint_every = "10k steps"
    t.keep_checkpoints = 3             # the newest are kept

    c.mesh = ConfigDict()
    c.mesh.data = -1                   # devices that share the batch; -1: all that remain
    c.mesh.fsdp = 1                    # devices that share the parameters too

    c.sample = s = ConfigDict()
    s.solver = "ancestral"             # ancestral (Ho et al. 2020), ddim (Song et al. 2021)
    s.variance = "large"               # ancestral: large (beta_t), small (beta-tilde_t), learned_range (between them)
    s.eta = 0.0                        # ddim: 0 deterministic .. 1 like ancestral with the small variance
    s.steps = 1000                     # network evaluations for one image, at most process.steps
    s.spacing = "linspace"             # of those steps: linspace, leading, trailing
    s.offset = 0                       # leading: added to each time
    s.constant_stride = False          # ddim: a step goes T // steps down whatever the next time is, as in diffusers
    s.end = 0                          # ddim: the last step's end; 0 is clean data, 1 the least noisy time
    s.clip = True                      # clip x0 to [-clip_range, clip_range] at each step
    s.clip_range = 1.0
    s.dynamic_threshold = 0.0          # instead, if not 0: clip and scale by this quantile of |x0| (Saharia et al.
                                       # 2022)
    s.threshold_max = 1.0              # and by this at most
    s.rederive_eps = True              # ddim: make eps consistent with the clipped x0 (diffusers' default: not)
    s.batch_size = 64                  # images a chain, over all devices
    s.preview = 64                     # images of the grids that training draws

    return c.lock()


def keys(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """All leaves by their dotted names."""
    found = {}
    for name, value in config.items():
        found.update(keys(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {f"{prefix}{name}": value})
    return found


def from_dict(values: dict, where: str) -> ConfigDict:
    """`base()` with the values of nested dicts, as JSON holds them. Keys that they lack keep their defaults.

    Raises ConfigError for a key that is not in `base()`, or a value of another type.
    """
    config = base()
    known = keys(config)

    def merge(section: ConfigDict, values: dict, prefix: str) -> None:
        for name, value in values.items():
            key = prefix + name
            if isinstance(value, dict) and any(other.startswith(key + ".") for other in known):
                merge(section[name], value, key + ".")
            elif key not in known:
                raise ConfigError(f"{where} has the key {key}, which diffusion/config.py has not.{nearest(key, known)}")
            else:
                try:
                    section[name] = tuple(value) if isinstance(value, list) else value
                except TypeError as error:
                    raise ConfigError(f"{where}: config.{key} = {value!r} is not a {type(known[key]).__name__}, such "
                                      f"as {known[key]!r}.") from error

    merge(config, values, "")
    return config


def override(config: ConfigDict, values: dict[str, object]) -> ConfigDict:
    """A copy with the keys set that `values` names, dotted. Raises ConfigError for an unknown key or a wrong type."""
    nested = config.to_dict()
    for key, value in values.items():
        if key not in keys(config):
            raise ConfigError(f"Unknown config key {key!r}.{nearest(key, keys(config))} All keys and their meaning are "
                              "in diffusion/config.py.")
        *path, name = key.split(".")
        section = nested
        for part in path:
            section = section[part]
        section[name] = value
    return from_dict(nested, "the overrides")


def nearest(name: str, allowed) -> str:
    """"Did you mean ...?" with the closest of the allowed names, or nothing."""
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def check_flags(argv: list[str]) -> None:
    """Raises ConfigError for a --config.KEY flag that names no key, before the flags are parsed."""
    known = keys(base())
    for arg in argv:
        if arg.startswith(("--config.", "-config.")):
            key = arg.split("=")[0].lstrip("-").removeprefix("config.")
            key = key if key in known else key.replace("noconfig.", "")
            if key in known:
                continue
            if any(name.startswith(key + ".") for name in known):
                raise ConfigError(f"config.{key} is a group. Set one of its keys: "
                                  + ", ".join(n for n in known if n.startswith(key + ".")) + ".")
            raise ConfigError(f"Unknown config key {key!r}.{nearest(key, known)} "
                              "All keys and their meaning are in diffusion/config.py.")


def explain(error: Exception) -> str:
    """A flag or config file that could not be read, in one message, with the kind of value that the key takes."""
    text = " ".join(str(arg) for arg in error.args) or repr(error)
    text = text.replace("\\'", "'").replace("\n", " ").strip("\"'")
    if match := re.search(r"--config\.([\w.]+)", text):
        default = keys(base()).get(match[1])
        text += f". The key takes a {type(default).__name__}, such as {default!r}."
    return text


def check_loaded(config: object, where: str) -> None:
    """Raises ConfigError unless `config`, from file `where`, has just the keys of `base()`, or could not be read."""
    try:
        found = set(keys(config))
    except (OSError, AttributeError, TypeError) as error:
        raise ConfigError(f"Could not load {where}: {explain(error)}") from error
    if strange := found ^ set(keys(base())):
        raise ConfigError(f"{where} does not have the keys of diffusion/config.py: {', '.join(sorted(strange))}. Start "
                          "from `config.base()` and change values, as the files in configs/ do.")
