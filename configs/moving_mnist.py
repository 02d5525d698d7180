"""A digit of MNIST that moves and bounces: clips of 8 frames of 32x32, from MNIST's idx files in config.data.dir.

    python -m diffusion.main --config=configs/moving_mnist.py --config.data.dir=FOLDER --workdir=RUN
    python -m diffusion.main --workdir=RUN --mode=sample --num_samples=100

Not from a paper: the data of Denton & Fergus (2018) at half their size with one digit of 20 pixels, and the U-Net of
Ho et al. (2020) with the frames as its channels (Voleti et al. 2022, "MCVD"), by Karras et al. (2022), "EDM".
"""
from diffusion import config


def get_config():
    c = config.base(data="moving_mnist", kind="video", network="unet_frames", process="edm", prediction="edm",
                    weighting="edm", density="log_normal", solver="heun", spacing="karras", estimator="ode")
    c.data.size, c.data.channels, c.data.frames = 32, 1, 8
    c.data.digits, c.data.digit = 1, 20
    c.process.sigma_min, c.process.sigma_max, c.sigma_data = 0.002, 80.0, 0.5
    # Eight frames show where a digit goes through noise of 3 to 15, which EDM's own density (-1.2, 1.2) rarely draws.
    c.loss.space, c.loss.density_mean, c.loss.density_std = "x0", 0.0, 1.4
    c.loss.stratified = True
    c.network.patch, c.network.channels, c.network.multipliers, c.network.blocks = 2, 64, (1, 2, 4), 1
    c.network.attention_resolutions, c.network.groups = (8,), 8
    c.optimizer.learning_rate, c.optimizer.warmup, c.optimizer.decay = 1e-3, "200 steps", "cosine"
    c.ema.half_life, c.ema.warmup_ratio = "20k images", 0.05
    t = c.train
    t.batch_size, t.duration = 64, "4000 steps"
    t.log_every, t.sample_every, t.checkpoint_every = "50 steps", "500 steps", "500 steps"
    c.sample.steps, c.sample.preview = 18, 12
    return c
