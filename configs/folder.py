"""One's own pictures: a folder of them at any depth, an archive, arrays, or a data set in a usual form (docs/data.md).

    python -m diffusion.main --config=configs/folder.py --config.data.dir=PHOTOS --mode=data    # a look at them first
    python -m diffusion.main --config=configs/folder.py --config.data.dir=PHOTOS
    ... --config.data.labels=folders             a class for each folder in PHOTOS
    ... --config.data.size=96,128                height and width, multiples of 4
    ... --config.data.workers=8                  processes that decode, where there are cores and a GPU waits

Not from a paper: the U-Net of Ho et al. (2020) at a small size, by Karras et al. (2022), "EDM".
"""
from diffusion import config


def get_config():
    c = config.base(data="folder", process="edm", prediction="edm", weighting="edm", density="log_normal",
                    solver="heun", spacing="karras", estimator="ode")
    c.data.size, c.data.crop, c.data.flip = 64, "adm", True
    c.process.sigma_min, c.process.sigma_max, c.sigma_data = 0.002, 80.0, 0.5
    c.loss.space, c.loss.density_mean, c.loss.density_std = "x0", -1.2, 1.2
    c.network.num_classes = -1
    # Attention in the middle alone, which fits every size.
    c.network.channels, c.network.multipliers, c.network.blocks = 64, (1, 2, 2), 2
    c.network.attention_resolutions, c.network.dropout = (), 0.1
    c.optimizer.learning_rate, c.optimizer.warmup = 5e-4, "500 steps"
    c.ema.half_life, c.ema.warmup_ratio = "50k images", 0.05
    c.train.batch_size, c.train.duration = 64, "20k steps"
    c.train.log_every, c.train.sample_every, c.train.checkpoint_every = "50 steps", "500 steps", "500 steps"
    c.sample.steps, c.sample.clip, c.sample.preview = 18, False, 36
    c.evaluate.images = 1000
    return c
