"""Builds the model, which training and sampling share: process, network and denoiser."""
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion.build.conditions import declared, dropout_rates
from diffusion.build.kinds import spec
from diffusion.build.networks import network
from diffusion.build.objective import check_prediction
from diffusion.build.processes import process
from diffusion.build.rules import require_key
from diffusion.core import parameterization, processes
from diffusion.core.conditions import Condition
from diffusion.core.uncertainty import Uncertainty
from diffusion.kinds.base import Spec
from diffusion.networks import backend
from diffusion.networks.base import ModuleNetwork
from diffusion.parallel import sharding
from diffusion.typing import NetworkApply


@dataclass(frozen=True, kw_only=True)
class Model:
    """The parts that training and sampling share."""
    mesh: Mesh
    network: Any                      # the Flax module, whose functions the denoiser calls
    spec: Spec                        # the kind of data
    conditions: dict[str, Condition]  # those that the network takes
    process: processes.Process        # of the initial parameters
    process_of: Callable[[Any], processes.Process]  # parameters -> the process, which depends on them if learned
    denoiser: parameterization.Denoiser
    denoiser_with_jvp: parameterization.Denoiser  # for jax.jvp and jax.linearize, which fast layers do not allow
    init: Callable[[jax.Array], Any]  # key -> parameters: {"params": of the network, and other learned parts}
    abstract_params: Any              # shapes with shardings
    num_classes: int                  # 0: unconditional
    null_label: int | None            # the label for "no class" in training, if it hid labels
    rules: tuple[sharding.Rule, ...] = ()  # for the sharding of parameters
    guide: "Model | None" = None      # the worse model of autoguidance, with parameters params["guide"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one x0; for images [H, W, C]."""
        return self.spec.shape


def model(config: ConfigDict, guide: ConfigDict | None = None, devices: Sequence | None = None) -> Model:
    """The model that the config describes, with its guide if one is given. Raises ConfigError before anything is
    compiled."""
    c, parts = config, check_model(config)
    shape = parts.spec.shape
    proc, net, schedule = parts.process, parts.network, parts.process.trained_schedule
    process_of = (lambda params: schedule.process(params["schedule"])) if schedule else (lambda params: proc)
    heads = (("f", shape[-1] * (1 + parts.prediction.both)), *((("variance", shape[-1]),) if c.learned_range else ()))
    whole = ModuleNetwork(module=net, shape=shape, cond=parts.conditions, heads=heads)
    mesh = sharding.make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor, devices)

    def denoiser(jvp: bool) -> parameterization.Denoiser:
        return parameterization.make_denoiser(process_of, parts.prediction, applying(whole, mesh, jvp))

    uncertainty = c.loss.get("uncertainty", False)
    init = functools.partial(init_params, net=net, shape=shape, schedule=schedule, uncertainty=uncertainty)
    shapes = init_shapes(net, shape, schedule, uncertainty, jnp.result_type(float))
    rules = sharding_rules(c, net, shapes)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes,
                            sharding.of_state(shapes, mesh, rules))
    return Model(mesh=mesh, network=net, process=proc, process_of=process_of, denoiser=denoiser(jvp=False),
                 denoiser_with_jvp=denoiser(jvp=True), init=init, abstract_params=abstract, spec=parts.spec,
                 conditions=parts.conditions, num_classes=c.network.num_classes,
                 null_label=c.network.num_classes if c.network.label_dropout else None, rules=rules,
                 guide=guide and build_guide(guide, c, proc))


def applying(net: ModuleNetwork, mesh: Mesh, jvp: bool) -> NetworkApply:
    """The network as a function of its parameters, in the layers' forms for the mesh's devices."""
    def apply(params, *args):
        with backend.compiling_for(sharding.platform(mesh), jvp=jvp):
            return net.apply(params["params"], *args)
    return apply


class Parts(NamedTuple):
    """The parts of a model that need no devices and no tracing."""
    process: processes.Process
    prediction: parameterization.Parameterization
    network: Any
    spec: Spec
    conditions: dict[str, Condition]


def check_model(c: ConfigDict) -> Parts:
    """The parts of the model, built to check its keys. Raises ConfigError."""
    kind, proc = spec(c), process(c.process)
    prediction = check_prediction(c, proc)
    net = network(c.network, kind.shape[:-1], kind.shape[-1] * (1 + prediction.both + c.learned_range))
    conditions = declared(c, net)
    dropout_rates(c, conditions)
    return Parts(proc, prediction, net, kind, conditions)


def init_params(key: jax.Array, *, net: Any, shape: tuple[int, ...], schedule: Any, uncertainty: bool) -> Any:
    """The parameters of the network, and of the other learned parts."""
    params = {"params": ModuleNetwork(module=net, shape=shape, cond=getattr(net, "cond", {})).init(key)}
    if schedule:
        params["schedule"] = schedule.init(jax.random.fold_in(key, 1))
    if uncertainty:
        params["uncertainty"] = Uncertainty().init()
    return params


@functools.lru_cache(maxsize=64)
def init_shapes(net: Any, shape: tuple[int, ...], schedule: Any, uncertainty: bool, dtype: Any) -> Any:
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
