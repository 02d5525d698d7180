"""The digits by their class, with classifier-free guidance (Ho & Salimans 2022).

    python -m diffusion.main --config=configs/digits_guided.py

Network and training are those of configs/digits.py, but that a tenth of the labels is hidden. Image i is of class i %
10.
"""
from configs import digits


def get_config():
    c = digits.get_config()
    c.network.num_classes, c.network.label_dropout = 10, 0.1
    c.sample.guidance.name, c.sample.guidance.scale = "classifier_free", 2.0
    c.sample.solver, c.sample.steps = "ddim", 50
    return c
