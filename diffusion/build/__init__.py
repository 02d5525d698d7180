"""Builds the parts that a config names, from the members of families.

A member is defined in its family's folder, with its keys and abilities: see `diffusion/families.py`.
"""
from diffusion.build.check import check
from diffusion.build.conditions import needs_records
from diffusion.build.evaluation import extractor
from diffusion.build.guidance import classes, with_scale
from diffusion.build.kinds import clips, measured, require_images, source, spec
from diffusion.build.likelihood import evaluator, likelihood_chain
from diffusion.build.memory import check_memory
from diffusion.build.models import Model, model
from diffusion.build.networks import network
from diffusion.build.objective import prediction
from diffusion.build.processes import betas, process
from diffusion.build.sampling import (
    Sampler,
    check_sample_batch,
    conditions,
    generate,
    grid,
    grid_of,
    sampler,
    sampling_process,
    solver,
    titles,
)
from diffusion.build.training import RESUMABLE_KEYS, Training, training, training_images, training_step

__all__ = ["RESUMABLE_KEYS", "Model", "Sampler", "Training", "betas", "check", "check_memory", "check_sample_batch",
           "classes", "clips", "conditions", "evaluator", "extractor", "generate", "grid", "grid_of",
           "likelihood_chain", "measured", "model", "needs_records", "network", "prediction", "process",
           "require_images", "sampler", "sampling_process", "solver", "source", "spec", "titles", "training",
           "training_images", "training_step", "with_scale"]
