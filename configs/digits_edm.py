"""The digits by Karras et al. (2022), "EDM": preconditioning, log-normal noise levels, Heun's method.

    python -m diffusion.main --config=configs/digits_edm.py

Network and training are those of configs/digits.py; the rest is Table 1's column "Ours", with the digits' own
sigma_data.
"""
from configs import digits


def get_config():
    c = digits.get_config()
    c.process.name, c.process.sigma_min, c.process.sigma_max = "edm", 0.002, 80.0
    c.prediction, c.sigma_data = "edm", 0.75
    c.loss.space, c.loss.weighting = "x0", "edm"
    c.loss.density, c.loss.density_mean, c.loss.density_std = "log_normal", -1.2, 1.2
    c.sample.solver, c.sample.spacing, c.sample.steps, c.sample.clip = "heun", "karras", 18, False
    c.likelihood.estimator, c.likelihood.steps = "ode", 100
    return c
