"""The digits by Kingma et al. (2021), "Variational Diffusion Models": the bound itself, and a learned schedule.

    python -m diffusion.main --config=configs/digits_vdm.py

Network and training are those of configs/digits.py. The loss is in bits per dimension.
"""
from configs import digits


def get_config():
    c = digits.get_config()
    c.process.name, c.process.log_snr_min, c.process.log_snr_max, c.process.hidden = "learned", -5.0, 13.3, 128
    c.prediction, c.loss.name, c.loss.weighting, c.loss.stratified = "eps", "continuous_vlb", "simple", True
    c.sample.spacing, c.sample.steps, c.sample.t_min, c.sample.clip = "uniform", 250, 1 / 250, False
    c.likelihood.estimator, c.likelihood.steps = "continuous_vlb", 100
    return c
