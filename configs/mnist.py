"""MNIST, 28x28, from idx files in the folder config.data.dir (train-images-idx3-ubyte[.gz] and so on).

    python -m diffusion.main --config=configs/mnist.py --config.data.dir=FOLDER

Not from a paper: the U-Net of Ho et al. (2020) at a small size with their linear schedule and eps prediction.
"""
from diffusion import config


def get_config():
    c = config.base(data="idx", solver="ddim")
    c.data.size, c.data.channels = 28, 1
    c.network.channels, c.network.multipliers, c.network.blocks = 32, (1, 2, 2), 2
    c.network.attention_resolutions, c.network.groups, c.network.dropout = (14,), 8, 0.1
    c.optimizer.learning_rate, c.optimizer.warmup = 5e-4, "500 steps"
    c.ema.half_life = "100k images"
    c.train.batch_size, c.train.duration = 128, "20 epochs"
    c.train.log_every, c.train.sample_every, c.train.checkpoint_every = "50 steps", "1 epoch", "1 epoch"
    c.sample.steps = 50
    return c
