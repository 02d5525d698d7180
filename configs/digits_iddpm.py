"""The digits by Nichol & Dhariwal (2021), "Improved DDPM": cosine schedule, learned variance, L_hybrid.

    python -m diffusion.main --config=configs/digits_iddpm.py

Network and training are as in configs/digits.py.
"""
from configs import digits
from diffusion import config


def get_config():
    c = config.choose(digits.get_config(), prediction="eps", loss="hybrid", weighting="simple")
    c.learned_range = True
    c.sample.variance = c.likelihood.variance = "learned_range"
    c.sample.steps = 100
    return c
