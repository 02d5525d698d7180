"""One's own recordings: a folder of .wav, .flac, .ogg or .mp3 files at any depth, or an archive (docs/audio.md).

    python -m diffusion.main --config=configs/recordings.py --config.data.dir=RECORDINGS --mode=data   # a look first
    python -m diffusion.main --config=configs/recordings.py --config.data.dir=RECORDINGS
    ... --config.data.labels=folders             a class for each folder in RECORDINGS
    ... --config.data.rate=16000 --config.data.length=24576 --config.data.frequencies=128 --config.data.hop=192
                                                 1.5 s at 16 kHz, as 128 x 128 x 2

Clips of 0.77 s at 8 kHz, spoken words, as complex spectrograms of 64 x 64 x 2. Not from a paper: the U-Net of Ho et al.
(2020) at a small size, by Karras et al. (2022), "EDM", on spectrograms compressed as in SGMSE+ (Richter et al. 2023).
"""
from diffusion import config


def get_config():
    c = config.base(data="folder", kind="audio", process="edm", prediction="edm", weighting="edm",
                    density="log_normal", solver="heun", spacing="karras", estimator="ode")
    c.data.form, c.data.rate, c.data.length = "stft", 8000, 64 * 96
    c.data.frequencies, c.data.hop, c.data.crop = 64, 96, "random"
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
    c.sample.steps, c.sample.preview = 18, 24
    return c
