"""The digits by their class, with classifier-free guidance (Ho & Salimans 2022).

    python -m diffusion.main --config=configs/digits_guided.py

Network and training are as in configs/digits.py, except that a tenth of the labels is dropped. Image i has class i %
10.
"""
from configs import digits
from diffusion import config


def get_config():
    c = config.choose(digits.get_config(), guidance="classifier_free", solver="ddim")
    c.network.num_classes, c.network.label_dropout = 10, 0.1
    c.sample.guidance.scale, c.sample.steps = 2.0, 50
    return c
