"""Builds the estimator of config.likelihood, ready to run over a data set."""
import numpy as np
from ml_collections import ConfigDict

from diffusion.build.models import Model
from diffusion.build.networks import check_times
from diffusion.build.rules import require_key
from diffusion.core import parameterization
from diffusion.core.processes import Process
from diffusion.families import BY_NAME
from diffusion.kinds.base import preparation
from diffusion.likelihood.base import Estimator
from diffusion.likelihood.evaluate import Evaluator, make_evaluator
from diffusion.likelihood.vlb import chain_of

_FAMILY = BY_NAME["estimator"]


def evaluator(config: ConfigDict, model: Model, seed: int) -> Evaluator:
    """The evaluator of config.likelihood. Raises ConfigError before anything is compiled."""
    c = config.likelihood
    check_times(model.network, model.process, between_times=config.sample.between_times)
    found = estimator(config, model.process)
    # The bound is that of the sampler's own chain; an ODE must have no kinks.
    clip = config.sample.clip and getattr(_FAMILY.member(c.estimator).make, "of_chain", None)
    transform = (lambda d: parameterization.clip_x0(d, config.sample.clip_range)) if clip else (lambda d: d)
    needs_jvp = getattr(_FAMILY.member(c.estimator).make, "needs_jvp", False)
    denoiser = model.denoiser_with_jvp if needs_jvp else model.denoiser
    return make_evaluator(found, denoiser, mesh=model.mesh, seed=seed, batch_size=c.batch_size,
                          prepare=preparation(model.spec, model.conditions), transform=transform)


def likelihood_chain(config: ConfigDict, model: Model) -> np.ndarray:
    """The steps [S, 2] of the bound `vlb`: the model's chain, or a respaced one."""
    return chain_of(model.process, config.likelihood.steps)


def estimator(config: ConfigDict, process: Process) -> Estimator:
    """The estimator that config.likelihood names. Raises ConfigError if it does not fit the process."""
    c, make = config.likelihood, _FAMILY.member(config.likelihood.estimator).make
    of_chain = getattr(make, "of_chain", None)
    require_key(c.batch_size >= 1, "likelihood.batch_size", c.batch_size, "must be positive.")
    require_key(of_chain is not True or process.discrete, "likelihood.estimator", c.estimator, "is the sum over a "
                f"chain's steps, but process.name = {config.process.name!r} is in continuous time: use continuous_vlb.")
    require_key(of_chain is not False or not process.discrete, "likelihood.estimator", c.estimator, "integrates over "
                f"times that this model, of {process.t_max} whole ones, never saw: use vlb.")
    require_key(not getattr(make, "between_times", False) or not process.discrete or config.sample.between_times,
                "likelihood.estimator", c.estimator, "is in continuous time, and evaluates this model between the "
                f"{process.t_max} whole times that it was trained at: set sample.between_times=True to allow this.")
    variance = c.get("variance")
    require_key(variance != "learned_range" or config.learned_range, "likelihood.variance", variance,
                "needs a network with a head for the variance: config.learned_range.")
    return _FAMILY.make(c, process=process)
