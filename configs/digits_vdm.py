"""The digits by Kingma et al. (2021), "Variational Diffusion Models": the bound itself, and a learned schedule.

    python -m diffusion.main --config=configs/digits_vdm.py

Network and training are as in configs/digits.py. The loss is in bits per dimension.
"""
from configs import digits
from diffusion import config


def get_config():
    c = config.choose(digits.get_config(), process="learned", prediction="eps", loss="continuous_vlb",
                      spacing="uniform", estimator="continuous_vlb")
    c.process.log_snr_min, c.process.log_snr_max, c.process.hidden = -5.0, 13.3, 128
    c.loss.stratified = True
    c.sample.steps, c.sample.t_min, c.sample.clip = 250, 1 / 250, False
    c.likelihood.steps = 100
    return c
