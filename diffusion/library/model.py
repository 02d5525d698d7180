"""The model: a process, a network and what it predicts."""
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffusion.core import conditions as core
from diffusion.core import parameterization, processes
from diffusion.core.conditions import Condition
from diffusion.core.uncertainty import Uncertainty
from diffusion.errors import require
from diffusion.kinds.base import Spec
from diffusion.library.parts import part
from diffusion.networks import backend
from diffusion.networks.adapters import adapted
from diffusion.networks.base import ModuleNetwork
from diffusion.parallel import sharding
from diffusion.typing import Params


@dataclass(frozen=True, kw_only=True)
class Model:
    """The parts that training and sampling share.

    network: a module or a pair of functions (`networks/adapters.py`) of x [B, *shape], c_noise [B] and the conditions.
    process, prediction: an object or the name of a member, such as "edm", with its default settings. Give `shape`, or
    the `spec` of the kind of data. Raises FieldError for an impossible value and ConfigError for an unknown name.
    """
    network: Any
    process: processes.Process | str  # if its schedule is learned: of the initial parameters
    prediction: parameterization.Parameterization | str = "eps"
    shape: tuple[int, ...] = ()       # of one x_0, such as (H, W, C) or (D,)
    spec: Spec | None = None          # the kind of data; None: arrays as they are
    sigma_data: float = 0.5           # the standard deviation of the data, for the prediction "edm"
    num_classes: int = 0              # the labels of the condition "label"; 0: unconditional
    null_label: int | None = None     # the label for "no class" in training, if it hides labels
    conditions: Mapping[str, Condition] | None = None  # None: the network's own, or the label if there are classes
    learned_range: bool = False       # a second head predicts the variance (Nichol & Dhariwal 2021, Eq. 15)
    uncertainty: Uncertainty | bool = False  # the loss learns a factor for each noise level (Karras et al. 2024,
                                      # Eq. 21); True: by the default layer
    two_times: bool = False           # c_noise is [B, 2], see `parameterization.make_denoiser`
    mesh: Mesh | None = None          # None: all devices share the batch
    rules: tuple[sharding.Rule, ...] = ()  # for the sharding of parameters
    guide: "Model | None" = None      # the worse model of autoguidance, with parameters params["guide"]
    frozen: "Mapping[str, Model]" = field(default_factory=dict)  # models that training only reads, such as a teacher

    def __post_init__(self):
        require(self.sigma_data > 0, "sigma_data", self.sigma_data, "must be positive (Karras et al. 2022: 0.5).")
        require(isinstance(self.num_classes, int) and self.num_classes >= 0, "num_classes", self.num_classes, "is 0 "
                "(unconditional) or the number of labels.")
        require(self.shape or self.spec, "shape", self.shape, "is missing: that of one x_0, such as (32, 32, 3).")
        require(self.spec is None or hasattr(self.spec, "prepare"), "spec", self.spec, "is the spec of a kind of data, "
                "such as part(\"kind\", \"image\", size=32).")
        shape = self.spec.shape if self.spec else self.shape
        require(isinstance(shape, (tuple, list)) and all(isinstance(n, int) and n >= 1 for n in shape), "shape", shape,
                "is that of one x_0, positive whole numbers such as (32, 32, 3) or (2,).")
        require(not (self.shape and self.spec) or tuple(self.shape) == tuple(self.spec.shape), "shape", self.shape,
                f"is another than the spec's, {self.spec and self.spec.shape}: give one of the two.")
        require(self.mesh is None or isinstance(self.mesh, Mesh), "mesh", self.mesh, "is a jax.sharding.Mesh.")
        found = {"network": adapted(self.network), "shape": tuple(shape),
                 "process": part("process", self.process), "conditions": self._declared(),
                 "prediction": part("prediction", self.prediction, sigma_data=self.sigma_data),
                 "uncertainty": Uncertainty() if self.uncertainty is True else self.uncertainty,
                 "mesh": self.mesh or sharding.make_mesh(-1, 1)}
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def _declared(self) -> dict[str, Condition]:
        if self.conditions is not None:
            require(isinstance(self.conditions, Mapping) and all(isinstance(one, Condition) for one in
                                                                 self.conditions.values()), "conditions",
                    self.conditions, "are declared by name: {\"text\": Condition(shape=(77, 768))}.")
            for name in ("x0", "x", "image", "mask", "index", "position"):  # names of the data themselves
                require(name not in self.conditions, "conditions", name, "is a name of the data: choose another.")
            return dict(self.conditions)
        found = dict(getattr(self.network, "cond", None) or core.labels(self.num_classes))
        if self.null_label is not None:
            require("label" in found, "null_label", self.null_label, "is a label, but the network takes none: set "
                    "num_classes.")
            found["label"] = replace(found["label"], null=self.null_label)
        return found

    def process_of(self, params: Params) -> processes.Process:
        """The process, which depends on the parameters if it is learned."""
        schedule = self.process.trained_schedule
        return schedule.process(params["schedule"]) if schedule else self.process

    @functools.cached_property
    def denoiser(self) -> parameterization.Denoiser:
        """params -> Diffusion."""
        return self._denoiser(jvp=False)

    @functools.cached_property
    def denoiser_with_jvp(self) -> parameterization.Denoiser:
        """The same for jax.jvp and jax.linearize, which fast layers do not allow."""
        return self._denoiser(jvp=True)

    def _denoiser(self, jvp: bool) -> parameterization.Denoiser:
        channels, platform, devices = self.shape[-1], sharding.platform(self.mesh), self.mesh.size
        heads = (("f", channels * (1 + self.prediction.both)), *((("variance", channels),) * self.learned_range))
        network = ModuleNetwork(module=self.network, shape=self.shape, cond=self.conditions, heads=heads)

        def apply(params: Params, *arguments: Any) -> Any:
            with backend.compiling_for(platform, devices, jvp=jvp):  # the layers' forms for the mesh's devices
                return network.apply(params["params"], *arguments)
        return parameterization.make_denoiser(self.process_of, self.prediction, apply, two_times=self.two_times)

    @property
    def init(self) -> Callable[[jax.Array], Params]:
        """key -> parameters: {"params": of the network, and other learned parts}."""
        return functools.partial(init_params, net=self.network, shape=self.shape, cond=tuple(self.conditions.items()),
                                 times=1 + self.two_times, schedule=self.process.trained_schedule,
                                 uncertainty=self.uncertainty)

    @property
    def project(self) -> Callable[[Params], Params] | None:
        """The projection of all parameters that ends each update, such as EDM2's normalised weights, if the network or
        the uncertainty has one; else None."""
        found = {"params": getattr(self.network, "project", None),
                 "uncertainty": self.uncertainty.project if self.uncertainty and self.uncertainty.normalised else None}
        parts = {name: project for name, project in found.items() if callable(project)}
        if not parts:
            return None
        return lambda params: params | {name: project(params[name]) for name, project in parts.items()}

    @property
    def shapes(self) -> Params:
        """The parameters as shapes."""
        return _shapes(self.init, jnp.result_type(float))

    @functools.cached_property
    def abstract_params(self) -> Params:
        """The parameters as shapes with shardings."""
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.shapes,
                            sharding.of_state(self.shapes, self.mesh, self.rules))


def init_params(key: jax.Array, *, net: Any, shape: tuple[int, ...], cond: tuple, times: int, schedule: Any,
                uncertainty: Uncertainty | bool) -> Params:
    """The parameters of the network, and of the other learned parts."""
    params = {"params": ModuleNetwork(module=net, shape=shape, cond=dict(cond), times=times).init(key)}
    if schedule:
        params["schedule"] = schedule.init(jax.random.fold_in(key, 1))
    if uncertainty:
        params["uncertainty"] = uncertainty.init()
    return params


def _shapes(init: Callable, dtype: Any) -> Params:
    try:
        return _cached_shapes(init.func, tuple(init.keywords.items()), dtype)
    except TypeError:  # a user's network that cannot be hashed
        return jax.eval_shape(init, jax.random.key(0))


@functools.lru_cache(maxsize=64)
def _cached_shapes(function: Callable, keywords: tuple, dtype: Any) -> Params:
    """The shapes of `init_params` with floats of `dtype`. Cached, since tracing a network takes a quarter of a second
    or more, and a sweep builds one for each row and check."""
    return jax.eval_shape(functools.partial(function, **dict(keywords)), jax.random.key(0))
