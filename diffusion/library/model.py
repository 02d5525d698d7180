"""The model: a process, a network and what it predicts."""
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffusion.core import parameterization, processes
from diffusion.core.uncertainty import Uncertainty
from diffusion.errors import require
from diffusion.library.parts import part
from diffusion.networks.adapters import adapted
from diffusion.parallel import sharding
from diffusion.typing import Params


@dataclass(frozen=True, kw_only=True)
class Model:
    """The parts that training and sampling share.

    network: a module or a pair of functions (`networks/adapters.py`), of x [B, *shape], c_noise [B] and, with classes,
    cond [B] int32. process, prediction: an object or the name of a member, such as "edm", with its default settings.
    Raises FieldError for an impossible value and ConfigError for an unknown name.
    """
    network: Any
    shape: tuple[int, ...]            # of a datum x_0, such as (H, W, C) or (D,)
    process: processes.Process | str  # if its schedule is learned: of the initial parameters
    prediction: parameterization.Parameterization | str = "eps"
    sigma_data: float = 0.5           # the standard deviation of the data, for the prediction "edm"
    num_classes: int = 0              # 0: unconditional
    null_label: int | None = None     # the label for "no class" in training, if it hid labels
    learned_range: bool = False       # a second head predicts the variance (Nichol & Dhariwal 2021, Eq. 15)
    uncertainty: bool = False         # the loss learns a factor for each noise level (Karras et al. 2024, Eq. 21)
    two_times: bool = False           # c_noise is [B, 2], see `parameterization.make_denoiser`
    mesh: Mesh | None = None          # None: all devices share the batch
    rules: tuple[sharding.Rule, ...] = ()  # for the sharding of parameters
    guide: "Model | None" = None      # the worse model of autoguidance, with parameters params["guide"]

    def __post_init__(self):
        require(self.sigma_data > 0, "sigma_data", self.sigma_data, "must be positive (Karras et al. 2022: 0.5).")
        require(self.num_classes >= 0, "num_classes", self.num_classes, "is 0 (unconditional) or the number of labels.")
        found = {"network": adapted(self.network), "shape": tuple(self.shape), "process": part("process", self.process),
                 "prediction": part("prediction", self.prediction, sigma_data=self.sigma_data),
                 "mesh": self.mesh or sharding.make_mesh(-1, 1)}
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def process_of(self, params: Params) -> processes.Process:
        """The process, which depends on the parameters if it is learned."""
        schedule = self.process.trained_schedule
        return schedule.process(params["schedule"]) if schedule else self.process

    @functools.cached_property
    def denoiser(self) -> parameterization.Denoiser:
        """params -> Diffusion."""
        return parameterization.make_denoiser(
            self.process_of, self.prediction,
            lambda params, *arguments: self.network.apply({"params": params["params"]}, *arguments),
            learned_range=self.learned_range, two_times=self.two_times)

    @property
    def init(self) -> Callable[[jax.Array], Params]:
        """key -> parameters: {"params": of the network, and other learned parts}."""
        return functools.partial(init_params, net=self.network, shape=self.shape, classes=self.num_classes > 0,
                                 times=1 + self.two_times, schedule=self.process.trained_schedule,
                                 uncertainty=self.uncertainty)

    @property
    def shapes(self) -> Params:
        """The parameters as shapes."""
        return _shapes(self.init, jnp.result_type(float))

    @functools.cached_property
    def abstract_params(self) -> Params:
        """The parameters as shapes with shardings."""
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.shapes,
                            sharding.of_state(self.shapes, self.mesh, self.rules))


def init_params(key: jax.Array, *, net: Any, shape: tuple[int, ...], classes: bool, times: int, schedule: Any,
                uncertainty: bool) -> Params:
    """The parameters of the network, and of the other learned parts."""
    cond = jnp.zeros((1,), jnp.int32) if classes else None
    params = dict(net.init(key, jnp.zeros((1, *shape)), jnp.zeros((1,) if times == 1 else (1, times)), cond))
    if schedule:
        params["schedule"] = schedule.init(jax.random.fold_in(key, 1))
    if uncertainty:
        params["uncertainty"] = Uncertainty().init()
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
