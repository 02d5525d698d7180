"""The digits by Karras et al. (2022), "EDM": preconditioning, log-normal noise levels, Heun's method.

    python -m diffusion.main --config=configs/digits_edm.py

Network and training are as in configs/digits.py; the rest is Table 1's column "Ours", with the digits' own sigma_data.
"""
from configs import digits
from diffusion import config


def get_config():
    c = config.choose(digits.get_config(), process="edm", prediction="edm", weighting="edm", density="log_normal",
                      solver="heun", spacing="karras", estimator="ode")
    c.process.sigma_min, c.process.sigma_max, c.sigma_data = 0.002, 80.0, 0.75
    c.loss.space, c.loss.density_mean, c.loss.density_std = "x0", -1.2, 1.2
    c.sample.steps, c.sample.clip = 18, False
    c.likelihood.steps = 100
    return c
