"""8x8 digits by a transformer: a small DiT (Peebles & Xie 2023) in pixel space.

    python -m diffusion.main --config=configs/digits_dit.py

0.6M parameters, a few minutes on a CPU.
"""
from configs import digits
from diffusion import config


def get_config():
    c = config.choose(digits.get_config(), network="dit")
    n = c.network
    n.channels = 96
    n.depth = 4
    n.heads = 4
    n.patch = 2
    c.optimizer.learning_rate = 1e-3
    return c
