"""The digits by flow matching (Lipman et al. 2023; Esser et al. 2024): straight paths, velocity, Euler's method.

    python -m diffusion.main --config=configs/digits_flow.py

Network and training are those of configs/digits.py; times are logit-normal, as in Stable Diffusion 3.
"""
from configs import digits


def get_config():
    c = digits.get_config()
    c.process.name, c.process.shift = "flow", 1.0
    c.prediction, c.loss.space, c.loss.weighting = "velocity", "velocity", "simple"
    c.loss.density, c.loss.density_mean, c.loss.density_std = "logit_normal", 0.0, 1.0
    c.sample.solver, c.sample.spacing, c.sample.steps, c.sample.clip = "euler", "uniform", 50, False
    c.likelihood.estimator, c.likelihood.steps = "ode", 100
    return c
