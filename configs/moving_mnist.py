"""A digit of MNIST that moves and bounces: clips of 8 frames of 32x32, from MNIST's idx files in config.data.dir.

    python -m diffusion.main --config=configs/moving_mnist.py --config.data.dir=FOLDER --workdir=RUN
    python -m diffusion.main --workdir=RUN --mode=sample --num_samples=100

Not from a paper: the data of Denton & Fergus (2018) at half their size with one digit of 20 pixels, and the U-Net of
Ho et al. (2020) with the frames as its channels (Voleti et al. 2022, "MCVD"), which predicts x_0 under the loss of the
velocity (Li & He 2025, "JiT"). Not trained to its end yet (docs/video.md).
"""
from diffusion import config


def get_config():
    c = config.base(data="moving_mnist", kind="video", network="unet_frames", process="flow", prediction="x0",
                    weighting="clipped_velocity", density="logit_normal", solver="heun", spacing="uniform",
                    estimator="ode")
    c.data.size, c.data.channels, c.data.frames = 32, 1, 8
    c.data.digits, c.data.digit = 1, 20
    # Eight frames show where a digit goes through much noise, so the times spread more than JiT's (-0.8, 0.8).
    c.loss.space, c.loss.density_mean, c.loss.density_std = "x0", 0.0, 1.4
    c.loss.stratified = True
    c.network.patch, c.network.channels, c.network.multipliers, c.network.blocks = 2, 64, (1, 2, 4), 1
    c.network.attention_resolutions, c.network.groups = (8,), 8
    c.optimizer.learning_rate, c.optimizer.warmup, c.optimizer.decay = 7e-4, "200 steps", "cosine"
    c.ema.half_life, c.ema.warmup_ratio = "20k images", 0.05
    t = c.train
    t.batch_size, t.duration = 64, "2500 steps"
    t.log_every, t.sample_every, t.checkpoint_every = "50 steps", "500 steps", "500 steps"
    c.sample.steps, c.sample.preview = 18, 12
    return c
