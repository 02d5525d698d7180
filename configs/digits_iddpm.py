"""The digits by Nichol & Dhariwal (2021), "Improved DDPM": cosine schedule, learned variance, L_hybrid.

    python -m diffusion.main --config=configs/digits_iddpm.py

Network and training are those of configs/digits.py.
"""
from configs import digits


def get_config():
    c = digits.get_config()
    c.prediction, c.learned_range = "eps", True
    c.loss.name, c.loss.weighting = "hybrid", "simple"
    c.sample.variance, c.sample.steps = "learned_range", 100
    return c
