"""What training and sampling share: process, network and denoiser."""
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion import config as config_lib
from diffusion.build.networks import SHARDING, network
from diffusion.build.processes import SCHEDULES, learned_schedule, process
from diffusion.build.rules import choose, need
from diffusion.core import parameterization, preconditioning, processes
from diffusion.core.uncertainty import Uncertainty
from diffusion.train import sharding

# name: (config) -> what F is. x0_and_eps has two heads, of which make_denoiser makes one prediction.
PREDICTIONS = {
    "eps": lambda c: parameterization.EPS,
    "x0": lambda c: parameterization.X0,
    "v": lambda c: parameterization.V,
    "score": lambda c: parameterization.SCORE,
    "velocity": lambda c: parameterization.VELOCITY,
    "mean": lambda c: parameterization.MEAN,
    "edm": lambda c: preconditioning.edm(c.sigma_data),
    "edm_vp": lambda c: preconditioning.vp(),
    "edm_ve": lambda c: preconditioning.ve(),
    "edm_iddpm": lambda c: preconditioning.iddpm(),
}
TWO_HEADS = "x0_and_eps"


@dataclass(frozen=True, kw_only=True)
class Model:
    """What training and sampling share."""
    mesh: Mesh
    process: processes.Process        # of the initial parameters
    process_of: Callable[[Any], processes.Process]  # parameters -> the process, which differs where it is learned
    denoiser: parameterization.Denoiser
    init: Callable[[jax.Array], Any]  # key -> parameters: {"params": of the network, and more that is learned}
    abstract_params: Any              # shapes with shardings
    shape: tuple[int, int, int]       # of an image: H, W, C
    num_classes: int                  # 0: unconditional
    null_label: int | None            # what training had for "no class", if it hid labels
    rules: tuple[sharding.Rule, ...] = ()  # of the sharding of parameters
    guide: "Model | None" = None      # the worse model of autoguidance, with parameters params["guide"]


def model(config: ConfigDict, guide: ConfigDict | None = None, devices: Sequence | None = None) -> Model:
    """The model that the config describes, and the one that may guide it. Raises ConfigError before anything is
    compiled."""
    c, shape = config_lib.own(config), (config.data.size, config.data.size, config.data.channels)
    need(c.data.size >= 1 and c.data.channels >= 1, "data.size", c.data.size, "and data.channels must be positive.")
    proc = process(c.process)
    both = c.prediction == TWO_HEADS
    choose({*PREDICTIONS, TWO_HEADS}, "prediction", c.prediction)
    check(c, proc)
    net = network(c.network, c.data.size, c.data.channels * (1 + both + c.learned_range))
    schedule = learned_schedule(c.process) if c.process.name == "learned" else None
    process_of = (lambda params: schedule.process(params["schedule"])) if schedule else (lambda params: proc)
    denoiser = parameterization.make_denoiser(
        process_of, PREDICTIONS["eps" if both else c.prediction](c),
        lambda params, *args: net.apply({"params": params["params"]}, *args), both=both, learned_range=c.learned_range)
    mesh = sharding.make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor, devices)

    init = functools.partial(init_params, net=net, shape=shape, schedule=schedule, uncertainty=c.loss.uncertainty)
    shapes = init_shapes(net, shape, schedule, c.loss.uncertainty, jnp.result_type(float))
    rules = sharding_rules(c, shapes)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes,
                            sharding.of_state(shapes, mesh, rules))
    return Model(mesh=mesh, process=proc, process_of=process_of, denoiser=denoiser, init=init,
                 abstract_params=abstract, shape=shape, num_classes=c.network.num_classes,
                 null_label=c.network.num_classes if c.network.label_dropout else None, rules=rules,
                 guide=guide and beside(guide, c, proc))


def init_params(key: jax.Array, *, net: Any, shape: tuple[int, int, int], schedule: Any, uncertainty: bool) -> Any:
    """The parameters of the network, and of what else is learned."""
    cond = jnp.zeros((1,), jnp.int32) if net.num_classes else None
    params = dict(net.init(key, jnp.zeros((1, *shape)), jnp.zeros((1,)), cond))
    if schedule:
        params["schedule"] = schedule.init(jax.random.fold_in(key, 1))
    if uncertainty:
        params["uncertainty"] = Uncertainty().init()
    return params


@functools.lru_cache(maxsize=64)
def init_shapes(net: Any, shape: tuple[int, int, int], schedule: Any, uncertainty: bool, dtype: Any) -> Any:
    """The shapes of `init_params` where floats are of `dtype`. Kept, since tracing a network takes a quarter of a
    second and more, and a sweep builds one for each row and check."""
    return jax.eval_shape(functools.partial(init_params, net=net, shape=shape, schedule=schedule,
                                            uncertainty=uncertainty), jax.random.key(0))


def sharding_rules(c: ConfigDict, params: Any) -> tuple[sharding.Rule, ...]:
    """Those of config.mesh.rules, and then the network's own. Raises ConfigError for one that fits no parameter."""
    given = []
    for text in c.mesh.rules:
        pattern, colon, axes = text.rpartition(":")
        need(colon and pattern and axes.strip(), "mesh.rules", text, "is not a rule: write \"REGEX: AXES\", such as "
             "\"attention.*/[qkv]/kernel: fsdp, tensor\".")
        given.append((pattern, tuple(None if axis.strip() == "-" else axis.strip() for axis in axes.split(","))))
    sharding.check_rules(given, params, "config.mesh.rules")
    return (*given, *SHARDING[c.network.name])


def beside(guide: ConfigDict, config: ConfigDict, proc: processes.Process) -> Model:
    """The guide's model, with the very process of the model beside it if that is the same."""
    found = model(guide)
    return replace(found, process=proc) if guide.process.to_dict() == config.process.to_dict() else found


def check(c: ConfigDict, proc: processes.Process) -> None:
    """The rules between process, prediction and network, each with its reason and source."""
    cause = "process.zero_terminal_snr" if c.process.zero_terminal_snr else f"process.name = {c.process.name!r}"
    need(c.prediction in ("x0", "v", "velocity") or np.isfinite(float(proc.log_snr(proc.t_max))), "prediction",
         c.prediction, f"cannot be: with {cause} nothing of the data is left in x at the last time, and the noise says "
         "nothing of it either. Predict v, velocity or x0 (Lin et al. 2024, Section 3.1).")
    for key, name in (("prediction", c.prediction), ("loss.space", c.loss.space)):
        need(name != "mean" or isinstance(proc.t_max, int), key, name, "is the mean of x_{t-1} given x_t and x_0 "
             f"(Ho et al. 2020, Section 3.2), and process.name={c.process.name} has no such step: it takes a table.")
    need(c.sigma_data > 0, "sigma_data", c.sigma_data, "must be positive (Karras et al. 2022: 0.5).")


def check_times(c: ConfigDict) -> None:
    """That the network can be told the times of the process: to be asked before training and sampling."""
    need(c.network.embedding != "fourier" or c.process.name == "ve", "network.embedding", "fourier", "takes the "
         "logarithm of the noise level, which process.name=ve tells the network; the times of others begin at 0.")
    n, p = c.network, c.process
    need(n.embedding != "learned" or (p.name in SCHEDULES and p.steps <= n.embedding_rows and not p.rescale_times
                                      and not c.sample.between_times), "network.embedding", "learned", "has a row for "
         f"each of {n.embedding_rows} whole times (network.embedding_rows): it goes with a table of betas of no more "
         "steps, without process.rescale_times and sample.between_times.")
