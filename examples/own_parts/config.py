"""The digits with a schedule, a weighting, a network and a solver of one's own.

    python -m diffusion.main --config=config.py --workdir=runs/own       # in examples/own_parts
"""
from diffusion import config


def get_config():
    c = config.base(plugins=("own_parts",), data="digits", process="power", prediction="v", weighting="middle",
                    network="plain", solver="own_midpoint")
    c.data.size, c.data.channels, c.data.on_device = 8, 1, True
    c.process.exponent = 2.0
    c.loss.sharpness = 0.5
    c.network.channels, c.network.layers = 32, 4
    c.optimizer.learning_rate, c.optimizer.decay, c.optimizer.warmup = 3e-3, "cosine", "100 steps"
    c.ema.half_life = "10k images"
    c.train.batch_size, c.train.duration = 64, "600 steps"
    c.train.log_every, c.train.sample_every, c.train.checkpoint_every = "50 steps", "600 steps", "600 steps"
    c.sample.steps, c.sample.share, c.sample.between_times = 20, 0.5, True
    return c
