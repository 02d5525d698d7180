"""CIFAR-10 on a CPU, to try: the U-Net of Ho et al. (2020) at a thirtieth of the size. Data as for configs/cifar10.py.

    python -m diffusion.main --config=configs/cifar10_tiny.py

Not from a paper. docs/results.md has the result of 15 minutes on two cores.
"""
from diffusion import config


def get_config():
    c = config.base(process="cosine", prediction="v", weighting="snr_plus_one", solver="ddim")
    c.data.flip = True
    c.data.on_device = True  # 150 MB
    c.network.channels, c.network.multipliers, c.network.blocks = 32, (1, 2, 2), 1
    c.network.attention_resolutions, c.network.groups = (8,), 8
    c.optimizer.learning_rate, c.optimizer.decay, c.optimizer.warmup = 2e-3, "cosine", "100 steps"
    c.ema.half_life = "20k images"
    c.train.batch_size, c.train.duration = 64, "1200 steps"
    c.train.log_every, c.train.sample_every, c.train.checkpoint_every = "20 steps", "400 steps", "200 steps"
    c.sample.steps = 50
    return c
