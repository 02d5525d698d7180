"""Spoken digits: FSDD's 3,000 recordings (8 kHz) as 64x64 complex spectrograms, by class. 49 minutes on two cores,
after which the clips are not recognised yet (docs/audio.md).

    python -m diffusion.main --config=configs/fsdd.py --config.data.dir=FOLDER

FOLDER holds https://github.com/Jakobovski/free-spoken-digit-dataset. Takes 0 to 4 of each speaker and digit are held
out (data.split=test). Clips of 6,144 samples are longer than 97 % of the recordings. Not from a paper: the U-Net of Ho
et al. (2020) at a small size, by Karras et al. (2022), "EDM".
"""
from diffusion import config


def get_config():
    c = config.base(data="fsdd", kind="audio", process="edm", prediction="edm", weighting="edm", density="log_normal",
                    solver="heun", spacing="karras", guidance="classifier_free", estimator="ode")
    c.data.form, c.data.length, c.data.rate, c.data.frequencies, c.data.hop = "stft", 6144, 8000, 64, 96
    c.process.sigma_min, c.process.sigma_max, c.sigma_data = 0.002, 80.0, 0.5
    c.loss.space, c.loss.density_mean, c.loss.density_std = "x0", -1.2, 1.2
    c.loss.stratified = True
    c.network.num_classes, c.network.label_dropout = 10, 0.1
    c.network.patch, c.network.channels, c.network.multipliers, c.network.blocks = 2, 64, (1, 2, 2), 1
    c.network.attention_resolutions, c.network.groups, c.network.dropout = (16,), 8, 0.1
    c.optimizer.learning_rate, c.optimizer.warmup, c.optimizer.decay = 1e-3, "200 steps", "cosine"
    c.ema.half_life, c.ema.warmup_ratio = "5k images", 0.05
    c.train.batch_size, c.train.duration = 32, "2000 steps"
    c.train.log_every, c.train.sample_every, c.train.checkpoint_every = "20 steps", "400 steps", "200 steps"
    c.sample.steps, c.sample.clip, c.sample.preview = 18, False, 20
    c.sample.guidance.scale = 1.5
    return c
