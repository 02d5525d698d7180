"""From a config to the parts it names. The only file that reads config names: one explicit table for each family.

To add a member to a family, write it in the family's folder and add it to the table here.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion import config as config_lib
from diffusion.core import grids, losses, parameterization, processes, schedules, time_densities, weightings
from diffusion.data import pipeline, sources
from diffusion.errors import ConfigError
from diffusion.generate import Generate, Sampler, make_generate, make_sampler
from diffusion.networks.layers import ACTIVATIONS
from diffusion.networks.unet import UNet
from diffusion.samplers.ancestral import Ancestral
from diffusion.samplers.ddim import DDIM
from diffusion.train import durations, ema, optimizer, sharding, step
from diffusion.train.loop import Plan
from diffusion.train.state import State, init_state

# Family -> {name: (config section) -> part}. A table's names are what its config key may be.
SCHEDULES = {
    "linear": lambda c: schedules.linear(c.steps, start=c.beta_start, end=c.beta_end),
    "scaled_linear": lambda c: schedules.scaled_linear(c.steps, start=c.beta_start, end=c.beta_end),
    "sigmoid": lambda c: schedules.sigmoid(c.steps, start=c.beta_start, end=c.beta_end),
    "cosine": lambda c: schedules.cosine(c.steps, offset=c.offset, max_beta=c.max_beta),
    "table": lambda c: np.asarray(c.betas, np.float64),
}
PREDICTIONS = {"eps": parameterization.EPS, "x0": parameterization.X0, "v": parameterization.V}
WEIGHTINGS = {
    "simple": lambda c: weightings.simple,
    "truncated_snr": lambda c: weightings.truncated_snr,
    "snr_plus_one": lambda c: weightings.snr_plus_one,
    "min_snr": lambda c: partial(weightings.min_snr, gamma=c.gamma),
}
NETWORKS = {"unet": UNet}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SOLVERS = {
    "ancestral": lambda c, process: Ancestral(process=process, variance=c.variance),
    "ddim": lambda c, process: DDIM(process=process, eta=c.eta),
}
SPACINGS = {"linspace": grids.linspace, "leading": grids.leading, "trailing": grids.trailing}
SOURCES = {
    "digits": lambda c: sources.digits(c.split),
    "idx": lambda c: sources.idx(c.dir, c.split),
    "tfds": lambda c: sources.tfds_source(c.dataset, c.dir, c.split),
}
OPTIMIZERS = {"adam": optimizer.adam}
DECAYS = {"constant", "cosine"}
VARIANCES = {"large", "small", "learned_range"}
RESAMPLERS = {"conv", "resblock"}
MIDDLES = {"attention", "plain", "none"}
EMBEDDINGS = {"positional", "fourier"}

# Keys that a resumed run may change, since they do not change what the finished steps computed.
RESUMABLE_KEYS = ("train.duration", "train.*_every", "train.keep_checkpoints", "train.steps_per_dispatch",
                  "train.accumulate", "mesh.*", "sample.*", "data.dir", "data.on_device", "data.workers")
LOG_SNR_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Model:
    """What training and sampling share."""
    mesh: Mesh
    process: processes.Process
    denoiser: parameterization.Denoiser
    init: Callable[[jax.Array], Any]  # key -> parameters
    abstract_params: Any              # shapes with shardings
    shape: tuple[int, int, int]       # of an image: H, W, C
    num_classes: int                  # 0: unconditional


@dataclass(frozen=True, kw_only=True)
class Training:
    """What training needs beside the model."""
    plan: Plan
    train_step: Callable              # compiled at its first call
    create_state: Callable[[], State]
    abstract_state: State
    data: Any                         # Grain iterator over this process's rows
    dataset: dict | None              # arrays on the device, if the data lives there
    log_snr_edges: np.ndarray         # [LOG_SNR_BINS + 1]
    keep_checkpoints: int


def choose(table, key: str, name: str):
    """The entry `name` of a table or set, or a ConfigError that lists what `config.key` may be."""
    if name not in table:
        raise ConfigError(f"config.{key} = {name!r} is not known.{config_lib.nearest(name, table)} "
                          f"It can be one of: {', '.join(sorted(table))}.")
    return table[name] if isinstance(table, dict) else name


def need(condition: bool, key: str, value, rule: str) -> None:
    """A ConfigError with the rule that config.key = value breaks."""
    if not condition:
        raise ConfigError(f"config.{key} = {value!r}: {rule}")


def betas(c: ConfigDict) -> np.ndarray:
    """The schedule [T] by its name, before `zero_terminal_snr`."""
    need(c.steps >= 1, "process.steps", c.steps, "the number of noising steps T must be 1 or more (the papers: 1000).")
    need(0 < c.beta_start <= c.beta_end < 1, "process.beta_start", c.beta_start,
         f"the paper's linear schedule needs 0 < beta_start <= beta_end < 1 (Ho et al. 2020: 1e-4 and 0.02), and "
         f"beta_end is {c.beta_end!r}.")
    need(0 < c.max_beta < 1, "process.max_beta", c.max_beta, "must lie in (0, 1) (Nichol & Dhariwal 2021: 0.999).")
    need(c.offset >= 0, "process.offset", c.offset, "must not be negative (Nichol & Dhariwal 2021: 0.008).")
    if c.name == "table":
        need(len(c.betas) == c.steps and all(0 < beta < 1 for beta in c.betas), "process.betas",
             f"{len(c.betas)} numbers", f"a table needs process.steps = {c.steps} numbers in (0, 1).")
    return choose(SCHEDULES, "process.name", c.name)(c)


def process(c: ConfigDict, prediction: str) -> processes.Process:
    need(not (c.zero_terminal_snr and prediction == "eps"), "process.zero_terminal_snr", c.zero_terminal_snr,
         "at t = T nothing of the data is left in x, so that it cannot be found from x and eps: predict v or x0 (Lin "
         "et al. 2024, Section 3.1).")
    table = betas(c)
    return processes.DiscreteProcess(betas=schedules.zero_terminal_snr(table) if c.zero_terminal_snr else table,
                                     label_scale=1000 / len(table) if c.rescale_times else 1.0)


def network(c: ConfigDict, size: int, out_channels: int):
    kwargs = c.to_dict()
    make = choose(NETWORKS, "network.name", kwargs.pop("name"))
    dtype = choose(DTYPES, "network.dtype", kwargs.pop("dtype"))
    need(c.channels >= 4 and c.channels % 2 == 0, "network.channels", c.channels,
         "must be even and at least 4: the time embedding is that many sines and cosines.")
    need(len(c.multipliers) >= 1 and min(c.multipliers) > 0, "network.multipliers", c.multipliers,
         "needs one positive number for each level.")
    need(c.blocks >= 1, "network.blocks", c.blocks, "each level needs at least one residual block.")
    need(0 <= c.dropout < 1, "network.dropout", c.dropout, "is a probability below 1.")
    need(c.num_classes >= 0, "network.num_classes", c.num_classes, "is 0 (unconditional) or the number of labels.")
    need(c.norm_epsilon > 0, "network.norm_epsilon", c.norm_epsilon, "must be positive (Ho et al. 2020: 1e-6).")
    need(c.middle_divisor > 0, "network.middle_divisor", c.middle_divisor, "must be positive; 1 changes nothing.")
    need(c.embedding_channels >= 0, "network.embedding_channels", c.embedding_channels, "must not be negative.")
    need(c.freq_shift < c.channels // 2, "network.freq_shift", c.freq_shift, "must be below half of network.channels.")
    choose(ACTIVATIONS, "network.activation", c.activation)
    choose(EMBEDDINGS, "network.embedding", c.embedding)
    choose(MIDDLES, "network.middle", c.middle)
    levels = len(c.multipliers)
    widths = [round(c.channels * m) for m in c.multipliers]
    need(all(abs(w - c.channels * m) < 1e-6 * w for w, m in zip(widths, c.multipliers)), "network.multipliers",
         c.multipliers, f"times network.channels = {c.channels} must be whole numbers.")
    for key in ("downsample", "upsample"):
        need(len(c[key]) in (1, levels), f"network.{key}", c[key],
             f"needs one kind, or one for each of {levels} levels.")
        for kind in c[key]:
            choose(RESAMPLERS, f"network.{key}", kind)
    need(size % 2**(levels - 1) == 0, "network.multipliers", c.multipliers,
         f"{levels} levels halve the image {levels - 1} times, which {size} pixels (config.data.size) do not "
         "allow. Use fewer levels or another size.")

    heights = [size // 2**i for i in range(levels)]
    attended = set()
    for key in ("attention_resolutions", "up_attention_resolutions"):
        need(set(c[key] or ()) <= set(heights), f"network.{key}", c[key],
             f"no level has feature maps of that height; they are {heights}.")
        attended |= {w for w, height in zip(widths, heights) if height in (c[key] or ())}
    attended |= {widths[-1]} if c.middle == "attention" else set()
    need(c.groups >= 1 and all(w % c.groups == 0 for w in widths), "network.groups", c.groups,
         f"must divide the channels of all levels, {widths}.")
    for key, least in (("heads", 1), ("head_channels", 0)):
        need(c[key] >= least and all(w % (c[key] or 1) == 0 for w in attended), f"network.{key}", c[key],
             f"must divide the channels of all levels with attention, {sorted(attended)}.")
    need(c.middle_groups is None or (c.middle_groups >= 0 and widths[-1] % (c.middle_groups or 1) == 0),
         "network.middle_groups", c.middle_groups, f"must divide the {widths[-1]} channels of the middle, or be 0.")
    return make(**kwargs, out_channels=out_channels, dtype=dtype)


def model(config: ConfigDict) -> Model:
    """The model that the config describes. Raises ConfigError before anything is compiled."""
    c, shape = config, (config.data.size, config.data.size, config.data.channels)
    need(c.data.size >= 1 and c.data.channels >= 1, "data.size", c.data.size, "and data.channels must be positive.")
    proc = process(c.process, c.prediction)
    net = network(c.network, c.data.size, c.data.channels * (1 + c.learned_range))
    denoiser = parameterization.make_denoiser(proc, choose(PREDICTIONS, "prediction", c.prediction), net.apply,
                                              learned_range=c.learned_range)
    mesh = sharding.make_mesh(c.mesh.data, c.mesh.fsdp)

    def init(key):
        cond = jnp.zeros((1,), jnp.int32) if c.network.num_classes else None
        return net.init(key, jnp.zeros((1, *shape)), jnp.zeros((1,)), cond)

    shapes = jax.eval_shape(init, jax.random.key(0))
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes,
                            sharding.of_state(shapes, mesh))
    return Model(mesh=mesh, process=proc, denoiser=denoiser, init=init, abstract_params=abstract, shape=shape,
                 num_classes=c.network.num_classes)


def sampler(config: ConfigDict, model: Model, outer: Callable = lambda denoise: denoise) -> Sampler:
    """The sampler of config.sample but for its time grid; `outer` wraps the clipped denoiser, as guidance does."""
    c = config.sample
    need(config.network.embedding != "fourier", "network.embedding", "fourier", "takes the logarithm of the noise "
         "level and divides by it; the times of a discrete process begin at 0, so no chain of them can be sampled.")
    need(c.variance != "learned_range" or config.learned_range, "sample.variance", c.variance,
         "needs a network with a head for the variance: config.learned_range.")
    need(c.clip_range > 0, "sample.clip_range", c.clip_range, "must be positive: data lie in [-1, 1].")
    need(0 <= c.dynamic_threshold < 1, "sample.dynamic_threshold", c.dynamic_threshold,
         "is a quantile in (0, 1), or 0 for none (Saharia et al. 2022: 0.995).")
    need(c.threshold_max >= 1, "sample.threshold_max", c.threshold_max, "must be 1 or more.")
    need(c.preview >= 1, "sample.preview", c.preview, "must be positive.")
    choose(VARIANCES, "sample.variance", c.variance)
    need(0 <= c.eta <= 1, "sample.eta", c.eta, "must lie in [0, 1]: 0 is deterministic, 1 is ancestral sampling "
         "(Song et al. 2021, DDIM, Eq. 16).")

    def guide(denoise):
        denoise = outer(denoise)
        if c.dynamic_threshold:
            return parameterization.dynamic_threshold(denoise, model.process, c.dynamic_threshold, c.threshold_max,
                                                      rederive_eps=c.rederive_eps)
        if c.clip:
            return parameterization.clip_x0(denoise, model.process, c.clip_range, rederive_eps=c.rederive_eps)
        return denoise

    return make_sampler(process=model.process, denoiser=model.denoiser, guide=guide, shape=model.shape, mesh=model.mesh,
                        solver=choose(SOLVERS, "sample.solver", c.solver)(c, model.process))


def grid(c: ConfigDict, proc: processes.Process) -> np.ndarray:
    """The steps of config.sample, int32 [S, 2]: from which time to which."""
    need(1 <= c.steps <= proc.t_max, "sample.steps", c.steps,
         f"must lie in 1 .. {proc.t_max}: the model knows the {proc.t_max} times of config.process.steps.")
    times = choose(SPACINGS, "sample.spacing", c.spacing)(proc.t_max, c.steps)
    need(c.offset >= 0, "sample.offset", c.offset, "must not be negative.")
    need(c.end in (0, 1), "sample.end", c.end, "is 0, the clean data, or 1, the least noisy time.")
    if c.spacing == "leading":
        times = times + c.offset
        need(times[0] <= proc.t_max, "sample.offset", c.offset,
             f"with {c.steps} steps the first time would be {times[0]}, above T = {proc.t_max}.")
    if c.solver != "ddim":
        return grids.pairs(times)
    return grids.constant_stride(times, proc.t_max, c.end) if c.constant_stride else grids.pairs(times, c.end)


def generate(config: ConfigDict, model: Model) -> Generate:
    """Draws with the sampler and grid of config.sample."""
    c = config.sample
    need(c.batch_size >= 1 and c.batch_size % jax.device_count() == 0, "sample.batch_size", c.batch_size,
         f"must be a positive multiple of the {jax.device_count()} devices.")
    return make_generate(sampler(config, model), grid(c, model.process), num_classes=model.num_classes,
                         batch_size=c.batch_size)


def training(config: ConfigDict, model: Model) -> Training:
    """Opens the data and builds the step. Raises ConfigError or DataError before anything is compiled."""
    c, o = config, config.optimizer
    need(c.seed >= 0, "seed", c.seed, "must not be negative.")
    need(not c.learned_range, "learned_range", True, "such a network can be sampled from but not trained here yet: its "
         "loss is the hybrid one of Nichol & Dhariwal (2021).")
    need(c.network.embedding != "fourier", "network.embedding", "fourier",
         "takes the logarithm of the noise level, and the times of a discrete process begin at 0.")
    check_batch(c.train)
    source = choose(SOURCES, "data.name", c.data.name)(c.data)
    sources.check_images(source, c.data.size, c.data.size, c.data.channels)
    need(c.network.num_classes in (0, source.num_classes), "network.num_classes", c.network.num_classes,
         f"the data has labels of {source.num_classes} classes; it is that, or 0 for an unconditional model.")
    in_steps = partial(durations.to_steps, batch_size=c.train.batch_size, epoch_size=len(source))
    plan = make_plan(c.train, in_steps)

    choose(DECAYS, "optimizer.decay", o.decay)
    need(o.learning_rate > 0, "optimizer.learning_rate", o.learning_rate, "must be positive.")
    need(o.clip_norm >= 0, "optimizer.clip_norm", o.clip_norm, "must not be negative; 0 turns clipping off.")
    rate = optimizer.learning_rate(o.learning_rate, decay=o.decay, total_steps=plan.total,
                                   warmup_steps=in_steps(o.warmup, key="optimizer.warmup"))
    optim = choose(OPTIMIZERS, "optimizer.name", o.name)(
        rate, beta1=o.beta1, beta2=o.beta2, epsilon=o.epsilon, clip_norm=o.clip_norm)
    half_life = durations.to_images(c.ema.half_life, key="ema.half_life", batch_size=c.train.batch_size,
                                    epoch_size=len(source))
    need(half_life > 0, "ema.half_life", c.ema.half_life, "must be positive.")
    need(c.ema.warmup_ratio >= 0, "ema.warmup_ratio", c.ema.warmup_ratio, "must not be negative.")

    # With zero terminal SNR the lowest is -inf: that one time falls into the first bin.
    lowest, highest = (max(float(model.process.log_snr(t)), -20.0) for t in (model.process.t_max, 1))
    edges = np.linspace(lowest, highest, LOG_SNR_BINS + 1)
    train_step = step.make_train_step(
        loss=losses.make_denoising_loss(model.process, time_densities.uniform_discrete,
                                        choose(WEIGHTINGS, "loss.weighting", c.loss.weighting)(c.loss)),
        denoiser=model.denoiser, optimizer=optim, learning_rate=rate,
        ema_decay=partial(ema.decay, batch_size=c.train.batch_size, half_life=half_life,
                          warmup_ratio=c.ema.warmup_ratio),
        seed=c.seed, flip=c.data.flip, conditional=c.network.num_classes > 0, accumulate=c.train.accumulate,
        log_snr_edges=edges)
    create, abstract = step.create_state(lambda key: init_state(model.init(key), optim), mesh=model.mesh, seed=c.seed)

    shards = dict(batch_size=c.train.batch_size, seed=c.seed, shard_index=jax.process_index(),
                  shard_count=jax.process_count())
    if c.data.on_device:
        data, dataset = pipeline.index_batches(len(source), **shards), jax.device_put(
            pipeline.to_arrays(source), sharding.replicated(model.mesh))
    else:
        data, dataset = pipeline.batches(source, workers=c.data.workers, **shards), None
    return Training(
        plan=plan, create_state=create, abstract_state=abstract, data=data, dataset=dataset, log_snr_edges=edges,
        keep_checkpoints=c.train.keep_checkpoints,
        train_step=step.compile_train_step(train_step, mesh=model.mesh, steps=plan.steps_per_dispatch,
                                           state_shardings=jax.tree.map(lambda x: x.sharding, abstract)))


def check_batch(c: ConfigDict) -> None:
    devices, pieces = jax.device_count(), jax.device_count() * c.accumulate
    need(c.accumulate >= 1, "train.accumulate", c.accumulate, "must be 1 (no accumulation) or more.")
    need(c.batch_size >= 1 and c.batch_size % pieces == 0, "train.batch_size", c.batch_size,
         f"must be a multiple of {pieces} = {devices} devices x config.train.accumulate. The nearest are "
         f"{c.batch_size // pieces * pieces or pieces} and {math.ceil((c.batch_size + 1) / pieces) * pieces}.")
    need(c.keep_checkpoints >= 1, "train.keep_checkpoints", c.keep_checkpoints, "must be 1 or more.")


def make_plan(c: ConfigDict, in_steps) -> Plan:
    plan = Plan(batch_size=c.batch_size, steps_per_dispatch=c.steps_per_dispatch,
                total=in_steps(c.duration, key="train.duration"),
                **{name: in_steps(c[name], key=f"train.{name}")
                   for name in ("log_every", "sample_every", "checkpoint_every")})
    need(c.steps_per_dispatch >= 1, "train.steps_per_dispatch", c.steps_per_dispatch, "must be 1 or more.")
    for name, steps in (("duration", plan.total), ("log_every", plan.log_every), ("sample_every", plan.sample_every),
                        ("checkpoint_every", plan.checkpoint_every)):
        need(steps >= 1, f"train.{name}", c[name], "must be one step or more.")
        need(steps % c.steps_per_dispatch == 0, f"train.{name}", c[name],
             f"is {steps} steps, which config.train.steps_per_dispatch = {c.steps_per_dispatch} does not divide: "
             "samples, checkpoints and rows of the log are made between dispatches.")
    return plan
