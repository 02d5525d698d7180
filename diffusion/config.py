"""Every key of a config, its meaning and its default. Files in configs/ start from `base()` and change values.

A config holds plain values only. It is locked: a key that is not here is an error, in a file and on the command line.
Durations are strings with a unit, "2000 steps", "10M images" or "5 epochs".
"""
import difflib
import functools
from collections.abc import Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from diffusion.config_values import Key
from diffusion.errors import ConfigError, shown

# Keys that are None in `base()`, since what is right hangs on another key of their section: (that key, the values of
# those of its members that have one of their own, the value with all others).
OWN = {
    "process.sigma_min": ("name", {"ve": 0.02}, 0.002),         # ve: Song et al. (2021) have 0.01 and 50 for data in
    "process.sigma_max": ("name", {"ve": 100.0}, 80.0),         # [0, 1]; ours lie in [-1, 1]
    "process.log_snr_min": ("name", {"learned": -5.0}, -20.0),
    "process.log_snr_max": ("name", {"learned": 13.3}, 20.0),
    "process.t_min": ("name", {"vp": 1e-5, "sub_vp": 1e-5, "ve": 1e-5}, 1e-3),
    "loss.gamma": ("weighting", {"soft_min_snr": 4.0}, 5.0),
    "loss.bias": ("weighting", {"sigmoid": 2.0}, 0.0),
    "loss.density_mean": ("density", {"logit_normal": 0.0}, -1.2),
    "loss.density_std": ("density", {"logit_normal": 1.0}, 1.2),
}


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
    p.name = "linear"                  # tables of beta_1 .. beta_T: linear (Ho et al. 2020), cosine (Nichol & Dhariwal
                                       # 2021), scaled_linear (also called quadratic), sigmoid, constant, jsd, warmup,
                                       # table (process.betas), table_of (a process in continuous time)
                                       # continuous time: vp, sub_vp, ve (Song et al. 2021), edm (Karras et al. 2022),
                                       # flow (Lipman et al. 2023), shifted_cosine (Hoogeboom et al. 2023), laplace
                                       # (Hang et al. 2024), learned (Kingma et al. 2021)
    p.steps = 1000                     # tables: T
    p.beta_start = 1e-4                # linear, scaled_linear, sigmoid, warmup: beta_1
    p.beta_end = 0.02                  # these and constant: beta_T
    p.offset = 0.008                   # cosine: s
    p.max_beta = 0.999                 # cosine: betas are clipped here
    p.warmup_share = 0.1               # warmup: of the steps, from beta_start to beta_end
    p.betas = ()                       # table: beta_1 .. beta_T themselves
    p.table_of = "shifted_cosine"      # table_of: vp, shifted_cosine or laplace, at t = 1/T .. 1
    p.beta_min = 0.1                   # vp, sub_vp: beta(0)
    p.beta_max = 20.0                  # vp, sub_vp: beta(1)
    p.sigma_min = placeholder(float)   # edm, ve: the least noise (None: 0.002 and 0.02) ...
    p.sigma_max = placeholder(float)   # ... and the most (80 and 100)
    p.shift = 1.0                      # flow, shifted_cosine: towards noise, for large images; 1: none
    p.log_snr_min = placeholder(float)  # shifted_cosine, learned: at t = 1 (None: -20 and -5)
    p.log_snr_max = placeholder(float)  # shifted_cosine, learned: at t = 0 (None: 20 and 13.3)
    p.hidden = 1024                    # learned: width of the monotone network; 0: linear log-SNR between the ends
    p.learned_ends = False             # learned: the ends too
    p.log_snr_mean = 0.0               # laplace: mu ...
    p.log_snr_scale = 0.5              # ... and b of the law of log-SNR under uniform t
    p.t_min = placeholder(float)       # the least noisy time that is trained, of [0, 1] (None: vp, sub_vp, ve: 1e-5;
                                       # flow, laplace: 1e-3)
    p.rescale_times = False            # the network is told (t - 1) 1000 / T, as in improved-diffusion, not t - 1
    p.zero_terminal_snr = False        # rescale so that nothing of the data is left at T (Lin et al. 2024)

    c.prediction = "eps"               # what the network predicts: eps, x0, v, score, velocity, mean (of x_{t-1}, for
                                       # tables: Ho et al. 2020, Section 3.2), x0_and_eps (two heads);
                                       # with preconditioning (Karras et al. 2022, Table 1): edm, edm_vp, edm_ve,
                                       # edm_iddpm
    c.sigma_data = 0.5                 # edm, prediction and weighting: the standard deviation of the data
    c.learned_range = False            # and, by a second head, the variance (Nichol & Dhariwal 2021): hybrid or vlb

    c.loss = o = ConfigDict()
    o.name = "denoising"               # denoising: weighted squared error; vlb, hybrid (Nichol & Dhariwal 2021);
                                       # continuous_vlb (Kingma et al. 2021)
    o.space = "eps"                    # denoising: of what the error is measured, as in config.prediction
    o.weighting = "simple"             # simple: 1 in that space; converted to it: snr, truncated_snr, snr_plus_one (= 1
                                       # on v), min_snr, soft_min_snr, p2, edm, sigmoid, likelihood, clipped_velocity
    o.gamma = placeholder(float)       # the SNR above which the weight on x0 no longer grows (None: min_snr: 5;
                                       # soft_min_snr: 4)
    o.p2_k = 1.0                       # p2: 1 / (k + SNR)^gamma (Choi et al. 2022)
    o.p2_gamma = 1.0
    o.bias = placeholder(float)        # sigmoid: the log-SNR where it falls to 1/2 (None: 2, Kingma & Gao 2023)
    o.least_sigma = 0.05               # clipped_velocity: 1 / max(sigma, this)^2 on x0 (Li & He 2025, "JiT")
    o.uncertainty = False              # a learned factor for each noise level (Karras et al. 2024, Eq. 21)
    o.density = "uniform"              # of the times. Tables: uniform, importance (Nichol & Dhariwal 2021). Continuous:
                                       # uniform, log_normal (Karras et al. 2022), logit_normal, mode (Esser et al.
                                       # 2024), cosine_log_snr
    o.density_mean = placeholder(float)  # log_normal: P_mean of the log noise level (None: -1.2); logit_normal: m (0)
    o.density_std = placeholder(float)  # log_normal: P_std (None: 1.2); logit_normal: s (1)
    o.mode_scale = 1.29                # mode: s
    o.stratified = False               # the times of a batch evenly spread (Kingma et al. 2021, Appendix I.1)
    o.variance = "large"               # vlb without learned_range: large, small
    o.hybrid_scale = 1e-3              # hybrid: of L_vlb (Nichol & Dhariwal 2021, Eq. 16)

    c.network = n = ConfigDict()
    n.name = "unet"                    # unet (Ho et al. 2020, and its variants by the keys below); dit (Peebles & Xie
                                       # 2023), which has channels, heads, the next three keys, num_classes and what
                                       # follows it
    n.depth = 12                       # dit: blocks
    n.patch = 2                        # dit: height and width of the image under a token, pixels
    n.mlp_ratio = 4.0                  # dit: width of the MLPs / network.channels
    n.channels = 128                   # of the first level; dit: of a token
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
    n.embedding = "positional"         # of the time: positional; fourier, for noise levels above 0 alone; learned, for
                                       # a table's whole times ...
    n.embedding_rows = 0               # ... of which there are so many (diffusers: num_train_timesteps)
    n.embedding_channels = 0           # 0: 4 * network.channels
    n.freq_shift = 1.0                 # positional: 1 (Ho et al. 2020), 0 (Nichol & Dhariwal 2021)
    n.cos_first = False                # cosines before sines
    n.center_input = False             # the network sees 2x - 1
    n.num_classes = 0                  # 0: unconditional; else the number of labels of the data
    n.label_dropout = 0.0              # probability that training hides a label, for guidance (Ho & Salimans 2022): the
                                       # network then knows one label more, num_classes
    n.dtype = "float32"                # of the computation: float32, bfloat16; parameters are float32
    n.remat = "none"                   # what the gradient computes again instead of keeping it: none, light (in each
                                       # block all but convolutions and matrix products), full (each block)

    c.optimizer = o = ConfigDict()
    o.name = "adam"                    # adam
    o.learning_rate = 2e-4             # peak
    o.decay = "constant"               # after warm-up: constant; to 0 at train.duration: cosine, linear
    o.warmup = "5000 steps"            # linear from 0
    o.beta1 = 0.9                      # Adam
    o.beta2 = 0.999                    # Adam
    o.epsilon = 1e-8                   # Adam
    o.clip_norm = 1.0                  # of the global gradient; 0: no clipping
    o.mu_dtype = "float32"             # in which Adam's first moment is kept: float32, bfloat16

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
    s.solver = "ancestral"             # ancestral (Ho et al. 2020), ddim (Song et al. 2021), euler_ancestral;
                                       # ODE: euler, heun (Karras et al. 2022), dpm_solver, dpm_solver++ (Lu et al.
                                       # 2022), their multistep dpm_solver++m, unipc, deis, lms, pndm, plms,
                                       # adaptive_ode (Song et al. 2021, RK45)
                                       # SDE: dpm_solver++sde, sa_solver, euler_maruyama, reverse_diffusion (Song et al.
                                       # 2021), adaptive_sde (Jolicoeur-Martineau et al. 2021)
                                       # consistency (Song et al. 2023)
    s.order = placeholder(int)         # of those that have several; None: the usual one
    s.reach = 4.0                      # dpm_solver, dpm_solver++m, ++sde, unipc, deis, sa_solver: the order falls where
                                       # a step in log-SNR is this many times the one before, or is long; inf: never, as
                                       # in the papers' code
    s.solver_type = placeholder(str)   # dpm_solver++m, dpm_solver++sde: midpoint, heun (as k-diffusion's 3M SDE); None:
                                       # heun for order 3
    s.unipc_variant = "B2"             # unipc: B(h): B1 for unconditional models, B2 for guided ones (Zhao et al. 2023)
    s.variance = "large"               # ancestral: large (beta_t), small (beta-tilde_t), learned_range (between them by
                                       # the network), mixed (between them by the next key)
    s.variance_share = 0.2             # mixed: of the large one, in logarithms (Hoogeboom et al. 2023)
    s.heun_fraction = 1.0              # heun: where in a step the second slope is: 1, midpoint 1/2, Ralston 2/3
    s.churn = 0.0                      # heun, euler: S_churn (Karras et al. 2022, Algorithm 2) ...
    s.churn_min = 0.0                  # ... where the noise level is from this ...
    s.churn_max = float("inf")         # ... to this ...
    s.churn_noise = 1.0                # ... and S_noise
    s.euler_to_zero = False            # heun, euler: the last step is Euler's, as in EDM's code, and not to x0
    s.schedule = "model"               # what is sampled along: model, its own process; or of its noise levels, with
                                       # sigma(t): linear, vp, ve ...
    s.scaling = "none"                 # ... and s(t): none, vp (Karras et al. 2022, Table 1)
    s.sigma_min = -1.0                 # of that schedule; -1: the model's
    s.sigma_max = -1.0
    s.tolerance = placeholder(float)   # adaptive_ode: relative and absolute (None: 1e-5); adaptive_sde: relative (0.02)
    s.corrector = "none"               # before each step: none, langevin, annealed_langevin (Song et al. 2021)
    s.corrector_snr = 0.16             # its step size
    s.corrector_steps = 1
    s.eta = placeholder(float)         # share of the reverse SDE's noise, 0 .. 1: ddim (None: 0; 1 is like ancestral
                                       # with the small variance), dpm_solver++sde, sa_solver (its tau; None: 1)
    s.steps = 1000                     # network evaluations for one image, at most process.steps
    s.spacing = "linspace"             # of those steps. Tables: linspace, leading, trailing, open_linspace and
                                       # open_leading (one time more, and the last left out, as diffusers' multistep
                                       # solvers have them). Continuous: uniform in t, quadratic, log_snr (EDM's
                                       # "ve"), karras (EDM's own), vp, iddpm, or the lists in sample.given: times,
                                       # noise_levels
    s.rho = 7.0                        # karras
    s.given = ()                       # times, noise_levels: falling, one for each step
    s.t_min = -1.0                     # continuous: the last noisy time; -1: process.t_min; vp, sub_vp: 1e-3
    s.between_times = False            # let a model of a table be asked at times between those it was trained at
    s.offset = 0                       # leading, open_leading: added to each time
    s.constant_stride = False          # ddim, pndm, plms: a step goes T // steps down whatever the next time is
    s.end = 0                          # ddim, and multistep solvers: the last step's end; 0 is clean data, 1 the least
                                       # noisy time
    s.clip = True                      # clip x0 to [-clip_range, clip_range] at each step
    s.clip_range = 1.0
    s.dynamic_threshold = 0.0          # instead, if not 0: clip and scale by this quantile of |x0| (Saharia et al.
                                       # 2022)
    s.threshold_max = 1.0              # and by this at most
    s.rederive_eps = True              # ddim: make eps consistent with the clipped x0 (diffusers' default: not)
    s.guidance = g = ConfigDict()
    g.name = "none"                    # none, classifier_free (Ho & Salimans 2022), cfg++ (Chung et al. 2024), apg
                                       # (Sadat et al. 2024), autoguidance (Karras et al. 2024)
    g.scale = 1.0                      # 1: no guidance; the papers' w is often this less 1
    g.null_label = -1                  # the label for no class; -1: that of network.label_dropout
    g.interval_low = 0.0               # on for noise levels above this ...
    g.interval_high = float("inf")     # ... up to this (Kynkaanniemi et al. 2024)
    g.rescale = 0.0                    # to the unguided standard deviation by this share (Lin et al. 2024)
    g.parallel = 0.0                   # apg: of the part along x0
    g.norm_threshold = float("inf")    # apg: of the guidance
    g.momentum = 0.0                   # apg: beta of the steps before (there -0.5)
    g.guide = ""                       # autoguidance: the worse model, a source as for --from_pretrained
    g.guide_checkpoint = placeholder(int)  # autoguidance: the step, where that is a run
    s.batch_size = 64                  # images a chain, over all devices
    s.preview = 64                     # images of the grids that training and evaluations draw

    c.likelihood = k = ConfigDict()
    k.estimator = "vlb"                # vlb (Ho et al. 2020; tables), continuous_vlb (Kingma et al. 2021), ode (Song et
                                       # al. 2021)
    k.steps = 1000                     # vlb: times of the chain; continuous_vlb: draws; ode without tolerance: steps
    k.tolerance = 0.0                  # ode: of adaptive steps (1e-5; needs the extra "ode"); 0: equal steps
    k.probes = "rademacher"            # ode, of the trace: rademacher, gaussian (Hutchinson), exact
    k.probe_count = 1
    k.dequantisation = "uniform"       # ode: uniform, truncated_normal
    k.samples = 1                      # ode: K of the importance-weighted bound (Burda et al. 2016)
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

    return c.lock()


def own(config: ConfigDict, section: str = "") -> ConfigDict:
    """A copy in which the keys of OWN that are None have what is right for the members that the config names.

    section: of which `config` is, such as "process"; "": a whole config.
    """
    found = config.copy_and_resolve_references()
    for key, (named_by, members, others) in OWN.items():
        part, name = key.split(".")
        if section in ("", part):
            values = found if section else found[part]
            if values[name] is None:
                values[name] = members.get(values[named_by], others)
    return found


def defaults() -> dict:
    """Of all keys, nested: what they were for a run that is older than they are."""
    return own(base()).to_dict()


def keys(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """All leaves by their dotted names."""
    found = {}
    for name, value in config.items():
        found.update(keys(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {f"{prefix}{name}": value})
    return found


def from_dict(values: dict, where: str, *, final: bool = True) -> ConfigDict:
    """`base()` with the values of nested dicts, as JSON holds them. Keys that they lack keep their defaults: those of
    `own`, if no more keys are set after this (`final`).

    where: what errors name, such as the file. Raises ConfigError for a key that is not in `base()`, and as
    `Key.fitted` for a value.
    """
    config = base()

    def merge(section: ConfigDict, values: dict, prefix: str) -> None:
        for name, value in values.items():
            key = f"{prefix}{name}"
            if key in known():
                section[name] = known()[key].fitted(value, where)
            elif not any(other.startswith(f"{key}.") for other in known()):
                raise ConfigError(f"{where} has the key {shown(key)}, which diffusion/config.py has not."
                                  f"{nearest(key, known())}")
            elif not isinstance(value, dict):
                raise ConfigError(f"{where}: config.{key} is a group of keys, and not {shown(value)}.")
            else:
                merge(section[name], value, f"{key}.")

    if not isinstance(values, dict):
        raise ConfigError(f"{where} holds {shown(values)}, where the keys of a config are needed.")
    merge(config, values, "")
    return own(config) if final else config


def override(config: ConfigDict, values: Mapping[str, object], where: str = "the overrides") -> ConfigDict:
    """A copy with the keys set that `values` names, dotted. Raises ConfigError for an unknown key or a wrong value."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"Overrides are a dict from keys to values, such as {{'sample.steps': 50}}; got "
                          f"{shown(values)}.")
    nested = config.to_dict()
    for key, value in values.items():
        check_key(key)
        *path, name = key.split(".")
        section = nested
        for part in path:
            section = section[part]
        section[name] = value
    return from_dict(nested, where)


def check_key(key: str) -> None:
    """Raises ConfigError unless this is the dotted name of a key."""
    if key in known():
        return
    if within := [name for name in known() if name.startswith(f"{key}.")]:
        raise ConfigError(f"config.{key} is a group. Set one of its keys: {', '.join(within)}.")
    raise ConfigError(f"Unknown config key {shown(key)}.{nearest(str(key), known())} All keys and their meaning are "
                      "in diffusion/config.py.")


@functools.cache
def known() -> dict[str, Key]:
    """All keys by their dotted names."""
    found = {}

    def gather(section: ConfigDict, prefix: str) -> None:
        for name, value in section.items():
            if isinstance(value, ConfigDict):
                gather(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = Key(prefix + name, section.get_type(name), value)

    gather(base(), "")
    return found


def nearest(name: str, allowed) -> str:
    """"Did you mean ...?" with the closest of the allowed names, or nothing."""
    match = difflib.get_close_matches(name[:100], list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""
