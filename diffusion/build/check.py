"""Checks that a config can run, without building or tracing anything, opening the data, or requesting devices."""
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from diffusion.build.averages import averages, check_lengths, check_trained_weights, snapshots
from diffusion.build.evaluation import extractor
from diffusion.build.likelihood import estimator
from diffusion.build.models import check_model
from diffusion.build.networks import check_times
from diffusion.build.objective import objective
from diffusion.build.sampling import check_sampling, grid
from diffusion.build.training import check_batch, check_optimizer, make_durations, retention
from diffusion.core.processes import Process
from diffusion.train import durations


def check(config: ConfigDict, mode: str = "train", *, epoch_size: int = 50_000) -> None:
    """Raises ConfigError for keys that contradict each other in this mode of the main program. Model and sampler are
    always checked; objective, optimizer and durations for "train"; the estimator for "likelihood", the
    extractor for "evaluate".

    epoch_size: the number of examples in an epoch, used for durations given in epochs.
    """
    c, parts = config, check_model(config)
    check_times(parts.network, parts.process, between_times=c.sample.between_times)
    check_sampling(c)
    grid(c.sample, parts.process)
    if mode == "likelihood":
        estimator(c, parts.process)
    if mode == "evaluate":
        extractor(c)
    if mode == "train":
        check_training(c, parts.process, epoch_size, parts.network)


def check_training(c: ConfigDict, process: Process, epoch_size: int, net: Any = None) -> None:
    """Checks the objective, the optimizer, the durations and the averages."""
    objective(c, process)
    in_steps = partial(durations.to_steps, batch_size=c.train.batch_size, epoch_size=epoch_size)
    check_batch(c.train, shards=1)
    plan = make_durations(c.train, in_steps)
    retention(c.train, in_steps)
    check_optimizer(c, epoch_size, net)
    kept = averages(c, epoch_size)
    check_lengths(c, kept, plan.total * c.train.batch_size)
    snapshots(c, kept)
    check_trained_weights(c)
