"""DiffWave on SC09, spoken digits of one second at 16 kHz: Kong et al. (2021), "DiffWave: A Versatile Diffusion Model
for Audio Synthesis", Section 5.3 (unconditional).

    python -m diffusion.main --config=configs/sc09_diffwave.py --config.data.dir=SC09 --workdir=runs/sc09
    ... --config.data.labels=folders --config.network.num_classes=-1 --config.network.label_dropout=0.1   # by class

SC09 is a folder (or archive) with the folders zero .. nine of Speech Commands. Network, process, loss and sampling are
as in albertfgu/diffwave-sashimi at d35c153, whose checkpoint of 1M steps is the first author's. That code has no moving
average; ours is written beside the parameters, and --config.sample.weights=ema samples from it.

For a GPU: 24.1M parameters and 29 TFLOP a step. Kept for the gradient: 31 GB with network.remat=light, and 71 GB
without it (counted from shapes, float32).
"""
from diffusion import config


def get_config():
    c = config.base(data="folder", kind="audio", network="diffwave", process="linear", prediction="eps")
    c.data.length, c.data.rate = 16_000, 16_000
    c.process.steps, c.process.beta_start, c.process.beta_end = 200, 1e-4, 0.02
    c.loss.space, c.loss.weighting = "eps", "simple"
    c.network.channels, c.network.depth, c.network.dilation_cycle = 256, 36, 12
    c.network.remat = "light"
    c.optimizer.learning_rate, c.optimizer.warmup, c.optimizer.clip_norm = 2e-4, "0 steps", 0.0
    c.train.batch_size, c.train.duration = 16, "1M steps"
    c.sample.steps, c.sample.variance, c.sample.clip = 200, "small", False
    c.sample.weights, c.sample.preview = "raw", 16
    return c
