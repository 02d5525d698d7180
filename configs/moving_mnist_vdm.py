"""Two digits of MNIST that move and bounce, 16 frames of 64x64, by the factorised space-time U-Net, on a GPU.

    python -m diffusion.main --config=configs/moving_mnist_vdm.py --config.data.dir=FOLDER

The data of Denton & Fergus (2018), with random velocities after a bounce ("Stochastic Moving MNIST"); the process and
the network of Ho et al. (2022), "Video Diffusion Models": cosine schedule, v-prediction, 64 channels with the
multipliers 1, 2, 4. Their sizes for other data, learning rate and length are not those of a published run.
"""
from diffusion import config


def get_config():
    c = config.base(data="moving_mnist", kind="video", network="video_unet", process="cosine", prediction="v",
                    weighting="snr_plus_one", solver="ddim")
    c.data.size, c.data.channels, c.data.frames = 64, 1, 16
    c.data.deterministic, c.data.workers = False, 2
    c.network.channels, c.network.multipliers = 64, (1, 2, 4)
    c.network.dtype = "bfloat16"
    c.optimizer.learning_rate, c.optimizer.warmup = 1e-4, "1000 steps"
    c.ema.half_life, c.ema.warmup_ratio = "50k images", 0.05
    t = c.train
    t.batch_size, t.duration = 32, "100k steps"
    t.log_every, t.sample_every, t.checkpoint_every = "100 steps", "2000 steps", "2000 steps"
    c.sample.steps, c.sample.batch_size, c.sample.preview = 100, 16, 8
    return c
