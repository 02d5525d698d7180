"""The digits by flow matching (Lipman et al. 2023; Esser et al. 2024): straight paths, velocity, Euler's method.

    python -m diffusion.main --config=configs/digits_flow.py

Network and training are as in configs/digits.py; times are logit-normal, as in Stable Diffusion 3.
"""
from configs import digits
from diffusion import config


def get_config():
    c = config.choose(digits.get_config(), process="flow", prediction="velocity", weighting="simple",
                      density="logit_normal", solver="euler", spacing="uniform", estimator="ode")
    c.process.shift, c.loss.space = 1.0, "velocity"
    c.loss.density_mean, c.loss.density_std = 0.0, 1.0
    c.sample.steps, c.sample.clip = 50, False
    c.likelihood.steps = 100
    return c
