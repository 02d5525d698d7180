"""Builds the model, which training and sampling share: process, network and denoiser."""
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion.build.networks import network
from diffusion.build.objective import check_prediction
from diffusion.build.processes import process
from diffusion.build.rules import require_key, sides
from diffusion.core import parameterization, processes
from diffusion.core.uncertainty import Uncertainty
from diffusion.networks import backend
from diffusion.parallel import sharding
from diffusion.typing import NetworkApply


@dataclass(frozen=True, kw_only=True)
class Model:
    """The parts that training and sampling share."""
    mesh: Mesh
    network: Any                      # the Flax module
    process: processes.Process        # of the initial parameters
    process_of: Callable[[Any], processes.Process]  # parameters -> the process, which depends on them if learned
    denoiser: parameterization.Denoiser
    denoiser_with_jvp: parameterization.Denoiser  # for jax.jvp and jax.linearize, which fast layers do not allow
    init: Callable[[jax.Array], Any]  # key -> parameters: {"params": of the network, and other learned parts}
    abstract_params: Any              # shapes with shardings
    shape: tuple[int, int, int]       # of an image: H, W, C
    num_classes: int                  # 0: unconditional
    null_label: int | None            # the label for "no class" in training, if it hid labels
    rules: tuple[sharding.Rule, ...] = ()  # for the sharding of parameters
    guide: "Model | None" = None      # the worse model of autoguidance, with parameters params["guide"]


def model(config: ConfigDict, guide: ConfigDict | None = None, devices: Sequence | None = None) -> Model:
    """The model that the config describes, with its guide if one is given. Raises ConfigError before anything is
    compiled."""
    c, shape = config, (*sides(config.data.size), config.data.channels)
    parts = check_model(c)
    proc, net, schedule = parts.process, parts.network, parts.process.trained_schedule
    process_of = (lambda params: schedule.process(params["schedule"])) if schedule else (lambda params: proc)
    mesh = sharding.make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor, devices)

    def denoiser(jvp: bool) -> parameterization.Denoiser:
        return parameterization.make_denoiser(process_of, parts.prediction, applying(net, mesh, jvp),
                                              learned_range=c.learned_range)

    uncertainty = c.loss.get("uncertainty", False)
    init = functools.partial(init_params, net=net, shape=shape, schedule=schedule, uncertainty=uncertainty)
    shapes = init_shapes(net, shape, schedule, uncertainty, jnp.result_type(float))
    rules = sharding_rules(c, net, shapes)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes,
                            sharding.of_state(shapes, mesh, rules))
    return Model(mesh=mesh, network=net, process=proc, process_of=process_of, denoiser=denoiser(jvp=False),
                 denoiser_with_jvp=denoiser(jvp=True), init=init,
                 abstract_params=abstract, shape=shape, num_classes=c.network.num_classes,
                 null_label=c.network.num_classes if c.network.label_dropout else None, rules=rules,
                 guide=guide and build_guide(guide, c, proc))


def applying(net: Any, mesh: Mesh, jvp: bool) -> NetworkApply:
    """The network as a function of its parameters, in the layers' forms for the mesh's devices."""
    def apply(params, *args):
        with backend.compiling_for(sharding.platform(mesh), jvp=jvp):
            return net.apply({"params": params["params"]}, *args)
    return apply


class Parts(NamedTuple):
    """The parts of a model that need no devices and no tracing."""
    process: processes.Process
    prediction: parameterization.Parameterization
    network: Any


def check_model(c: ConfigDict) -> Parts:
    """The parts of the model, built to check its keys. Raises ConfigError."""
    sides(c.data.size)
    require_key(c.data.channels >= 1, "data.channels", c.data.channels, "must be positive.")
    proc = process(c.process)
    prediction = check_prediction(c, proc)
    net = network(c.network, c.data.size, c.data.channels * (1 + prediction.both + c.learned_range))
    return Parts(proc, prediction, net)


def init_params(key: jax.Array, *, net: Any, shape: tuple[int, int, int], schedule: Any, uncertainty: bool) -> Any:
    """The parameters of the network, and of the other learned parts."""
    cond = jnp.zeros((1,), jnp.int32) if net.num_classes else None
    params = dict(net.init(key, jnp.zeros((1, *shape)), jnp.zeros((1,)), cond))
    if schedule:
        params["schedule"] = schedule.init(jax.random.fold_in(key, 1))
    if uncertainty:
        params["uncertainty"] = Uncertainty().init()
    return params


@functools.lru_cache(maxsize=64)
def init_shapes(net: Any, shape: tuple[int, int, int], schedule: Any, uncertainty: bool, dtype: Any) -> Any:
    """The shapes of `init_params` with floats of `dtype`. Cached, since tracing a network takes a quarter of a second
    or more, and a sweep builds one for each row and check."""
    return jax.eval_shape(functools.partial(init_params, net=net, shape=shape, schedule=schedule,
                                            uncertainty=uncertainty), jax.random.key(0))


def sharding_rules(c: ConfigDict, net: Any, params: Any) -> tuple[sharding.Rule, ...]:
    """The rules of config.mesh.rules, then the network's own. Raises ConfigError for a rule that fits no parameter."""
    given = []
    for text in c.mesh.rules:
        pattern, colon, axes = text.rpartition(":")
        require_key(colon and pattern and axes.strip(), "mesh.rules", text, "is not a rule: write \"REGEX: AXES\", "
                    "such as \"attention.*/[qkv]/kernel: fsdp, tensor\".")
        given.append((pattern, tuple(None if axis.strip() == "-" else axis.strip() for axis in axes.split(","))))
    sharding.check_rules(given, params, "config.mesh.rules")
    return (*given, *getattr(net, "sharding", ()))


def build_guide(guide: ConfigDict, config: ConfigDict, proc: processes.Process) -> Model:
    """The guide's model, which shares the process object `proc` of the guided model if the two are equal."""
    found = model(guide)
    return replace(found, process=proc) if guide.process.to_dict() == config.process.to_dict() else found
