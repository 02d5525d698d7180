"""The estimator of config.likelihood, ready to go over a data set."""
import numpy as np
from ml_collections import ConfigDict

from diffusion.build.models import Model, check_times
from diffusion.build.processes import SCHEDULES
from diffusion.build.rules import choose, need
from diffusion.build.sampling import variance
from diffusion.core import grids, parameterization
from diffusion.data.augment import to_float
from diffusion.likelihood.base import Estimator
from diffusion.likelihood.continuous import make_continuous_vlb
from diffusion.likelihood.dequantisation import dequantized, truncated_normal, uniform
from diffusion.likelihood.evaluate import Evaluator, make_evaluator
from diffusion.likelihood.ode import make_adaptive, make_fixed
from diffusion.likelihood.vlb import make_vlb

DEQUANTISATIONS = {"uniform": uniform, "truncated_normal": truncated_normal}
PROBES = {"rademacher", "gaussian", "exact"}
ESTIMATORS = {"vlb", "continuous_vlb", "ode"}


def evaluator(config: ConfigDict, model: Model, seed: int) -> Evaluator:
    """Raises ConfigError before anything is compiled."""
    c = config.likelihood
    check_times(config)
    need(c.batch_size >= 1, "likelihood.batch_size", c.batch_size, "must be positive.")
    clip = config.sample.clip and c.estimator == "vlb"  # the bound is of the sampler's own chain; an ODE has no kinks
    transform = (lambda d: parameterization.clip_x0(d, config.sample.clip_range)) if clip else (lambda d: d)
    return make_evaluator(estimator(config, model), model.denoiser, mesh=model.mesh, seed=seed, to_float=to_float,
                          batch_size=c.batch_size,
                          conditional=model.num_classes > 0, transform=transform)


def likelihood_chain(config: ConfigDict, model: Model) -> np.ndarray:
    """The steps [S, 2] of the bound `vlb`: the model's chain, or a respaced one."""
    return grids.pairs(grids.linspace(model.process.t_max, config.likelihood.steps))


def estimator(config: ConfigDict, model: Model) -> Estimator:
    c, discrete = config.likelihood, config.process.name in SCHEDULES
    choose(ESTIMATORS, "likelihood.estimator", c.estimator)
    need(c.steps >= 1, "likelihood.steps", c.steps, "must be 1 or more.")
    need(c.samples >= 1, "likelihood.samples", c.samples, "must be 1 or more.")
    need(c.tolerance >= 0, "likelihood.tolerance", c.tolerance, "must be positive, or 0 for likelihood.steps equal "
         "steps.")
    if c.estimator == "vlb":
        need(discrete, "likelihood.estimator", "vlb", f"is the sum over a chain's steps, and process.name = "
             f"{config.process.name!r} is in continuous time: use continuous_vlb.")
        need(c.steps <= config.process.steps, "likelihood.steps", c.steps, f"must be at most {config.process.steps}, "
             "the number of the model's times: the chain of all of them, or a respaced one.")
        return make_vlb(likelihood_chain(config, model), variance=variance(config.sample))
    if c.estimator == "continuous_vlb":
        need(not discrete, "likelihood.estimator", c.estimator, "integrates over times that this model, of "
             f"{config.process.steps} whole ones, never saw: use vlb.")
        finite = np.isfinite(float(model.process.log_snr(model.process.t_max)))
        return make_continuous_vlb(c.steps, uniform="log_snr" if finite else "time")
    need(not discrete or config.sample.between_times, "likelihood.estimator", "ode", "is in continuous time, and asks "
         f"this model between the {config.process.steps} whole times that it was trained at: say "
         "sample.between_times=True if that is meant.")
    probes = choose(PROBES, "likelihood.probes", c.probes)
    kwargs = dict(probes=probes, probe_count=c.probe_count)
    density = (make_adaptive(rtol=c.tolerance, atol=c.tolerance, **kwargs) if c.tolerance
               else make_fixed(c.steps, **kwargs))
    return dequantized(density, choose(DEQUANTISATIONS, "likelihood.dequantisation", c.dequantisation),
                       samples=c.samples)
