"""Builds the model, which training and sampling share: process, network and denoiser."""
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffusion.build.conditions import declared, dropout_rates
from diffusion.build.kinds import spec
from diffusion.build.networks import network
from diffusion.build.objective import check_prediction
from diffusion.build.processes import process
from diffusion.build.rules import require_key
from diffusion.config import override
from diffusion.core import parameterization, processes
from diffusion.core.conditions import Condition
from diffusion.core.uncertainty import Uncertainty
from diffusion.kinds.base import Spec
from diffusion.library.model import Model
from diffusion.parallel import sharding


def model(config: ConfigDict, guide: ConfigDict | None = None, devices: Sequence | None = None,
          frozen: Mapping[str, ConfigDict] | None = None) -> Model:
    """The model that the config describes, with its guide if one is given, and the frozen models of a training by name.
    Raises ConfigError before anything is compiled."""
    c, parts = config, check_model(config)
    made = Model(network=parts.network, spec=parts.spec, process=parts.process, prediction=parts.prediction,
                 conditions=parts.conditions, num_classes=c.network.num_classes,
                 null_label=c.network.num_classes if c.network.label_dropout else None, learned_range=c.learned_range,
                 uncertainty=c.loss.get("uncertainty", False) and Uncertainty(normalised=c.loss.uncertainty_normalised),
                 mesh=sharding.make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor, devices),
                 guide=guide and build_guide(guide, c, parts.process),
                 frozen={name: build_frozen(name, other, c, parts, devices) for name, other in (frozen or {}).items()})
    return replace(made, rules=sharding_rules(c, parts.network, made.shapes))


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
    past = getattr(kind, "past", 0)
    net = network(c.network, kind.shape[:-1], kind.shape[-1] * (1 + prediction.both + c.learned_range),
                  (past, *kind.shape[1:]) if past else (), getattr(kind, "augment_labels", 0))
    conditions = declared(c, net)
    dropout_rates(c, conditions)
    return Parts(proc, prediction, net, kind, conditions)


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


def scale_of(kind: Spec) -> tuple:
    """What x_0 is, apart from how examples are loaded and augmented."""
    return type(kind), kind.shape, kind.scaling


def build_frozen(name: str, other: ConfigDict, config: ConfigDict, parts: Parts, devices: Sequence | None) -> Model:
    """The model of a frozen set, with the process object of the trained one. Raises ConfigError if its predictions are
    not of the same data and process."""
    where = f"{name}.source"
    theirs = check_model(other).spec
    require_key(scale_of(theirs) == scale_of(parts.spec), where, config[name].source, f"is a model of data "
                f"of the shape {list(theirs.shape)} ({other.data.kind}), but this one's is {list(parts.spec.shape)} "
                f"({config.data.kind}), or they are scaled differently.")
    require_key(other.process.to_dict() == config.process.to_dict(), where, config[name].source, "has another process: "
                f"{other.process.to_dict()}, but this model's is {config.process.to_dict()}.")
    require_key(parts.process.trained_schedule is None, where, config[name].source, "follows a learned schedule, which "
                "would not stay that of this model.")
    found = model(override(other, {f"mesh.{axis}": config.mesh[axis] for axis in sharding.AXES}), devices=devices)
    require_key(set(found.conditions) <= set(parts.conditions), where, config[name].source, "takes the conditions "
                f"{', '.join(found.conditions)}, and this model {', '.join(parts.conditions) or 'none'}.")
    require_key(other.network.num_classes in (0, config.network.num_classes), where, config[name].source, "knows "
                f"{other.network.num_classes} classes, and this model {config.network.num_classes}.")
    # A label that the teacher has no embedding for would make its prediction NaN.
    require_key("label" not in found.conditions or not config.network.label_dropout or found.null_label is not None,
                where, config[name].source, "was trained without a label for no class, which network.label_dropout = "
                f"{config.network.label_dropout} of this model shows it: set that to 0.")
    return replace(found, process=parts.process)
