"""From a config to the parts it names. The only files that read config names: one explicit table for each family.

To add a member to a family, write it in the family's folder and add it to the table here.
"""
from diffusion.build.guidance import classes, with_scale
from diffusion.build.likelihood import evaluator, likelihood_chain
from diffusion.build.memory import check_memory
from diffusion.build.models import PREDICTIONS, Model, model
from diffusion.build.networks import network
from diffusion.build.processes import SCHEDULES, betas, process
from diffusion.build.sampling import (
    SOLVERS,
    WITH_ETA,
    Sampler,
    along,
    check_sample_batch,
    generate,
    grid,
    grid_of,
    sampler,
    solver,
)
from diffusion.build.training import RESUMABLE_KEYS, Training, training, training_images, training_step

__all__ = ["PREDICTIONS", "RESUMABLE_KEYS", "SCHEDULES", "SOLVERS", "WITH_ETA", "Model", "Sampler", "Training", "along",
           "betas", "check_memory", "check_sample_batch", "classes", "evaluator", "generate", "grid", "grid_of",
           "likelihood_chain", "model", "network", "process", "sampler", "solver", "training", "training_images",
           "training_step", "with_scale"]
