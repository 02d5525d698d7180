"""Handwritten digits of 8x8 pixels on a laptop: the first thing to run. The images come with scikit-learn.

    python -m diffusion.main --config=configs/digits.py

Not from a paper. The U-Net of Ho et al. (2020) at a small size, v prediction (Salimans & Ho 2022) on the cosine
schedule (Nichol & Dhariwal 2021). The expected result and its cost are in docs/results.md.
"""
from diffusion import config


def get_config():
    c = config.base(data="digits", process="cosine", prediction="v", weighting="snr_plus_one")
    c.data.size, c.data.channels = 8, 1
    c.data.on_device = True
    c.network.channels, c.network.multipliers, c.network.blocks = 32, (1, 2), 1
    c.network.attention_resolutions, c.network.groups = (4,), 8
    c.optimizer.learning_rate, c.optimizer.decay, c.optimizer.warmup = 3e-3, "cosine", "100 steps"
    c.ema.half_life = "10k images"
    c.train.batch_size, c.train.duration = 64, "1800 steps"
    c.train.log_every, c.train.sample_every, c.train.checkpoint_every = "50 steps", "600 steps", "600 steps"
    c.sample.variance, c.sample.steps, c.sample.batch_size, c.sample.preview = "small", 250, 64, 64
    c.likelihood.variance = "small"
    return c
